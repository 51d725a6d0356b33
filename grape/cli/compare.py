"""``grape compare``: paired comparison of two evaluations on the same initial states."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from grape.cli.arguments import parse_config
from grape.cli.evaluate import RESULT_FILE, RESULT_FORMAT_VERSION
from grape.config.evaluate import CompareConfig
from grape.envs.suites import SIMULATORS
from grape.errors import ConfigError, RecordError
from grape.evaluation import Comparison, PairedDifference, StateOutcome, compare_states, states_from_json
from grape.files import write_json
from grape.rollouts.store import SETTINGS_BEFORE

SAME_SETTINGS = (
    "simulator", "suite", "init_split", "num_rollouts", "max_steps", "render_profile", "camera_size",
    "temperature", "top_p", "restrict_to_actions", "dtype", "consecutive_successes",
)  # fmt: skip
"""Settings in which the two must agree; number and choice of states are compared state by state."""
SAME_VERSIONS = tuple(library for simulator in SIMULATORS.values() for library in simulator.libraries)
SAME_SIMULATOR_SETTINGS = ("rendering_device", "variation")
"""What a simulator says of itself and pictures depend on; one that does not say it agrees with itself."""
PER_TASK = ("assets", "max_steps")
"""Of a simulator's settings, what belongs to one task: compared elsewhere."""
RESULT_PARTS = {"tasks": list, "settings": dict, "versions": dict, "simulator_settings": dict, "checkpoint_hash": str}
OWN_SETTINGS = ("center_crop", "unnorm_key", "prompt_style", "image_resize")
"""Belong to a policy, so they may differ; a difference is mentioned."""


def main(argv: list[str] | None = None) -> int:
    config = parse_config(CompareConfig, "compare", argv)
    before, after = read_result(config.before), read_result(config.after)
    comparison = compare_results(before, after)
    print(describe(comparison, before, after))
    if config.out is not None:
        content = {
            "before": {"path": str(config.before), "checkpoint_hash": before["checkpoint_hash"]},
            "after": {"path": str(config.after), "checkpoint_hash": after["checkpoint_hash"]},
            **dataclasses.asdict(comparison),
        }
        write_json(config.out, content)
    return 0


def read_result(path: Path) -> dict[str, Any]:
    """Read an evaluation's result, given the file or its folder.

    Raises:
        RecordError: There is none, or it is of another kind or format, or damaged.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    try:
        result = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{file} cannot be read ({error}); name the {RESULT_FILE} of a finished `grape eval`"
        ) from error
    version = result.get("format_version") if isinstance(result, dict) else None
    if version != RESULT_FORMAT_VERSION or not all(isinstance(result.get(n), kind) for n, kind in RESULT_PARTS.items()):
        raise RecordError(
            f"{file} is no evaluation result of format {RESULT_FORMAT_VERSION} (got {version!r}); "
            "name the results.json of `grape eval`"
        )
    try:
        all_states(result)
    except (RecordError, KeyError, TypeError) as error:
        raise RecordError(f"{file} is damaged ({error}); `grape eval` with --resume writes it again") from error
    return result


def compare_results(before: dict[str, Any], after: dict[str, Any]) -> Comparison:
    """Pair two results state by state.

    Raises:
        ConfigError: They differ in settings, simulator versions or initial states; both sides are named.
    """
    sampled = before["settings"].get("temperature", 0) > 0
    groups = {
        "settings": SAME_SETTINGS + (("seed",) if sampled else ()),
        "versions": SAME_VERSIONS,
        "simulator_settings": SAME_SIMULATOR_SETTINGS,
    }
    for group, names in groups.items():
        for name in names:
            _require_equal(name, _setting(before[group], name), _setting(after[group], name))
    tasks = [{task["task_id"]: task for task in result["tasks"]} for result in (before, after)]
    for task_id in tasks[0].keys() & tasks[1].keys():
        for name in ("instruction", "assets"):
            first, second = (of_task[task_id].get(name) for of_task in tasks)
            _require_equal(f"{name} of task {task_id}", first, second)
    return compare_states(all_states(before), all_states(after))


def _setting(group: dict[str, Any], name: str) -> Any:
    return group.get(name, SETTINGS_BEFORE.get(name))


def _circumstances(result: dict[str, Any]) -> dict[str, Any]:
    """Everything that the two may differ in, but a reader wants to know: libraries, and what the simulator says."""
    said = {name: value for name, value in result["simulator_settings"].items() if name not in PER_TASK}
    versions = said.pop("versions", {})
    return {
        **{f"version of {name}": value for name, value in result["versions"].items()},
        **{f"the simulator's {name}": value for name, value in said.items()},
        **{f"the simulator's version of {name}": value for name, value in versions.items()},
    }


def _require_equal(name: str, first: object, second: object) -> None:
    if first != second:
        raise ConfigError(
            f"the two evaluations differ in {name}: {first!r} before, {second!r} after; "
            "repeat one of them with the other's setting"
        )


def all_states(result: dict[str, Any]) -> list[StateOutcome]:
    """The states of all tasks."""
    return [state for task in result["tasks"] for state in states_from_json(task["task_id"], task["states"])]


def describe(comparison: Comparison, before: dict[str, Any], after: dict[str, Any]) -> str:
    """The comparison in words."""
    lines = [f"before: checkpoint {before['checkpoint_hash'][:12]}, after: {after['checkpoint_hash'][:12]}"]
    if before["checkpoint_hash"] == after["checkpoint_hash"]:
        lines.append("note: both are the same checkpoint")
    for name in OWN_SETTINGS:
        first, second = _setting(before["settings"], name), _setting(after["settings"], name)
        if first != second:
            lines.append(f"note: {name} differs between the policies: {first!r} before, {second!r} after")
    first, second = _circumstances(before), _circumstances(after)
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            lines.append(f"note: {name} differs: {first.get(name)!r} before, {second.get(name)!r} after")
    if comparison.observed is None:
        lines.append("no pair is left: in each, the simulator crashed in one arm at least")
    else:
        lines.append(describe_difference(comparison.observed))
    if comparison.dropped:
        names = ", ".join(f"task {task_id} {state}" for task_id, state in comparison.dropped)
        lines.append(f"dropped, as the simulator crashed: {names}")
        lines.append(f"worst case, these decided against the second: {describe_difference(comparison.worst_case)}")
    return "\n".join(lines)


def describe_difference(result: PairedDifference) -> str:
    """One line with everything that the claim rests on."""
    return (
        f"success {100 * result.rate_before:.1f} % -> {100 * result.rate_after:.1f} % on {result.num_states} states: "
        f"difference {100 * result.difference:+.1f} points, 95 % interval "
        f"[{100 * result.low:+.1f}, {100 * result.high:+.1f}]; {result.num_better} states better, "
        f"{result.num_worse} worse, McNemar's exact two-sided p = {result.p_value:.2g}"
    )
