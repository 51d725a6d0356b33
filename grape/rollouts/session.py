"""From settings to finished episodes in a run folder; collection and evaluation differ only in what they keep."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from grape.config.collect import CollectConfig
from grape.config.evaluate import EvaluateConfig
from grape.envs.pool import EnvSpec, Pool, WorkerPool
from grape.envs.protocol import InitStateId
from grape.envs.suites import SIMULATORS, Simulator, find_simulator
from grape.errors import ConfigError, RecordError, SimulatorError
from grape.rollouts.cores import cores_left_by
from grape.rollouts.engine import RolloutSettings, run_rollouts
from grape.rollouts.jobs import RolloutJob
from grape.rollouts.policy import Policy, SampledVLA, choose_unnorm_key, note_other_crop
from grape.rollouts.progress import RolloutProgress
from grape.rollouts.store import RunWriter
from grape.rollouts.versions import library_versions
from grape.trajectory import EpisodeInfo, Trajectory

PoolFactory = Callable[..., Pool]
"""Makes the simulators of a session, with the arguments of ``WorkerPool``."""
CLUSTER_DETAILS = ("ray_address", "num_policy_actors", "gpus_per_policy_actor")


def run(
    config: CollectConfig | EvaluateConfig,
    kind: str,
    *,
    details: Sequence[str] = (),
    make_policy: Callable[[list[RolloutJob]], Policy] | None = None,
    num_attempts: int = 1,
    on_episode: Callable[[Trajectory], None] | None = None,
) -> list[EpisodeInfo]:
    """Run what ``config.run_dir`` does not hold yet: trajectories when collecting, outcomes alone when evaluating.

    Args:
        config: What to run, and where to.
        kind: What the run is for; a folder is continued by the same kind alone.
        details: Settings to keep in run.json although they change no result; ``policy`` stands for the policy's name.
        make_policy: Opens what acts in these jobs, once nothing else can be refused; ``None`` opens the checkpoint of
            ``config``.
        num_attempts, on_episode: As in ``run_session``.

    Returns:
        Headers of all episodes of the run.

    Raises:
        GrapeError: As ``plan_jobs``, ``library_versions``, ``open_policy`` and ``run_session`` have it.
        RecordError: The folder holds a run, and ``config`` does not resume it, or another one.
    """
    run_dir = config.run_dir
    assert run_dir is not None, "the caller names the folder"
    if config.ray_address is not None:
        details = (*details, *CLUSTER_DETAILS)
        if config.simpler_python is not None:  # actors run in other folders
            config = dataclasses.replace(config, simpler_python=config.simpler_python.absolute())
    jobs = plan_jobs(config)
    if not config.resume and (run_dir / "run.json").exists():
        raise RecordError(f"{run_dir} already holds a run; continue it with --resume, or choose another folder")
    versions = library_versions(config.task_suite_name, config.simpler_python)  # before a large checkpoint
    with contextlib.ExitStack() as stack:
        policy, make_pool = stack.enter_context(_policy_and_pool(config, versions, jobs, make_policy))
        known = {"policy": policy.name, **vars(config)}
        writer = stack.enter_context(
            RunWriter(
                run_dir,
                settings={"kind": kind, **result_settings(config, policy)},
                details={name: str(known[name]) if isinstance(known[name], Path) else known[name] for name in details},
                versions=versions,
                keep="trajectory" if isinstance(config, CollectConfig) else "outcome",
                resume=config.resume,
            )
        )
        return run_session(
            policy,
            jobs,
            writer,
            seed=config.seed,
            num_workers=config.num_workers,
            step_timeout_s=config.step_timeout_s,
            num_attempts=num_attempts,
            on_episode=on_episode,
            make_pool=make_pool,
        )


@contextlib.contextmanager
def _policy_and_pool(
    config: CollectConfig | EvaluateConfig,
    versions: dict[str, str],
    jobs: list[RolloutJob],
    make_policy: Callable[[list[RolloutJob]], Policy] | None,
) -> Iterator[tuple[Policy, PoolFactory]]:
    """What acts, and what it acts in: of this process, or of the cluster that the settings name."""
    if config.ray_address is None:
        yield open_policy(config) if make_policy is None else make_policy(jobs), WorkerPool
        return
    from grape.rollouts.cluster.connection import connect
    from grape.rollouts.cluster.policies import RayPolicy
    from grape.rollouts.cluster.simulators import RaySimulators

    with connect(config, versions) as cluster, contextlib.ExitStack() as stack:
        if make_policy is not None:
            policy = make_policy(jobs)
        else:
            policy = stack.enter_context(contextlib.closing(RayPolicy(cluster, config)))
        yield policy, functools.partial(RaySimulators, cluster, config.task_suite_name, config.simpler_python)


def plan_jobs(config: CollectConfig | EvaluateConfig) -> list[RolloutJob]:
    """List every episode of a run, grouped by task; no simulator is started.

    Raises:
        ConfigError: The suite, a task, an official state, the render profile or the camera size does not exist.
    """
    suite, num_states = config.task_suite_name, _num_states(config)
    simulator = find_simulator(suite)
    if config.render_profile not in simulator.render_profiles:
        known = ", ".join(simulator.render_profiles)
        raise ConfigError(f"render_profile is {config.render_profile!r}, but {simulator.name} has only: {known}")
    size, sizes = _camera_size(config, simulator), simulator.camera_sizes
    if size not in sizes:
        steps = f" in steps of {sizes.step}" if sizes.step > 1 else ""
        raise ConfigError(f"camera_size is {size}; {simulator.name} has {sizes[0]} to {sizes[-1]} pixels{steps}")
    if config.simpler_python is not None and simulator.interpreter_versions is None:
        raise ConfigError(
            f"simpler_python is {config.simpler_python}, but {suite} runs in this interpreter; it is for the original "
            "SIMPLER's suites alone"
        )
    states = [InitStateId(config.init_split, config.first_state + offset) for offset in range(num_states)]
    jobs = []
    for task_id in config.task_ids or range(len(simulator.task_names(suite))):
        task = simulator.task(suite, task_id)
        task.check_states(config.init_split, config.first_state, num_states)
        if task.changes_instruction and isinstance(config, CollectConfig):
            raise ConfigError(
                f"{suite}/{task_id} ({task.name}) changes its instruction in the course of an episode, and a stored "
                "episode has one; it can be evaluated, not collected: leave it out of --task_ids"
            )
        env = EnvSpec(
            simulator=simulator.name,
            suite=suite,
            task_id=task_id,
            render_profile=config.render_profile,
            camera_size=size,
            max_steps=config.max_steps,
            python=None if config.simpler_python is None else str(config.simpler_python),
        )
        jobs += [
            RolloutJob(
                task=task,
                env=env,
                init_state=state,
                rollout_index=rollout,
                max_steps=config.max_steps or task.max_steps,
                consecutive_successes=_consecutive_successes(config, simulator),
            )
            for state in states
            for rollout in range(config.num_rollouts)
        ]
    return jobs


def _num_states(config: CollectConfig | EvaluateConfig) -> int:
    return config.num_states if isinstance(config, CollectConfig) else config.num_trials_per_task


def _camera_size(config: CollectConfig | EvaluateConfig, simulator: Simulator) -> int:
    return simulator.camera_size if config.camera_size is None else config.camera_size


def _consecutive_successes(config: CollectConfig | EvaluateConfig, simulator: Simulator) -> int | None:
    return (
        simulator.collect_consecutive_successes
        if isinstance(config, CollectConfig)
        else simulator.evaluate_consecutive_successes
    )


def open_policy(config: CollectConfig | EvaluateConfig) -> SampledVLA:
    """Load the checkpoint, with its adapter, and fix the sampling settings.

    Raises:
        CheckpointError: It is missing, damaged, or has no usable action statistics for the suite.
        ConfigError: A setting cannot be honoured.
    """
    from grape.models import load_policy
    from grape.models.statistics import action_range

    print(f"loading {config.pretrained_checkpoint}", file=sys.stderr)
    policy = load_policy(
        config.pretrained_checkpoint,
        adapter=config.adapter,
        device=config.device,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
    )
    policy.use_prompt_style(config.prompt_style)
    unnorm_key = choose_unnorm_key(
        policy.norm_stats,
        config.task_suite_name,
        config.unnorm_key,
        adapter_keys=policy.adapter_keys,
        alternatives=find_simulator(config.task_suite_name).statistics,
    )
    action_range(policy.norm_stats, unnorm_key)  # refuses damaged ones here, before there is a run folder
    note_other_crop(policy.source_config, center_crop=config.center_crop)
    return SampledVLA(
        policy,
        name=policy_name(config),
        unnorm_key=unnorm_key,
        temperature=config.temperature,
        top_p=config.top_p,
        center_crop=config.center_crop,
        image_resize=config.image_resize,
    )


def policy_name(config: CollectConfig | EvaluateConfig) -> str:
    """The checkpoint, with its adapter, as an episode's record names it."""
    return config.pretrained_checkpoint + (f" + {config.adapter}" if config.adapter else "")


