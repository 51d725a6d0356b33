"""Training metrics: a local JSONL file always, W&B and TensorBoard when asked.

    logger = MetricsLogger(run_dir, resume_step=0, wandb_project=None, tensorboard=False, config={...})
    logger.log(step, {"loss": 0.69, "rewards/margins": 0.0})
    logger.close()

A run that is resumed at step ``k`` drops the rows after ``k`` first, so the file never holds a step twice.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grape.errors import MissingDependencyError
from grape.files import write_bytes_atomic
from grape.optional import require

METRICS_FILE = "metrics.jsonl"
_LOG = logging.getLogger(__name__)


class MetricsLogger:
    """Writes one row per optimiser step; only the first process of a run makes one."""

    def __init__(
        self,
        directory: Path,
        *,
        resume_step: int = 0,
        wandb_project: str | None = None,
        wandb_entity: str | None = None,
        tensorboard: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the log of a run folder.

        Args:
            directory: The run folder; the rows go to ``metrics.jsonl`` in it.
            resume_step: Optimiser steps already done; later rows are dropped.
            wandb_project: Project to log to; W&B is off without one, offline without an account, and its absence
                is said and never stops a run.
            wandb_entity: User or team that owns the project.
            tensorboard: Also write event files to ``tensorboard/`` in the run folder.
            config: Settings shown beside the run in W&B.
        """
        self.path = directory / METRICS_FILE
        _truncate_after(self.path, resume_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (held open for the run)
        self._wandb = _start_wandb(directory, wandb_project, wandb_entity, dict(config or {}))
        self._tensorboard = _start_tensorboard(directory, resume_step) if tensorboard else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row; a value that is not finite is written as ``null``."""
        row = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the file and finish W&B and TensorBoard."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Return the rows of a run folder in order; a torn last line (a killed writer) is left out."""
    path = directory / METRICS_FILE
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            _LOG.warning("%s: a torn line is left out", path)
    return rows


def _truncate_after(path: Path, step: int) -> None:
    if path.exists():
        kept = [row for row in read_metrics(path.parent) if row["step"] <= step]
        write_bytes_atomic(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _start_wandb(directory: Path, project: str | None, entity: str | None, config: dict[str, Any]) -> Any:
    if not project:
        return None
    try:
        wandb: Any = require("wandb", extra="wandb")
    except MissingDependencyError as error:
        _LOG.warning("Not logging to W&B: %s", error)
        return None
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_account(wandb) else "offline")
    if mode == "offline":
        _LOG.info("W&B: no account on this machine, logging offline to %s (wandb sync sends it later)", directory)
    name = directory.name
    try:
        return wandb.init(
            project=project, entity=entity, name=name, dir=str(directory), mode=mode, config=config, resume="allow",
            id=_stable_run_id(directory), settings=wandb.Settings(silent=True),
        )  # fmt: skip
    except wandb.errors.Error as error:
        _LOG.warning("Not logging to W&B: %s", error)
        return None


def _has_wandb_account(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # releases before 0.26 have no ``prompt``; they do not ask for what is looked up this way
        return bool(wandb.api.api_key)


def _stable_run_id(directory: Path) -> str:
    import uuid

    path = directory / "wandb_run_id.txt"
    if not path.exists():
        write_bytes_atomic(path, uuid.uuid4().hex[:12].encode())
    return path.read_text()


def _start_tensorboard(directory: Path, resume_step: int) -> Any:
    tensorboard: Any = require("torch.utils.tensorboard", extra="train")
    return tensorboard.SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)
