"""The demo from start to end: plan, stages, result, report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from grape.config.demo import DemoConfig
from grape.demo.pipeline import AFTER, BEFORE, Layout, build_stages
from grape.demo.plan import DemoPlan, load_plan
from grape.demo.report import write_report
from grape.demo.result import comparison_in_words, gather_result, rate_in_words, summary_lines
from grape.demo.revision import NOT_COMMITTED, code_revision, committed_revision, require_committed_code
from grape.demo.stages import RunCommand, Stage, open_run, read_stage, run_stages, total_time_in_words
from grape.envs.suites import find_simulator, suite_task
from grape.errors import ConfigError
from grape.files import write_bytes_atomic

PLAN_FILES = {
    "quick": Path("experiments/demo/quick.json"),
    "full": Path("experiments/demo/plan.json"),
    "simpler": Path("experiments/demo/plan_simpler.json"),
}
CheckCommand = Callable[[str, Sequence[str]], object]
"""Refuses, with ``ConfigError``, a command line that ``grape NAME ARGV…`` would refuse; runs nothing."""
REPORT_FILE, RESULT_FILE, LOG_FILE = "report.html", "result.json", "log.md"


def run_demo(config: DemoConfig, run_command: RunCommand, check_command: CheckCommand) -> dict[str, Any]:
    """Run, or continue, a demo.

    Args:
        config: Which plan, where, with what means.
        run_command: Runs one ``grape`` command; the stages are these commands and nothing else.
        check_command: Says early what is wrong with such a command.

    Returns:
        What is in result.json.

    Raises:
        ConfigError: The plan is wrong, the plan or the code of a proof is uncommitted, or the plan
            differs from that of the folder's run.
        MissingDependencyError: A simulator's assets are not on this machine.
        StageFailedError: A stage's command failed; finished stages are kept.
    """
    plan_path = config.plan or PLAN_FILES[config.profile]
    plan = load_plan(plan_path)
    layout = Layout(run_dir=config.run_dir or Path("runs") / f"demo-{config.profile}", plan=plan)
    plan_commit = _revision(plan, plan_path, config)
    _check_plan(config, plan, plan_path, layout, check_command)
    means = _means(config, plan)
    stages = build_stages(config, plan, layout)
    _introduce(plan, plan_path, layout, stages)
    with open_run(layout.run_dir, {"plan": plan.deciding()}, {"plan_commit": plan_commit}) as started:
        if plan.is_proof and not read_stage(layout.run_dir, stages[0].name):
            log_start(plan_path, plan, started["plan_commit"], insist=config.allow_dirty)
        run_stages(layout.run_dir, stages, run_command, means)
        result = gather_result(plan, layout, stages, started["plan_commit"])
        if plan.is_proof:
            result["look"] = len(read_looks(plan_path, plan))
        _write_outputs(config, layout, plan_path, result)
    _conclude(layout, result)
    return result


def _revision(plan: DemoPlan, plan_path: Path, config: DemoConfig) -> str:
    """The plan's commit. A proof must have one, unless the user insists."""
    if plan.draft and plan.is_proof:
        raise ConfigError(
            f"{plan_path} is a draft: settle its hyper-parameters on validation states, then take its draft entry out "
            "and commit it; until then `make demo` shows the loop on held-out states"
        )
    try:
        return committed_revision(plan_path)
    except ConfigError:
        if plan.is_proof and not config.allow_dirty:
            raise
        return NOT_COMMITTED


def _check_plan(
    config: DemoConfig, plan: DemoPlan, plan_path: Path, layout: Layout, check_command: CheckCommand
) -> None:
    """Find what a later stage would refuse before the first stage has looked at a test state."""
    # How many steps the control takes is known only after TPO; one shows as well whether its flags are right.
    for stage in build_stages(config, plan, layout, count_steps=lambda training_dir: 1):
        for name, *argv in stage.commands():
            try:
                check_command(name, argv)
            except ConfigError as error:
                raise ConfigError(f"{plan_path}: stage {stage.name} (grape {name}): {error}") from error
    states = plan.test_states
    for suite, task_ids in plan.tasks.items():
        for task_id in task_ids:
            try:
                suite_task(suite, task_id).check_states(states.split, states.first, states.num_per_task)
            except ConfigError as error:
                raise ConfigError(f"{plan_path}: tasks: {error}") from error
            if require_assets := find_simulator(suite).require_assets:
                require_assets(suite, task_id)


