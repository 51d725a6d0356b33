"""Settings of ``grape experts``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grape.config.collect import OFFICIAL_SPLIT, check_workers
from grape.config.inputs import ImageResize, PromptStyle
from grape.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Demonstrate tasks with scripted experts, store every step, and report how often they succeed."""

    run_dir: Path
    """Folder of the run; one file per finished episode."""
    task_suite_name: str = "libero_object"
    """Suite; experts exist for LIBERO's pick-and-place goals (one On or In) and for simpler_bridge."""
    task_ids: tuple[int, ...] = ()
    """Tasks of the suite, counted from 0; empty takes all."""
    init_split: str = "train"
    """Split of sampled initial states; the official ones are for testing only, so only measure_only may have them."""
    first_state: int = 0
    """Index of the first initial state."""
    num_states: int = 20
    """Initial states per task."""
    measure_only: bool = False
    """Report success by the rules of grape eval and keep each episode's outcome alone: no picture and no action, so
    that nothing can be trained on it."""
    image_size: int = 224
    """Side of the recorded pictures, pixels: that of the policy to be trained on them; a student brings its own."""
    image_resize: ImageResize = "lanczos"
    """How pictures come to that size: JPEG and lanczos, or area; take the same in training and evaluation."""
    prompt_style: PromptStyle = "template"
    """Words around the instruction in a student's prompt; an expert reads none."""
    jitter: float = 0.0
    """White noise on each translation axis, largest standard deviation, fraction of full deflection."""
    burst_probability: float = 0.0
    """Chance per step that 2 to 8 random steps begin (1 or 2 in SIMPLER, 5 Hz); labels stay the expert's."""
    start_burst_probability: float = 0.0
    """Chance that an episode begins with 3 to 24 random steps (1 to 6 in SIMPLER)."""
    careless_m: float = 0.0
    """Above 0 a careless demonstrator: closes the fingers so many metres beside the grasp, carries what is or is not in
    them, and lets go at the target; for data of mixed quality, as people's are."""
    student: str | None = None
    """Checkpoint that drives while the expert labels (DAgger); None lets the expert drive."""
    temperature: float = 0.0
    """Sampling temperature of the student; 0 is greedy."""
    seed: int = 0
    """Root of all randomness."""
    resume: bool = False
    """Continue the run in run_dir."""
    num_workers: int = 2
    """Simulator processes."""
    render_profile: Literal["faithful", "fast"] = "faithful"
    """Render settings, see docs/simulators.md."""
    max_steps: int | None = None
    """Actions after which an episode has failed; None takes the suite's limit."""
    step_timeout_s: float = 120.0
    """A simulator that does not answer for this many seconds counts as crashed."""

    def __post_init__(self) -> None:
        check_workers(self.num_workers, self.step_timeout_s, self.max_steps)
        if self.image_size < 1:
            raise ConfigError(f"image_size is {self.image_size}; it must be at least 1")
        if not 0 <= self.jitter < float("inf"):
            raise ConfigError(f"jitter is {self.jitter}; it must be finite, and 0 or more")
        if not 0 <= self.careless_m <= 0.1:
            raise ConfigError(f"careless_m is {self.careless_m}; it must lie between 0 and 0.1 m")
        for name in ("burst_probability", "start_burst_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if self.student is None and self.temperature != 0:
            raise ConfigError(f"temperature is {self.temperature}, but no student samples; name one, or leave it at 0")
        if self.student is not None and (self.jitter or self.burst_probability or self.start_burst_probability):
            raise ConfigError("jitter and bursts disturb an expert that drives; with a student leave them at 0")
        if self.student is not None and self.measure_only:
            raise ConfigError("measure_only keeps no labels, which are what a student is driven for; take grape eval")
        if self.init_split == OFFICIAL_SPLIT and not self.measure_only:
            raise ConfigError(
                "init_split is official, but those states are for testing only; take another, such as train, or keep "
                "outcomes alone with --measure_only"
            )
