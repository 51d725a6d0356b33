"""Log-probabilities under the frozen reference, computed once and kept on the disk.

One small file per pair, named by the fingerprint of everything that the numbers depend on. So a file is never stale:
other data, weights or settings have another name, and runs that differ in β or learning rate share the files.
"""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grape.files import write_bytes_atomic

_LOG = logging.getLogger(__name__)


class ReferenceCache:
    """Step log-probabilities of pairs, by fingerprint: memory first, then the disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.num_from_disk = 0
        self.num_computed = 0
        self._memory: dict[int, Tensor] = {}
        self._epoch = 0

    def recall(self, pair_index: int, epoch: int) -> Tensor | None:
        """What this process has seen already for a pair in this epoch (0 unless pictures change with it)."""
        return self._memory.get(pair_index) if epoch == self._epoch else None

    def load(self, pair_index: int, epoch: int, fingerprint: str, *, num_steps: int) -> Tensor | None:
        """Read the (N,) step log-probabilities of a pair from the disk; a damaged file is computed again, and said."""
        path = self._path(fingerprint)
        if not path.exists():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                values = archive["step_logps"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            _LOG.warning("Reference %s is damaged (%s) and is computed again", path, error)
            return None
        if values.shape != (num_steps,):
            _LOG.warning("Reference %s has %s steps, not %d, and is computed again", path, values.shape, num_steps)
            return None
        self.num_from_disk += 1
        return self._remember(pair_index, epoch, torch.from_numpy(values))

    def store(self, pair_index: int, epoch: int, fingerprint: str, step_logps: Tensor) -> Tensor:
        """Keep the (N,) step log-probabilities of a pair."""
        buffer = io.BytesIO()
        np.savez(buffer, step_logps=step_logps.cpu().numpy())
        write_bytes_atomic(self._path(fingerprint), buffer.getvalue())
        self.num_computed += 1
        return self._remember(pair_index, epoch, step_logps.cpu())

    def _remember(self, pair_index: int, epoch: int, step_logps: Tensor) -> Tensor:
        if epoch != self._epoch:  # epochs follow each other: what was seen in another one is not asked for again
            self._memory, self._epoch = {}, epoch
        self._memory[pair_index] = step_logps
        return step_logps

    def _path(self, fingerprint: str) -> Path:
        return self.directory / fingerprint[:2] / f"{fingerprint}.npz"
