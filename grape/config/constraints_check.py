"""Settings of ``grape constraints check``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from grape.config.score import PRESETS
from grape.errors import ConfigError, did_you_mean

STRIP_SUFFIXES = (".webp", ".png")


@dataclass(frozen=True, kw_only=True)
class ConstraintsCheckConfig:
    """Try stage constraints on stored rollouts of their task before anything is scored with them."""

    file: Positional[Path | None] = None
    """Constraints (.json or .yaml) of one task; without a file those are checked that `grape score` would take: shipped
    with the toolkit, or derived from the task's goal."""
    rollouts: tuple[Path, ...]
    """Folders of `grape collect` with episodes of the task, successes and failures; nothing in them is changed."""
    task: str | None = None
    """Which task of the rollouts, e.g. libero_goal/8; needed where a file or a strip meets rollouts of several."""
    out: Path | None = None
    """The whole report as JSON, replaced atomically if it exists."""
    strip: Path | None = None
    """Picture (.webp or .png) of one success and one failure with stage, running costs and keypoints drawn in."""
    preset: str = "default"
    """Settings of `grape score` whose β, τ and stage combination make R_ext: default, paper or release."""
    num_resamples: int = 2000
    """Resamples of the initial states behind each 95 % interval."""
    seed: int = 0
    """Of the resamples."""

    def __post_init__(self) -> None:
        if not self.rollouts:
            raise ConfigError("no rollouts were named; try: grape constraints check FILE --rollouts RUN")
        if self.preset not in PRESETS:
            raise ConfigError(f"unknown preset {self.preset!r}.{did_you_mean(self.preset, PRESETS)}")
        if not 100 <= self.num_resamples <= 100_000:
            raise ConfigError(f"num_resamples is {self.num_resamples}; it must lie between 100 and 100000")
        if self.file is not None and self.out is not None and self.out.resolve() == self.file.resolve():
            raise ConfigError(f"--out {self.out} would replace the constraints that are checked; name another file")
        if self.strip is not None and self.strip.suffix not in STRIP_SUFFIXES:
            raise ConfigError(
                f"{self.strip} is neither {' nor '.join(STRIP_SUFFIXES)}; name the strip with one of them"
            )
