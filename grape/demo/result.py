"""What a demo run measured, as JSON values and in words."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import grape
from grape.demo.pipeline import AFTER, BEFORE, SUPERVISED, Layout, num_gradient_steps
from grape.demo.plan import DemoPlan
from grape.demo.stages import Stage, distinct_means, read_stage
from grape.errors import RecordError
from grape.evaluation import (
    PairedDifference,
    StateOutcome,
    SuccessRate,
    compare_suites,
    name_state,
    states_from_episodes,
    success_rate,
)
from grape.optional import installed_versions
from grape.rollouts.store import RolloutStore
from grape.trainer.metrics import read_metrics
from grape.trajectory import EpisodeInfo

RESULT_FORMAT = 1
LIBRARIES = ("torch", "transformers", "peft", "numpy", "tensorflow-cpu")
"""Distributions whose version can change a result, beside the simulators' own."""
StatesBySuite = dict[str, list[StateOutcome]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One policy's evaluation."""

    infos: dict[str, list[EpisodeInfo]]
    """Suite -> headers of its episodes."""
    states: StatesBySuite

    @property
    def rate(self) -> SuccessRate:
        return success_rate(state for states in self.states.values() for state in states)

    @property
    def checkpoint_hash(self) -> str:
        return ", ".join(sorted({info.checkpoint_hash for infos in self.infos.values() for info in infos}))


def load_arm(layout: Layout, name: str) -> Arm:
    """Read an arm's outcomes.

    Raises:
        RecordError: An evaluation is missing or has fewer states than the plan.
    """
    infos = {suite: list(RolloutStore(layout.evaluation(name, suite)).infos()) for suite in layout.plan.tasks}
    states = {suite: states_from_episodes(episodes) for suite, episodes in infos.items()}
    got = sum(map(len, states.values()))
    if got != layout.plan.num_test_states:
        raise RecordError(
            f"arm {name} has {got} states, the plan wants {layout.plan.num_test_states}; "
            f"remove {layout.run_dir / 'stages' / f'evaluate-{name}.json'} and run again"
        )
    return Arm(infos=infos, states=states)


def compare_arms(before: StatesBySuite, after: StatesBySuite) -> dict[str, Any]:
    """Paired comparison over all suites: observed pairs, names of dropped ones, and the worst case with them."""
    comparison = compare_suites(before, after)
    return {**dataclasses.asdict(comparison), "dropped": [name_state(key) for key in comparison.dropped]}


def gather_result(plan: DemoPlan, layout: Layout, stages: Sequence[Stage], plan_commit: str) -> dict[str, Any]:
    """Everything that the run measured, as it goes into result.json."""
    arms = {name: load_arm(layout, name) for name in layout.policies()}
    records = {stage.name: read_stage(layout.run_dir, stage.name) for stage in stages}
    tests = {f"{BEFORE}_{AFTER}": compare_arms(arms[BEFORE].states, arms[AFTER].states)}
    if SUPERVISED in arms:
        tests[f"{BEFORE}_{SUPERVISED}"] = compare_arms(arms[BEFORE].states, arms[SUPERVISED].states)
        tests[f"{SUPERVISED}_{AFTER}"] = compare_arms(arms[SUPERVISED].states, arms[AFTER].states)
    return {
        "format": RESULT_FORMAT,
        "plan": plan.to_json(),
        "plan_hash": plan.hash(),
        "plan_commit": plan_commit,
        "ran_with": distinct_means(records),
        "arms": {
            name: {**dataclasses.asdict(arm.rate), "policy": dataclasses.asdict(layout.policies()[name])}
            for name, arm in arms.items()
        },
        "tests": tests,
        "tasks": _task_rows(arms, _measured_states(layout)),
        "iterations": [_iteration(layout, iteration) for iteration in range(plan.iterations)],
        "settings": _settings(layout, list(arms)),
        "checkpoint_hashes": {name: arm.checkpoint_hash for name, arm in arms.items()},
        "versions": _versions(layout),
        "wall_time_s": {name: record["duration_s"] for name, record in records.items()},
        "killed_attempts": {name: record.get("killed_attempts", 0) for name, record in records.items()},
        "commands": {name: record["commands"] for name, record in records.items()},
    }


def _iteration(layout: Layout, iteration: int) -> dict[str, Any]:
    """Counts of one round: rollouts by outcome, pairs, what was left over and why, and the training's ends."""
    stores = [RolloutStore(layout.rollouts(iteration, suite)) for suite in layout.plan.tasks]
    pairing = json.loads((layout.pairs(iteration) / "pairing.json").read_text())
    rows = read_metrics(layout.training(iteration))
    return {
        "rollouts": dict(Counter(info.status for store in stores for info in store.infos())),
        "num_pairs": len(pairing["pairs"]),
        "left_over": dict(Counter(item["reason"] for item in pairing["leftovers"])),
        "num_gradient_steps": num_gradient_steps(layout.training(iteration)),
        "first_step": rows[0],
        "last_step": rows[-1],
    }


def _settings(layout: Layout, arms: Sequence[str]) -> dict[str, Any]:
    """Every stage's settings as the stage itself recorded them, defaults included."""
    suites = list(layout.plan.tasks)
    settings: dict[str, Any] = {
        f"evaluate-{arm}": {suite: RolloutStore(layout.evaluation(arm, suite)).run["settings"] for suite in suites}
        for arm in arms
    }
    for iteration in range(layout.plan.iterations):
        pairing = json.loads((layout.pairs(iteration) / "pairing.json").read_text())
        settings[f"iteration{iteration + 1}"] = {
            "collect": {suite: RolloutStore(layout.rollouts(iteration, suite)).run["settings"] for suite in suites},
            "score": json.loads(layout.scores(iteration, suites[0]).read_text())["settings"],
            "pair": pairing["settings"],
            "train": json.loads((layout.training(iteration) / "run.json").read_text())["config"],
        }
    if layout.plan.supervised_arm:
        settings["supervised"] = json.loads((layout.supervised() / "run.json").read_text())["config"]
    return settings


def _measured_states(layout: Layout) -> dict[tuple[str, int], dict[str, Any]]:
    """Suite and task -> what ``grape states`` measured."""
    files = {suite: json.loads(layout.distances(suite).read_text()) for suite in layout.plan.tasks}
    return {(suite, task["task_id"]): task for suite, file in files.items() for task in file["tasks"]}


def _task_rows(arms: Mapping[str, Arm], measured: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per task: initial-state ids, and beside them each arm's outcomes (``null``: the simulator crashed)."""
    rows = []
    for suite, states in arms[BEFORE].states.items():
        names = {info.task_id: info for info in arms[BEFORE].infos[suite]}
        for task_id in sorted({state.task_id for state in states}):
            row: dict[str, Any] = {
                "suite": suite,
                "task_id": task_id,
                "task_name": names[task_id].task_name,
                "instruction": names[task_id].instruction,
                "init_states": [state.init_state_id for state in states if state.task_id == task_id],
            }
            distance_m = measured[suite, task_id]["distance_m"]
            row["nearest_used_state_m"] = [distance_m[state] for state in row["init_states"]]
            row["spread_m"] = measured[suite, task_id]["spread_m"]
            for name, arm in arms.items():
                row[name] = [_outcome(state) for state in arm.states[suite] if state.task_id == task_id]
            rows.append(row)
    return rows


def _outcome(state: StateOutcome) -> bool | float | None:
    """The outcome of a state: that of its only episode, or the mean over several."""
    return state.outcomes[0] if len(state.outcomes) == 1 else state.rate


def _versions(layout: Layout) -> dict[str, str]:
    versions = {"grape-vla": grape.__version__, "python": platform.python_version(), "platform": platform.platform()}
    versions["processors"] = str(os.cpu_count())
    versions |= dict.fromkeys(LIBRARIES, "not installed") | installed_versions(LIBRARIES)
    for suite in layout.plan.tasks:
        versions |= RolloutStore(layout.evaluation(BEFORE, suite)).run.get("versions", {})
    return versions


def rate_in_words(rate: Mapping[str, Any]) -> str:
    """``12/20 (60 %, 95 % interval 39 to 78 %)``."""
    if not rate["trials"]:
        return "no episode ended without a crash"
    successes = f"{rate['successes']:g}/{rate['trials']}"
    low, middle, high = (round(100 * rate[name]) for name in ("low", "rate", "high"))
    return f"{successes} ({middle} %, 95 % interval {low} to {high} %)"


def comparison_in_words(test: Mapping[str, Any], alpha: float) -> str:
    """A paired comparison in one sentence, no better than it is."""
    observed = test["observed"]
    if observed is None:
        return "every pair was lost to crashes of the simulator: nothing can be said"
    difference = PairedDifference(**observed)
    words = (
        f"{verdict(difference, alpha)}: {difference.difference * 100:+.1f} points "
        f"(95 % interval {difference.low * 100:+.1f} to {difference.high * 100:+.1f}), "
        f"{difference.num_better} states better and {difference.num_worse} worse, "
        f"McNemar's exact two-sided p = {format_p(difference.p_value)}"
    )
    if test["dropped"]:
        worst = PairedDifference(**test["worst_case"])
        words += (
            f"; {len(test['dropped'])} pairs were dropped after crashes, in the worst case it is "
            f"{worst.difference * 100:+.1f} points, p = {format_p(worst.p_value)}"
        )
    return words


def verdict(difference: PairedDifference, alpha: float) -> str:
    """What the test allows to be said."""
    if difference.p_value >= alpha:
        return "no significant change"
    return "significant improvement" if difference.difference > 0 else "significant loss"


def format_p(p_value: float) -> str:
    """Two digits that mean something."""
    return f"{p_value:.2f}" if p_value >= 0.1 else f"{p_value:.2g}"


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """The result for the terminal and for the head of the report."""
    plan, arms, tests = result["plan"], result["arms"], result["tests"]
    lines = [f"Success before: {rate_in_words(arms[BEFORE])}"]
    lines.append(f"Success after preference optimization: {rate_in_words(arms[AFTER])}")
    if SUPERVISED in arms:
        lines.append(f"Success after imitating the chosen trajectories alone: {rate_in_words(arms[SUPERVISED])}")
    lines.append(f"Before against after: {comparison_in_words(tests[f'{BEFORE}_{AFTER}'], plan['alpha'])}.")
    if SUPERVISED in arms:
        lines.append(
            f"Before against supervised: {comparison_in_words(tests[f'{BEFORE}_{SUPERVISED}'], plan['alpha'])}."
        )
        lines.append(
            f"Supervised against preference: {comparison_in_words(tests[f'{SUPERVISED}_{AFTER}'], plan['alpha'])}."
        )
    if result.get("look", 1) > 1:
        lines.append(f"These test states have been looked at before: this is look {result['look']}, not a first one.")
    num_states = plan["test_states"]["num_per_task"] * sum(map(len, plan["tasks"].values()))
    lines.append(
        f"With {num_states} states, at least {fewest_changes(plan['alpha'])} must change, all in one direction, "
        f"before p can fall below {plan['alpha']:g}. This is about this adapter, this base and these tasks, no more."
    )
    return lines


def fewest_changes(alpha: float) -> int:
    """Smallest number of states that can make McNemar's exact two-sided test significant: 2·2⁻ⁿ < α."""
    count = 1
    while 2.0 ** (1 - count) >= alpha:
        count += 1
    return count


def first_changed_state(result: Mapping[str, Any]) -> tuple[str, int, str] | None:
    """Suite, task and state of which to show videos: preferably lost before and won after."""
    wanted = [(False, True), (True, False), (True, True), (False, False)]
    candidates: dict[tuple[bool, bool], tuple[str, int, str]] = {}
    for row in result["tasks"]:
        for state, before, after in zip(row["init_states"], row[BEFORE], row[AFTER], strict=True):
            if before is not None and after is not None:
                candidates.setdefault((bool(before), bool(after)), (row["suite"], row["task_id"], state))
    return next((candidates[outcome] for outcome in wanted if outcome in candidates), None)
