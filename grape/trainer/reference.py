"""Log-probabilities under the frozen reference, computed once and kept on the disk.

One small file per pair, named by the fingerprint of everything that the numbers depend on. So a file is never stale:
other data, weights or settings have another name, and runs that differ in β or learning rate share the files. The
settings are kept in the file, too, so that a run that finds a pair under other settings can say which.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grape.files import write_bytes_atomic

_LOG = logging.getLogger(__name__)
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
_SHOWN_CHARACTERS = 24  # of a value, in messages: enough of a hash


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What the log-probabilities of a pair's steps under the reference depend on."""

    data: str
    """Digest of the pair's pictures, instructions and action tokens."""
    settings: str
    """Checkpoint, numerics and how pictures are treated, as a JSON object with sorted keys."""

    @classmethod
    def of(cls, data: str, settings: Mapping[str, Any]) -> Fingerprint:
        """Put the settings into words that compare."""
        return cls(data=data, settings=json.dumps(settings, sort_keys=True))

    @property
    def file_name(self) -> str:
        """Where the numbers are kept."""
        return f"{self.data}-{hashlib.blake2b(self.settings.encode(), digest_size=8).hexdigest()}.npz"

    def differences(self, stored: str) -> list[str]:
        """The settings in which a stored fingerprint differs, in words; the epoch goes on by itself and is none."""
        now, then = json.loads(self.settings), json.loads(stored)
        odd = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        return [f"{name}: {_short(then, name)} then, {_short(now, name)} now" for name in odd if name != "epoch"]


def _short(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name, "unset")
    return str(value)[:_SHOWN_CHARACTERS]


class ReferenceCache:
    """Step log-probabilities of pairs, by fingerprint: memory first, then the disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.num_from_disk = 0
        self.num_computed = 0
        self._memory: dict[int, Tensor] = {}
        self._epoch = 0
        self._said_other = False

    def recall(self, pair_index: int, epoch: int) -> Tensor | None:
        """What this process has seen already for a pair in this epoch (0 unless pictures change with it)."""
        return self._memory.get(pair_index) if epoch == self._epoch else None

    def load(self, pair_index: int, epoch: int, fingerprint: Fingerprint, *, num_steps: int) -> Tensor | None:
        """Read the (N,) step log-probabilities of a pair from the disk.

        A damaged file, and one that was made with other settings, is as good as none; both are said.
        """
        path = self._path(fingerprint)
        if not path.exists():
            self._say_what_differs(fingerprint)
            return None
        try:
            values = _read(path, "step_logps")
        except _DAMAGE as error:
            _LOG.warning("Reference %s is damaged (%s) and is computed again", path, error)
            return None
        if values.shape != (num_steps,):
            _LOG.warning("Reference %s has %s steps, not %d, and is computed again", path, values.shape, num_steps)
            return None
        self.num_from_disk += 1
        return self._remember(pair_index, epoch, torch.from_numpy(values))

    def store(self, pair_index: int, epoch: int, fingerprint: Fingerprint, step_logps: Tensor) -> Tensor:
        """Keep the (N,) step log-probabilities of a pair."""
        buffer = io.BytesIO()
        np.savez(buffer, step_logps=step_logps.cpu().numpy(), settings=np.array(fingerprint.settings))
        write_bytes_atomic(self._path(fingerprint), buffer.getvalue())
        self.num_computed += 1
        return self._remember(pair_index, epoch, step_logps.cpu())

    def _remember(self, pair_index: int, epoch: int, step_logps: Tensor) -> Tensor:
        if epoch != self._epoch:  # epochs follow each other: what was seen in another one is not asked for again
            self._memory, self._epoch = {}, epoch
        self._memory[pair_index] = step_logps
        return step_logps

    def _say_what_differs(self, fingerprint: Fingerprint) -> None:
        """Once per run: the same pair is here, under other settings."""
        if self._said_other:
            return
        found: list[list[str]] = []
        for path in sorted(self._path(fingerprint).parent.glob(f"{fingerprint.data}-*.npz")):
            try:
                found.append(fingerprint.differences(str(_read(path, "settings"))))
            except _DAMAGE:
                continue  # said when it is asked for
        if found and all(found):  # without any difference: another epoch of this very run
            self._said_other = True
            nearest = "; ".join(sorted(found, key=len)[0])
            _LOG.warning("References in %s have other settings (%s) and are computed again", self.directory, nearest)

    def _path(self, fingerprint: Fingerprint) -> Path:
        return self.directory / fingerprint.data[:2] / fingerprint.file_name


def _read(path: Path, name: str) -> np.ndarray:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        return archive[name]