def _means(config: DemoConfig, plan: DemoPlan) -> dict[str, Any]:
    """Code, device and workers of this attempt: what the plan leaves open and the result has to tell."""
    code = code_revision(policy=plan.policy)
    if plan.is_proof and not config.allow_dirty:
        require_committed_code(code)
    from grape.models.checkpoint import resolve_device  # torch takes seconds to load: wrong plans are told before

    return {**code, "device": str(resolve_device(config.device)), "num_workers": config.num_workers}


def _introduce(plan: DemoPlan, plan_path: Path, layout: Layout, stages: list[Stage]) -> None:
    num_tasks = sum(map(len, plan.tasks.values()))
    print(f"{plan.question}")
    print(
        f"Plan {plan_path}: {num_tasks} tasks, {plan.num_test_states} {plan.test_states.split} states per arm, "
        f"{len(stages)} stages, run folder {layout.run_dir}."
    )
    print("Ctrl-C stops at any moment; the same command continues.", flush=True)


def _write_outputs(config: DemoConfig, layout: Layout, plan_path: Path, result: dict[str, Any]) -> None:
    content = (json.dumps(result, indent=2, default=str) + "\n").encode()
    result_path = layout.run_dir / RESULT_FILE
    is_new = not result_path.exists()
    write_report(layout.run_dir / REPORT_FILE, result, layout)
    write_bytes_atomic(result_path, content)
    if config.result_file is not None:
        write_bytes_atomic(config.result_file, content)
    if layout.plan.is_proof and is_new:
        test = comparison_in_words(result["tests"][f"{BEFORE}_{AFTER}"], layout.plan.alpha)
        arms = f"before {rate_in_words(result['arms'][BEFORE])}, after {rate_in_words(result['arms'][AFTER])}"
        append_log(plan_path, layout.plan, f"finished: {arms}; {test}")


def log_start(plan_path: Path, plan: DemoPlan, plan_commit: str, *, insist: bool = False) -> None:
    """Note that the test states are about to be looked at, and for which time.

    The same plan may be repeated, which is said; another plan needs states that nobody has looked at.

    Raises:
        ConfigError: Another plan has looked at some of these states, and the user does not ``insist``.
    """
    log_path, looks = plan_path.parent / LOG_FILE, read_looks(plan_path, plan)
    others = [line for line in looks if plan.hash()[:12] not in line]
    if others and not insist:
        raise ConfigError(
            f"{log_path}: another plan has looked at some of these test states ({others[-1].strip('- ')}); a second "
            "look needs fresh states, or pass --allow_dirty True and say so"
        )
    if looks:
        print(f"{log_path}: these test states have been looked at before; this is look {len(looks) + 1}.")
    tasks = "; ".join(f"{suite} {' '.join(map(str, ids))}" for suite, ids in plan.tasks.items())
    append_log(
        plan_path,
        plan,
        f"started, look {len(looks) + 1}, at [{tasks}] {plan.test_states}, plan at commit {plan_commit}",
    )


def read_looks(plan_path: Path, plan: DemoPlan) -> list[str]:
    """Lines of the log by which a proof began to look at some of the plan's test states."""
    log_path = plan_path.parent / LOG_FILE
    lines = log_path.read_text(encoding="utf-8").splitlines() if log_path.is_file() else []
    return [line for line in lines if "started" in line and _looked_at(line) & plan.test_state_names()]


def _looked_at(line: str) -> set[tuple[str, str, int, int]]:
    """Test states (split, suite, task, index) that a line of the log names."""
    found = re.search(r"at \[(.+)\] (\w+)/(\d+)-(\d+)", line)
    if found is None:
        return set()
    suites = [part.split() for part in found[1].split(";")]
    indices = range(int(found[3]), int(found[4]) + 1)
    return {(found[2], suite, int(task), index) for suite, *tasks in suites for task in tasks for index in indices}


def append_log(plan_path: Path, plan: DemoPlan, what: str) -> None:
    """Add a line to the log of looks, beside the plan."""
    path = plan_path.parent / LOG_FILE
    time = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    with open(path, "a", encoding="utf-8") as log:
        log.write(f"- {time}, plan {plan.name} ({plan.hash()[:12]}): {what}\n")


def _conclude(layout: Layout, result: dict[str, Any]) -> None:
    time = total_time_in_words(result["wall_time_s"], result["killed_attempts"])
    print(f"\nReport: {layout.run_dir / REPORT_FILE} (all stages together took {time})")
    for line in summary_lines(result):
        print(line, flush=True)
