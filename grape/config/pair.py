"""Settings of ``grape pair`` and ``grape export``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from grape.errors import ConfigError

Strategy = Literal["best_vs_worst", "top_m_vs_bottom_m", "success_vs_failure"]


@dataclass(frozen=True, kw_only=True)
class PairingSettings:
    """Which rollouts of one initial state become chosen and rejected."""

    strategy: Strategy = "best_vs_worst"
    """best_vs_worst: one pair per initial state (GRAPE, arXiv 2411.19309); top_m_vs_bottom_m: each of the m best
    against each of the m worst; success_vs_failure: each success against each failure."""
    m: int = 2
    """Number of best, and of worst, rollouts per initial state for top_m_vs_bottom_m; halved groups cap it."""
    min_margin: float = 0.0
    """Smallest difference of scores (score units) between chosen and rejected; equal scores never make a pair."""
    require_chosen_success: bool = True
    """Whether the chosen rollout must have succeeded. False also pairs failures with failures."""
    prefer_failure_over_success: bool = False
    """Whether a failure may be chosen against a success with a lower score; needs require_chosen_success False."""
    max_pairs_per_state: int | None = None
    """At most this many pairs per initial state, largest margins first; None keeps all."""

    cut_at_parting: bool = False
    """Whether both sides end where they part: when chosen enters the first stage that rejected never does, or, if there
    is none, when chosen ends. What a rollout does after its mistake tells little about the mistake."""
    steps_after_parting: int = 10
    """With cut_at_parting: steps that are kept after that moment, in which rejected may lag behind."""

    def __post_init__(self) -> None:
        if self.steps_after_parting < 0:
            raise ConfigError(f"steps_after_parting is {self.steps_after_parting}, it must not be negative")
        if self.m < 1:
            raise ConfigError(f"m is {self.m}, it must be at least 1")
        if not 0 <= self.min_margin < float("inf"):
            raise ConfigError(f"min_margin is {self.min_margin}, it must be finite and not negative")
        if self.max_pairs_per_state is not None and self.max_pairs_per_state < 1:
            raise ConfigError(f"max_pairs_per_state is {self.max_pairs_per_state}, it must be at least 1 or None")
        if self.prefer_failure_over_success and self.require_chosen_success:
            raise ConfigError(
                "prefer_failure_over_success True contradicts require_chosen_success True; "
                "pass --require_chosen_success False as well"
            )


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Pair scored rollouts into two RLDS data sets, chosen and rejected."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders written by ``grape collect``."""
    scores: tuple[Path, ...] = ()
    """Files written by ``grape score``: one per run in the same order, or one for all runs. Empty takes the only
    file in each run's ``scores`` folder."""
    out: Path
    """New folder DIR; gets ``chosen/NAME/1.0.0``, ``rejected/NAME/1.0.0`` and ``pairing.json``, all at once."""
    dataset_name: str
    """TFDS name of both data sets: lower-case letters, digits, underscores."""
    pairing: Annotated[PairingSettings, tyro.conf.arg(name="")] = field(default_factory=PairingSettings)
    """Which rollouts become chosen and rejected."""
    dry_run: bool = False
    """Print the report and write nothing."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write rollouts or demonstrations as one RLDS data set for supervised fine-tuning."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders written by ``grape collect`` or ``grape experts``."""
    out: Path
    """Existing or new folder; gets ``NAME/1.0.0``, all at once."""
    dataset_name: str
    """TFDS name of the data set: lower-case letters, digits, underscores."""
    only: Literal["success", "all"] = "all"
    """success leaves failed episodes out; crashed ones are never exported."""
    val_fraction: float = 0.0
    """Share of each task's initial states (0 to below 1) that goes to the split ``val``; whole states, never both."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"val_fraction is {self.val_fraction}, it must be at least 0 and below 1")