def result_settings(config: CollectConfig | EvaluateConfig, policy: Policy) -> dict[str, Any]:
    """Everything that changes the results of a run; the paths of the weights do not, their hash does."""
    simulator = find_simulator(config.task_suite_name)
    names = ("init_split", "first_state", "num_rollouts", "seed", "max_steps", "render_profile")
    return {
        "simulator": simulator.name,
        "suite": config.task_suite_name,
        "task_ids": list(config.task_ids) or "all",
        "num_states": _num_states(config),
        **{name: getattr(config, name) for name in names},
        "camera_size": _camera_size(config, simulator),
        "consecutive_successes": _consecutive_successes(config, simulator),
        "checkpoint_hash": policy.checkpoint_hash,
        **policy.settings,
    }


def run_session(
    policy: Policy,
    jobs: list[RolloutJob],
    writer: RunWriter,
    *,
    seed: int,
    num_workers: int,
    step_timeout_s: float,
    num_attempts: int = 1,
    on_episode: Callable[[Trajectory], None] | None = None,
    make_pool: PoolFactory = WorkerPool,
) -> list[EpisodeInfo]:
    """Run the episodes that the folder does not hold yet.

    Args:
        policy: What acts.
        jobs: All episodes of the run.
        writer: Open run folder; episodes stored there as crashed are run again.
        seed: Root of all sampling.
        num_workers: Simulator processes; no more than there are jobs are started.
        step_timeout_s: When a silent simulator counts as crashed.
        num_attempts: How often an episode whose simulator crashes is tried in this call.
        on_episode: Called with each finished episode before it is stored, so that what it makes is never missing
            from a stored one.
        make_pool: Makes the simulators.

    Returns:
        Headers of all episodes of the run, in the order of ``jobs``.

    Raises:
        SimulatorError: Every episode of the run crashed, or so many in a row that it was given up.
    """

    def sink(trajectory: Trajectory) -> None:
        if on_episode is not None:
            on_episode(trajectory)
        writer.save(trajectory)

    num_missing = len(jobs) - len(_finished(writer, jobs))
    if num_missing:
        num_workers = min(num_workers, num_missing)
        for name in {job.env.simulator for job in jobs}:  # here, so that the simulators do not say it one by one
            if (warn := SIMULATORS[name].warn) is not None:
                warn()
        print(f"{num_missing} of {len(jobs)} episodes to run; starting {num_workers} simulators", file=sys.stderr)
        pool = make_pool(num_workers, step_timeout_s=step_timeout_s, image_fn=policy.image_fn())
        with pool, cores_left_by(num_workers):
            for _ in range(num_attempts):
                _attempt(policy, jobs, writer, pool, seed, sink)
    episodes = [writer.info(job.episode_id) for job in jobs]
    if all(episode.status == "crashed" for episode in episodes):
        raise SimulatorError(
            f"all {len(episodes)} episodes crashed, the last one with: {episodes[-1].error}; they are recorded as "
            "crashed: mend the cause, then continue with --resume"
        )
    return episodes


def _attempt(
    policy: Policy,
    jobs: list[RolloutJob],
    writer: RunWriter,
    pool: Pool,
    seed: int,
    sink: Callable[[Trajectory], None],
) -> None:
    """Run once what has not ended well yet."""
    done = _finished(writer, jobs)
    todo = [job for job in jobs if job.episode_id not in done]
    if not todo:
        return
    longest = max(job.max_steps for job in jobs)
    progress = RolloutProgress(num_episodes=len(jobs), done=list(done.values()), max_steps=longest)
    try:
        run_rollouts(policy, todo, pool, RolloutSettings(seed=seed), sink, progress)
    finally:
        progress.close()


def _finished(writer: RunWriter, jobs: Iterable[RolloutJob]) -> dict[str, EpisodeInfo]:
    stored = (writer.info(job.episode_id) for job in jobs if writer.has(job.episode_id))
    return {info.episode_id: info for info in stored if info.status != "crashed"}
