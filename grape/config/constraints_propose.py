"""Settings of ``grape constraints propose``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grape.errors import ConfigError

Objective = Literal["task_completion", "safety", "efficiency"]


@dataclass(frozen=True, kw_only=True)
class ConstraintsProposeConfig:
    """Ask a vision-language model for a task's stages, through any endpoint that speaks OpenAI's chat completions.

    The key is read from OPENAI_API_KEY alone; servers without one, such as vLLM at home, need none. Nothing of an
    answer is run: it is read as data in the constraint language, and refused where it is anything else.
    """

    task: str | None = None
    """The task in words; None takes the instruction of the suite's task."""
    suite: str | None = None
    """Suite of the task, e.g. libero_goal: the simulator takes the picture and names the keypoints and goals."""
    task_id: int | None = None
    """Task of the suite, counted from 0."""
    init_state: str = "train/0"
    """Initial state of which the simulator takes the picture, as SPLIT/INDEX."""
    image: Path | None = None
    """Picture of the scene (PNG, JPEG); with a suite it is taken instead of the simulator's, without markers."""
    keypoints: Path | None = None
    """keypoints.json of `grape constraints keypoints` for this picture; they are drawn on it."""
    keypoint_names: tuple[str, ...] = ()
    """Names of keypoints whose place in the picture is not known, instead of --keypoints."""
    objective: Objective = "task_completion"
    """What matters: task_completion, safety or efficiency; shifts which costs and thresholds are asked for."""
    model: str | None = None
    """Name of the model, as the endpoint calls it. It has to see pictures."""
    base_url: str | None = None
    """URL of the endpoint, usually ending in /v1; None takes OPENAI_BASE_URL, else OpenAI's own."""
    structured: Literal["auto", "json_schema", "json_object", "off"] = "auto"
    """How JSON is asked for; auto tries a JSON schema, then any JSON, then words alone, as the endpoint takes it."""
    stream: bool = False
    """Receive the answer in pieces; for servers that only behave with it."""
    temperature: float | None = None
    """Sampling temperature; None leaves it to the endpoint (some models take no other)."""
    seed: int | None = None
    """Seed of sampling, where the endpoint has one; another seed is another entry of the cache."""
    timeout_s: float = 180.0
    """Seconds for one whole answer."""
    max_retries: int = 4
    """How often to ask again after a time-out, 429 (waiting as it says, up to 2 minutes), 5xx or a broken body."""
    price_per_million_input: float | None = None
    """Price of a million input tokens, in any currency. No price list is shipped, it would age."""
    price_per_million_output: float | None = None
    """Price of a million output tokens; with both prices the cost is printed."""
    cache_dir: Path | None = None
    """Folder of stored answers; None takes proposals/ in GRAPE_CACHE or ~/.cache/grape-vla."""
    offline: bool = False
    """Take answers from the cache alone, and say what is missing."""
    refresh: bool = False
    """Ask anew what is in the cache, and replace it."""
    out: Path | None = None
    """JSON file to write; None takes runs/constraints/<suite>_<task_id>.json. What was sent is saved beside it."""
    overwrite: bool = False
    """Replace the file if it is there."""

    def __post_init__(self) -> None:
        if (self.suite is None) != (self.task_id is None):
            raise ConfigError("--suite and --task_id go together: name both, or neither")
        if self.suite is None and (self.task is None or self.image is None):
            raise ConfigError("name a task of a suite (--suite, --task_id), or a task and a picture (--task, --image)")
        if self.suite is None and (self.keypoints is None) == (not self.keypoint_names):
            raise ConfigError(
                "name what can be referred to: --keypoints FILE (of grape constraints keypoints), or --keypoint_names"
            )
        if self.suite is not None and (self.keypoints is not None or self.keypoint_names):
            raise ConfigError(
                "the keypoints of a suite's task are the simulator's; leave --keypoints and its names out"
            )
        if self.offline and self.refresh:
            raise ConfigError("--offline takes answers from the cache, --refresh replaces them: choose one")
        if self.model in ("bddl", "shipped", "file"):
            raise ConfigError(f"model {self.model!r} would pass for constraints that no model wrote; rename it")
        if self.out is not None and self.out.suffix != ".json":
            raise ConfigError(f"out {self.out}: a JSON file is written, name it with .json")
        if (self.price_per_million_input is None) != (self.price_per_million_output is None):
            raise ConfigError("a cost needs both prices, of input and of output tokens")
        positive = {"timeout_s": self.timeout_s}
        at_least_0 = {
            "temperature": self.temperature,
            "max_retries": self.max_retries,
            "price_per_million_input": self.price_per_million_input,
            "price_per_million_output": self.price_per_million_output,
        }
        for name, value in (*positive.items(), *at_least_0.items()):
            if value is not None and not (0 <= value < math.inf and (value > 0 or name in at_least_0)):
                raise ConfigError(
                    f"{name}={value}: want a finite number {'at least' if name in at_least_0 else 'above'} 0"
                )
