"""Settings of ``grape eval`` and ``grape compare``; the published fields keep their spelling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from grape.config.collect import (
    OFFICIAL_SPLIT,
    check_cluster,
    check_sampling,
    check_states,
    check_tasks,
    check_workers,
)
from grape.config.inputs import ImageResize, PromptStyle
from grape.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a policy's success on named initial states, one episode per state."""

    model_family: str = "openvla"
    """Only openvla is known; the field is kept for published commands."""
    pretrained_checkpoint: str
    """Folder in OpenVLA's published layout, or hub id."""
    load_in_8bit: bool = False
    """Published field; True is refused: quantised weights are another policy than the one that was trained."""
    load_in_4bit: bool = False
    """Published field; True is refused, as above. --dtype bfloat16 halves the memory of float32."""
    center_crop: bool = True
    """Whether the policy sees the centre 90 % of the picture's area, as policies trained with augmentation must."""
    prompt_style: PromptStyle = "template"
    """Words around the instruction: OpenVLA's template, with which policies are trained, or bare, as GRAPE's SIMPLER
    rollouts had it. Take the same in collection, training and evaluation."""
    image_resize: ImageResize = "lanczos"
    """How pictures come to the policy's size: JPEG and lanczos, as OpenVLA in LIBERO, or area, as OpenVLA in SIMPLER.
    Take the same in collection, training and evaluation."""
    adapter: str | None = None
    """Folder of a LoRA adapter to put on top; None evaluates the checkpoint alone."""
    unnorm_key: str | None = None
    """Entry of the checkpoint's action statistics; None takes the suite's, with or without _no_noops."""

    task_suite_name: str = "libero_spatial"
    """LIBERO suite (libero_spatial, libero_object, libero_goal, libero_10, libero_90 or a LIBERO-PRO variant), or
    simpler_bridge; simpler_env_bridge and simpler_env_google are the original SIMPLER (--simpler_python)."""
    num_steps_wait: int = 10
    """Settling steps before the policy acts; OpenVLA's protocol has 10, and only 10 is accepted."""
    num_trials_per_task: int = 50
    """Initial states per task, from first_state on. Each is distinct; more than exist are refused, never repeated.
    LIBERO's tasks have 50, those of simpler_bridge 24 (the eggplant 64)."""
    task_ids: tuple[int, ...] = ()
    """Tasks of the suite, counted from 0; empty takes all."""
    init_split: str = OFFICIAL_SPLIT
    """official: the benchmark's test states. Any other name samples states, seeded by that name; tune on those."""
    first_state: int = 0
    """Index of the first initial state."""
    temperature: float = 0.0
    """0 decodes greedily; above 0 samples, dimensionless."""
    top_p: float | None = None
    """Nucleus sampling: probability mass to sample from, in (0, 1]; None samples from all action tokens."""
    num_rollouts: int = 1
    """Sampled episodes per state, averaged within the state first; above 1 needs a temperature above 0."""
    max_steps: int | None = None
    """Actions after which an episode has failed; None takes the task's limit (220 for libero_spatial)."""
    render_profile: Literal["faithful", "fast"] = "faithful"
    """fast (LIBERO alone) drops multisampling and reflections: about 2.5 times as many steps per second, pictures
    differ slightly."""
    camera_size: int | None = None
    """Height of the rendered picture in pixels; None takes the benchmark's own: 256 for LIBERO, as OpenVLA's protocol,
    480 for SIMPLER (its pictures are 4:3)."""

    run_id_note: str | None = None
    """Added to the name of the run folder."""
    local_log_dir: Path = Path("./experiments/logs")
    """The run folder is made in here, named EVAL-<suite>-openvla-<time>."""
    run_dir: Path | None = None
    """Folder of the run instead of a new one in local_log_dir; --resume needs it."""
    resume: bool = False
    """Continue the evaluation in run_dir: finished episodes are kept, crashed ones are run again."""
    videos: Literal["none", "failures", "successes", "all"] = "none"
    """Of which episodes to write what the policy saw, as run_dir/videos/*.mp4."""
    use_wandb: bool = False
    """Whether to log the results to Weights & Biases, too (offline where no account is set up)."""
    wandb_project: str = "grape-vla"
    """Weights & Biases project."""
    wandb_entity: str | None = None
    """Weights & Biases entity; None takes the account's default."""
    seed: int = 7
    """Root of all sampling; without effect on greedy decoding. 7 is the published default."""

    num_workers: int = 2
    """Simulator processes. Random numbers do not depend on it; floating-point sums may differ in their last bits with
    batch size and torch's threads, so once in a while a token does, too (docs/parity.md)."""
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
        if self.model_family != "openvla":
            raise ConfigError(f"model_family is {self.model_family!r}; only 'openvla' is known")
        if self.load_in_8bit or self.load_in_4bit:
            raise ConfigError(
                "load_in_8bit and load_in_4bit are not supported: the quantised policy is another policy than the one "
                "that rollouts and training use, and its log-probabilities differ; take --dtype bfloat16 to save memory"
            )
        if self.num_steps_wait != 10:
            raise ConfigError(
                f"num_steps_wait is {self.num_steps_wait}; initial states are defined and hashed after 10 settling "
                "steps (OpenVLA's protocol), so only 10 is accepted"
            )
        check_sampling(self.temperature, self.num_rollouts, self.top_p, self.seed)
        check_states(self.init_split, self.first_state, self.num_trials_per_task, "num_trials_per_task")
        check_tasks(self.task_ids)
        check_workers(self.num_workers, self.step_timeout_s, self.max_steps)
        check_cluster(self.ray_address, self.num_policy_actors, self.gpus_per_policy_actor)
        if self.resume and self.run_dir is None:
            raise ConfigError("--resume needs --run_dir, the folder of the evaluation to continue")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Paired comparison of two evaluations on the same initial states."""

    before: Annotated[Path, tyro.conf.Positional]
    """Result (results.json, or its run folder) of the first policy, e.g. the base."""
    after: Annotated[Path, tyro.conf.Positional]
    """Result of the second policy, e.g. the base with its adapter."""
    out: Path | None = None
    """JSON file to write the comparison to; None only prints it."""
