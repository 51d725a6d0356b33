"""Settings of ``grape collect``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grape.config.inputs import ImageResize, PromptStyle
from grape.errors import ConfigError

OFFICIAL_SPLIT = "official"
"""The benchmark's own fixed initial states: for testing only."""
LOCAL_CLUSTER = "local"
"""Ray on this machine, for the length of the command."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Roll a policy out from named initial states and store every step."""

    pretrained_checkpoint: str
    """Folder in OpenVLA's published layout, or hub id, of the policy to roll out."""
    adapter: str | None = None
    """Folder of a LoRA adapter to put on top; None rolls out the checkpoint alone."""
    task_suite_name: str = "libero_spatial"
    """LIBERO suite (libero_spatial, libero_object, libero_goal, libero_10, libero_90 or a LIBERO-PRO variant), or
    simpler_bridge; simpler_env_bridge and simpler_env_google are the original SIMPLER (--simpler_python)."""
    task_ids: tuple[int, ...] = ()
    """Tasks of the suite, counted from 0; empty takes all."""
    init_split: str = "rollout"
    """Where initial states come from: any name samples them from the task's regions, seeded by that name
    (train, rollout, validation and heldout are disjoint); official are the benchmark's test states (LIBERO 50)."""
    allow_official_states: bool = False
    """Must be True to collect on the official split: those states are for testing, a policy trained on them
    cannot be tested on them."""
    first_state: int = 0
    """Index of the first initial state."""
    num_states: int = 10
    """Initial states per task, from first_state on."""
    num_rollouts: int = 5
    """Sampled episodes per initial state; GRAPE (arXiv 2411.19309) takes 5."""
    temperature: float = 1.0
    """Sampling temperature of the action tokens, dimensionless; 0 is greedy and allows one rollout per state."""
    top_p: float | None = None
    """Nucleus sampling: probability mass to sample from, in (0, 1]; None samples from all action tokens."""
    center_crop: bool = True
    """Whether the policy sees the centre 90 % of the picture's area, as policies trained with augmentation must."""
    prompt_style: PromptStyle = "template"
    """Words around the instruction: OpenVLA's template, with which policies are trained, or bare, as GRAPE's SIMPLER
    rollouts had it. Take the same in collection, training and evaluation."""
    image_resize: ImageResize = "lanczos"
    """How pictures come to the policy's size: JPEG and lanczos, as OpenVLA in LIBERO, or area, as OpenVLA in SIMPLER.
    Take the same in collection, training and evaluation."""
    unnorm_key: str | None = None
    """Entry of the checkpoint's action statistics; None takes the suite's, with or without _no_noops."""
    seed: int = 0
    """Root of all sampling: a rollout depends on seed, task, state and rollout index alone."""
    run_dir: Path
    """Folder of the run; one file per finished episode."""
    resume: bool = False
    """Continue the run in run_dir: finished episodes are kept, crashed ones are run again."""
    num_workers: int = 2
    """Simulator processes. Random numbers do not depend on it; floating-point sums may differ in their last bits with
    batch size and torch's threads, so once in a while a token does, too (docs/parity.md)."""
    render_profile: Literal["faithful", "fast"] = "faithful"
    """fast (LIBERO alone) drops multisampling and reflections: about 2.5 times as many steps per second, pictures
    differ slightly."""
    camera_size: int | None = None
    """Height of the rendered picture in pixels; None takes the benchmark's own: 256 for LIBERO, as OpenVLA's protocol,
    480 for SIMPLER (its pictures are 4:3)."""
    max_steps: int | None = None
    """Actions after which an episode has failed; None takes the task's limit (220 for libero_spatial)."""
    ray_address: str | None = None
    """Cluster to run on (docs/clusters.md): local starts Ray on this machine, auto or HOST:PORT joins what runs;
    None needs no Ray. num_workers is then the number of simulators in the whole cluster."""
    num_policy_actors: int = 1
    """With --ray_address: copies of the policy, each on a device of its own; a batch is split over them."""
    gpus_per_policy_actor: float | None = None
    """With --ray_address: GPUs of each copy, a part of one is possible; None takes 1 where the cluster has any and
    device is not cpu."""
    simpler_python: Path | None = None
    """Interpreter that has simpler_env, for the suites simpler_env_bridge and simpler_env_google (docs/simpler.md)."""
    step_timeout_s: float = 120.0
    """A simulator that does not answer for this many seconds counts as crashed."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """auto (bfloat16 on GPU, float32 on CPU), float32, bfloat16 or float16."""
    attn_implementation: str = "sdpa"
    """sdpa, eager or flash_attention_2 (needs flash-attn)."""

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.num_rollouts, self.top_p, self.seed)
        check_states(self.init_split, self.first_state, self.num_states, "num_states")
        check_tasks(self.task_ids)
        check_workers(self.num_workers, self.step_timeout_s, self.max_steps)
        check_cluster(self.ray_address, self.num_policy_actors, self.gpus_per_policy_actor)
        if self.init_split == OFFICIAL_SPLIT and not self.allow_official_states:
            raise ConfigError(
                "init_split official: these are the test states, what is trained on them cannot be tested on them; "
                "collect from --init_split rollout, or pass --allow_official_states True if you mean it"
            )


def check_sampling(temperature: float, num_rollouts: int, top_p: float | None, seed: int) -> None:
    """Refuse sampling settings that cannot be honoured."""
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature is {temperature}; it must be finite, and 0 (greedy) or more")
    if num_rollouts < 1:
        raise ConfigError(f"num_rollouts is {num_rollouts}; it must be at least 1")
    if temperature == 0 and num_rollouts > 1:
        raise ConfigError(
            f"num_rollouts is {num_rollouts} at temperature 0: greedy rollouts from one state are copies; "
            "raise --temperature, or take --num_rollouts 1"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p is {top_p}; it must lie in (0, 1]")
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must be 0 or more")


def check_states(split: str, first: int, count: int, field: str) -> None:
    """Refuse what names no states; how many official ones a task has is checked when its episodes are planned."""
    if not split or "/" in split:
        raise ConfigError(f"init_split is {split!r}; it must be a name without '/', such as rollout or validation")
    if first < 0 or count < 1:
        raise ConfigError(f"first_state is {first} and {field} is {count}; they must be at least 0 and 1")


def check_tasks(task_ids: tuple[int, ...]) -> None:
    """Refuse a task that is named twice."""
    if len(set(task_ids)) != len(task_ids):
        raise ConfigError(f"task_ids names a task twice: {' '.join(map(str, task_ids))}")


def check_workers(num_workers: int, step_timeout_s: float, max_steps: int | None) -> None:
    """Refuse limits below one."""
    if num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}; it must be at least 1")
    if step_timeout_s <= 0:
        raise ConfigError(f"step_timeout_s is {step_timeout_s}; it must be above 0")
    if max_steps is not None and max_steps < 1:
        raise ConfigError(f"max_steps is {max_steps}; it must be at least 1, or None for the suite's limit")


def check_cluster(address: str | None, num_policy_actors: int, gpus_per_policy_actor: float | None) -> None:
    """Refuse what names no cluster, and settings of one without it."""
    if address is None:
        if num_policy_actors != 1 or gpus_per_policy_actor is not None:
            raise ConfigError("num_policy_actors and gpus_per_policy_actor need --ray_address, the cluster to run on")
        return
    host, _, port = address.rpartition(":")
    if address not in (LOCAL_CLUSTER, "auto") and ("/" in address or not (host and port.isdecimal())):
        raise ConfigError(
            f"ray_address is {address!r}; wanted local, auto or HOST:PORT (Ray's own port, 6379 by default)"
        )
    if num_policy_actors < 1:
        raise ConfigError(f"num_policy_actors is {num_policy_actors}; it must be at least 1")
    if gpus_per_policy_actor is not None and not 0 <= gpus_per_policy_actor < float("inf"):
        raise ConfigError(f"gpus_per_policy_actor is {gpus_per_policy_actor}; it must be 0 or more")
