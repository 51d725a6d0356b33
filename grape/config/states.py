"""Settings of ``grape states``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grape.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StatesConfig:
    """How much test states vary, and how far each is from the nearest state that training, tuning or rollouts used."""

    task_suite_name: str
    """Suite, e.g. libero_object or simpler_bridge."""
    task_ids: tuple[int, ...]
    """Tasks of the suite, counted from 0."""
    test: str
    """Test states as SPLIT/FIRST-LAST, e.g. official/0-39; the same for every task."""
    used: tuple[str, ...]
    """Used states in the same form, e.g. train/0-199 rollout/0-9."""
    out: Path
    """JSON file to write: per task the states' ids and distances in metres."""

    def __post_init__(self) -> None:
        for text in (self.test, *self.used):
            parse_state_range(text)
        if not self.task_ids:
            raise ConfigError("task_ids is empty; name at least one task")
        if not self.used:
            raise ConfigError("used is empty; name the states to measure the distance to, e.g. train/0-199")


def parse_state_range(text: str) -> tuple[str, range]:
    """``"train/0-199"`` as split and indices.

    Raises:
        ConfigError: The text has another form.
    """
    split, _, indices = text.partition("/")
    first, _, last = indices.partition("-")
    last = last or first
    if not split or not first.isdecimal() or not last.isdecimal() or int(last) < int(first):
        raise ConfigError(f"states {text!r} must be SPLIT/FIRST-LAST, e.g. official/0-39")
    return split, range(int(first), int(last) + 1)
