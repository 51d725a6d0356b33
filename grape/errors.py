"""Every error that a user of the toolkit can cause, as one tree.

``GrapeError`` is the root. Each message says what it got, what it wanted and the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GrapeError(Exception):
    """Root of all errors raised on purpose by the toolkit."""


class ConfigError(GrapeError, ValueError):
    """A setting has a value that cannot be honoured."""


class MissingDependencyError(GrapeError, ImportError):
    """An optional dependency is not installed."""


class CheckpointError(GrapeError):
    """A policy or training checkpoint is missing, truncated or of the wrong kind."""


class SimulatorError(GrapeError):
    """A simulator could not be created, reset or stepped."""


class RecordError(GrapeError):
    """A stored episode, or a folder of them, is damaged or already in use."""


class ConstraintError(GrapeError, ValueError):
    """A stage constraint does not parse, or does not evaluate to a finite number."""


class ProposalError(GrapeError):
    """A vision-language model gave no answer, or none that can be used."""


class PairingError(GrapeError):
    """Trajectories cannot be paired, or chosen and rejected data sets do not match."""


class DatasetError(GrapeError):
    """An RLDS data set is missing, empty, corrupt or lacks a feature."""


class SamplingError(GrapeError):
    """A policy could not act: not even one observation fits into memory."""


class TrainingError(GrapeError):
    """Training had to stop; the last good checkpoint is untouched."""


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, with the list of known names."""
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(names) or '(none)'}."


def shorten(text: object, limit: int = 120) -> str:
    """The text, fit for an error message: what others wrote may be long, and may hold what steers a terminal."""
    text = str(text)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
