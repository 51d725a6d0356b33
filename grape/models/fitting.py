"""Batches that fit: one that the device has no memory for is halved, and the rest goes on in halves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from grape.errors import SamplingError, shorten

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class FittingBatches:
    """Runs rows in batches of a size that fits, and remembers the size."""

    def __init__(self) -> None:
        self.max_rows: int | None = None
        """Rows that are run at once; ``None`` until a batch did not fit."""

    def run(self, run_rows: Callable[[slice], Result], num_rows: int, *, release: Callable[[], None]) -> list[Result]:
        """Run all rows; results of the batches, in order.

        Args:
            run_rows: Runs some rows; the result of a row must not depend on the others.
            num_rows: Rows in all.
            release: Gives back what is kept between batches; called before a smaller one is tried.

        Raises:
            SamplingError: A single row does not fit.
        """
        results: list[Result] = []
        first = 0
        while first < num_rows:
            rows = slice(first, min(first + (self.max_rows or num_rows), num_rows))
            size = rows.stop - first
            try:
                results.append(run_rows(rows))
            except torch.cuda.OutOfMemoryError as error:  # the name that every torch has, for all devices
                reason = shorten(str(error).split("\n")[0], 300)
                if size == 1:
                    raise SamplingError(
                        f"one observation alone does not fit into memory ({reason}); free the device, take "
                        "--dtype bfloat16, a smaller checkpoint or a larger device"
                    ) from error
            else:
                first = rows.stop
                continue
            # Here the error is gone, and with it the frames that held the batch's tensors.
            release()
            self.max_rows = -(-size // 2)
            logger.warning(
                "%d observations at once do not fit into memory; going on with %d: %s", size, self.max_rows, reason
            )
        return results
