"""Settings of ``grape score``: every λ, β and τ of the guided cost, the published presets, and the objectives.

R = λ_self·R_self + λ_ext·R_ext + λ_success·I_success (GRAPE, arXiv 2411.19309, section 3.3), with
C_s = Σ_c β_c·max(0, C_sc − τ_sc) for each stage s and cost c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from grape.errors import ConfigError, did_you_mean

LARGEST = 1e12
"""Of any setting: beyond it nothing is left of the other terms' digits, and far beyond it scores overflow."""


@dataclass(frozen=True, kw_only=True)
class GuidedCostConfig:
    """What an episode is worth. Defaults: normalised per task, so that the three terms contribute comparably."""

    lambda_self: float = 1.0
    """Weight of R_self, per nat; per standard deviation where ``normalize`` is on."""
    lambda_ext: float = 1.0
    """Weight of R_ext, dimensionless; per standard deviation where ``normalize`` is on."""
    lambda_success: float = 1.0
    """Weight of I_success (0 or 1); per standard deviation where ``normalize`` is on."""
    beta_collision: float = 0.02
    """β per step with an unsafe contact; 0.01 in the release."""
    beta_grasp: float = 0.005
    """β per step without the grasp that the stage needs; 0.01 in the release."""
    beta_path: float = 0.5
    """β per metre that the end-effector travels; 0.01 in the release."""
    beta_sub_goal: float = 5.0
    """β per metre still missing to the stage's sub-goal at its closest; published presets do not have it (0)."""
    tau_collision: tuple[float, ...] = (5.0,)
    """Tolerated steps with an unsafe contact: one number, or one for each stage (the last repeats)."""
    tau_grasp: tuple[float, ...] = (80.0,)
    """Tolerated steps without a grasp (80 are 4 s at LIBERO's 20 Hz): one number, or one for each stage."""
    tau_path: tuple[float, ...] = (0.5,)
    """Tolerated way, m: one number, or one for each stage."""
    tau_sub_goal: tuple[float, ...] = (0.0,)
    """Tolerated distance to the sub-goal, m: one number, or one for each stage."""
    self_reduction: Literal["sum", "mean"] = "sum"
    """R_self as the sum over steps of log π (as published), or their mean, which does not grow with length."""
    self_probability_floor: float = 0.0
    """Smallest probability that a step (7 tokens together) may count with; 0.05 in the release, 0 for none."""
    stage_combination: Literal["sum", "product"] = "sum"
    """R_ext = Σ_s exp(−C_s), or Π_s exp(−C_s) as published. The sum still tells failures apart by how far they came."""
    unreached_cost: float | None = None
    """C_s of a stage that was never reached. ``None``: its full cost, exp(−C_s) = 0. Published presets: 0, free."""
    normalize: bool = True
    """Whether each term is centred and scaled to standard deviation 1 over the scored episodes of its task."""
    success_first: bool = True
    """Whether the failures of a task are moved, all by the same amount, below its worst success."""
    success_margin: float = 0.1
    """Distance, in units of R, kept between the worst success and the best failure by ``success_first``."""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            numbers = value if isinstance(value, tuple) else (value,) if isinstance(value, (int, float)) else ()
            if spec.name.startswith("tau_") and not numbers:
                raise ConfigError(f"{spec.name} is empty; give one number, or one for each stage")
            for number in numbers:
                if number < 0 and not spec.name.startswith("lambda_"):
                    raise ConfigError(f"{spec.name} is {number}; a number >= 0 is wanted")
                if not abs(number) <= LARGEST:  # nor is it nan
                    raise ConfigError(f"{spec.name} is {number}; a number of at most {LARGEST:g} is wanted")
        if self.self_probability_floor >= 1:
            raise ConfigError(f"self_probability_floor is {self.self_probability_floor}; it must be below 1")

    @property
    def betas(self) -> dict[str, float]:
        """β of each kind of cost."""
        return {
            "collision": self.beta_collision,
            "grasp": self.beta_grasp,
            "path": self.beta_path,
            "sub_goal": self.beta_sub_goal,
        }

    @property
    def taus(self) -> dict[str, tuple[float, ...]]:
        """τ of each kind of cost."""
        return {
            "collision": self.tau_collision,
            "grasp": self.tau_grasp,
            "path": self.tau_path,
            "sub_goal": self.tau_sub_goal,
        }


PRESETS: dict[str, GuidedCostConfig] = {
    "default": GuidedCostConfig(),
    "paper": GuidedCostConfig(
        lambda_self=0.01,
        lambda_ext=0.01,
        lambda_success=2.0,
        beta_collision=0.01,
        beta_grasp=0.01,
        beta_path=0.01,
        beta_sub_goal=0.0,
        tau_collision=(0.0,),
        tau_grasp=(0.0,),
        tau_path=(0.0,),
        stage_combination="product",
        unreached_cost=0.0,
        normalize=False,
        success_first=False,
    ),
    "release": GuidedCostConfig(
        lambda_self=0.01,
        lambda_ext=1.0,
        lambda_success=5.0,
        beta_collision=0.01,
        beta_grasp=0.01,
        beta_path=0.01,
        beta_sub_goal=0.0,
        tau_collision=(20.0, 0.0, 0.0),
        tau_grasp=(40.0, 5.0, 10.0),
        tau_path=(2.0, 2.0, 2.0),
        self_probability_floor=0.05,
        stage_combination="product",
        unreached_cost=0.0,
        normalize=False,
        success_first=False,
    ),
}
"""Named settings. ``paper``: its λ; it leaves β and τ open, here the release's β and τ = 0. ``release``: the numbers in
github.com/aiming-lab/GRAPE (Data Collection/maniskill2_evaluator.py at b426c55), whose τ were set for a three-stage
SIMPLER task. Both run as published: unnormalised, unreached stages free, a failure may beat a success."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How an objective changes the settings of a preset."""

    replaced: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Setting -> its value under this objective."""
    scaled: Mapping[str, float] = field(default_factory=dict)
    """Setting -> factor on the preset's value."""

    def shift(self, preset: GuidedCostConfig) -> GuidedCostConfig:
        """The settings under this objective."""
        changes: dict[str, Any] = {name: getattr(preset, name) * factor for name, factor in self.scaled.items()}
        return dataclasses.replace(preset, **(changes | dict(self.replaced)))


OBJECTIVES: dict[str, Objective] = {
    "task_completion": Objective(),
    "safety": Objective(
        replaced={"tau_collision": (0.0,)},
        scaled={"beta_collision": 5.0, "lambda_self": 0.1},
    ),
    "efficiency": Objective(
        replaced={"tau_path": (0.0,)},
        scaled={"beta_path": 2.0, "beta_sub_goal": 0.1, "lambda_self": 0.1},
    ),
}
"""Named shifts of a preset. GRAPE (arXiv 2411.19309) shifts thresholds alone; why that is not enough here, and where
the factors come from: docs/objectives.md. Successes come first under each, if they do in the preset."""


def guided_cost_settings(preset: str, objective: str) -> GuidedCostConfig:
    """The settings of a preset, shifted towards an objective.

    Raises:
        ConfigError: One of the names is unknown.
    """
    for kind, name, known in (("preset", preset, PRESETS), ("objective", objective, OBJECTIVES)):
        if name not in known:
            raise ConfigError(f"unknown {kind} {name!r}.{did_you_mean(name, known)}")
    return OBJECTIVES[objective].shift(PRESETS[preset])


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """One run of ``grape score``."""

    runs: Positional[tuple[Path, ...]]
    """Folders of ``grape collect``; their ``episodes/*.npz`` are read, nothing in them is changed."""
    out: Path | None = None
    """Scores file (JSON), replaced atomically if it exists; by default RUN/scores/PRESET.json of the one run, or
    RUN/scores/PRESET-OBJECTIVE.json under another objective than task_completion."""
    preset: str = "default"
    """Settings to start from: default, paper or release. The flags of the guided cost change single values of it."""
    objective: str = "task_completion"
    """What the preset is shifted towards: task_completion leaves it as it is, safety tolerates no unsafe contact and
    efficiency no free way. Shown values include the shift; single flags win over it."""
    guided_cost: GuidedCostConfig = field(default_factory=GuidedCostConfig)
    """The settings themselves."""
    constraints_dir: Path | None = None
    """Folder with ``<suite>_<task_id>.json`` (or .yaml) stage constraints; tasks without a file use the shipped ones
    (simpler_bridge) or those derived from the goal (LIBERO)."""
    plot: Path | None = None
    """Picture (PNG) of the distributions of the three terms to write; needs matplotlib (extra plot)."""
