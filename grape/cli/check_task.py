"""One task's stored episodes under constraints: how they rank, how far they come, what each expression does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from grape.cli.check_findings import add_findings
from grape.cli.score import ConstraintSource, task_of
from grape.config.score import GuidedCostConfig
from grape.constraints import COSTS, StageTrace, TaskConstraints, evaluate_stages
from grape.constraints.diagnosis import ExpressionKey, Observation, evaluation_errors, in_stated_order, observe
from grape.constraints.stages import CONDITIONS
from grape.errors import ConstraintError
from grape.rewards import external_reward, stage_costs
from grape.rewards.guided_cost import spread
from grape.rewards.quality import StateResamples, clustered_auc, clustered_tau, resample_states
from grape.trajectory import EpisodeInfo, load_trajectory

Paths = dict[Path, EpisodeInfo]
"""Finished episodes of one task, with their headers."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One episode under the constraints."""

    info: EpisodeInfo
    trace: StageTrace
    observation: Observation
    r_ext: float
    r_ext_prefix: float
    """Of the first k steps alone."""
    r_ext_blind: float
    """With no goal ever reported as reached: without what the simulator's verdict gives away."""
    furthest: int
    """Stages that the reference constraints count as completed; -1 where the task has none."""


def check_task(
    paths: Paths,
    constraints: TaskConstraints,
    settings: GuidedCostConfig,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that stored episodes of one task say about constraints.

    Returns:
        Plain data: ``reasons`` (why it cannot be used), ``warnings``, ``notes``, counts, ``ranking``, ``stages``,
        ``costs``, ``conditions``.
    """
    infos = list(paths.values())
    lengths = [info.num_steps for info in infos if info.status == "success"]
    prefix_steps = min(lengths, default=0)
    reference = _reference(infos[0])
    tried: list[Tried] = []
    errors: dict[ExpressionKey, list[str]] = {}
    for path, info in tqdm(paths.items(), desc=task_of(infos[0]), unit="episode", disable=None):
        facts = load_trajectory(path, images=False).facts
        failed = evaluation_errors(constraints, facts, info.keypoint_names)
        for key, message in failed.items():
            errors.setdefault(key, []).append(f"{message} [{info.episode_id}]")
        if not failed:
            tried.append(_try(info, facts, constraints, reference, settings, prefix_steps))
    report = _describe(infos, constraints, reference) | {
        "prefix_steps": prefix_steps,
        "errors": [
            {"stage": constraints.stages[s].name, "expression": name, "message": found[0], "num_episodes": len(found)}
            for (s, name), found in errors.items()
        ],
    }
    if tried:
        resamples = resample_states([_state(one.info) for one in tried], num_resamples=num_resamples, seed=seed)
        report["ranking"] = _ranking(tried, resamples)
        report["stages"] = _stages(constraints, tried)
        report["share_in_order"] = _share_in_order(constraints, tried)
        report["costs"] = _costs(constraints, tried, settings, num_resamples=num_resamples, seed=seed)
        report["conditions"] = _conditions(constraints, tried)
    return add_findings(report)


def _describe(
    infos: Sequence[EpisodeInfo], constraints: TaskConstraints, reference: TaskConstraints | None
) -> dict[str, Any]:
    num_successes = sum(info.status == "success" for info in infos)
    return {
        "task": task_of(infos[0]),
        "instruction": infos[0].instruction,
        "constraints": constraints.source,
        "constraints_instruction": constraints.instruction,
        "is_reference": constraints == reference,
        "reads_goal": _reads_goal(constraints),
        "num_episodes": len(infos),
        "num_successes": num_successes,
        "num_failures": len(infos) - num_successes,
        "num_initial_states": len({_state(info) for info in infos}),
    }


def _try(
    info: EpisodeInfo,
    facts: Mapping[str, np.ndarray],
    constraints: TaskConstraints,
    reference: TaskConstraints | None,
    settings: GuidedCostConfig,
    prefix_steps: int,
) -> Tried:
    names = info.keypoint_names
    trace = evaluate_stages(constraints, facts, names)
    prefix = {name: values[: prefix_steps + 1] for name, values in facts.items()}
    blind = {**facts, "goal_satisfied": np.zeros_like(facts["goal_satisfied"])} if "goal_satisfied" in facts else facts
    return Tried(
        info=info,
        trace=trace,
        observation=observe(constraints, trace, facts, names),
        r_ext=_r_ext(constraints, trace, settings),
        r_ext_prefix=_r_ext(constraints, evaluate_stages(constraints, prefix, names), settings),
        r_ext_blind=_r_ext(constraints, evaluate_stages(constraints, blind, names), settings),
        furthest=-1 if reference is None else int(evaluate_stages(reference, facts, names).completed.sum()),
    )


def _r_ext(constraints: TaskConstraints, trace: StageTrace, settings: GuidedCostConfig) -> float:
    costs = stage_costs(trace.costs, settings, [stage.thresholds for stage in constraints.stages])
    return external_reward(costs, trace.reached, settings)


def _reference(info: EpisodeInfo) -> TaskConstraints | None:
    try:
        return ConstraintSource(None).of(info)
    except ConstraintError:  # neither shipped, nor a goal to derive them from
        return None


def _reads_goal(constraints: TaskConstraints) -> bool:
    sources = (one.source for stage in constraints.stages for one in stage.expressions())
    return any(re.search(r"\bgoal\s*\(", source) for source in sources)


def _state(info: EpisodeInfo) -> tuple[str, str]:
    return info.init_state_id, info.init_state_hash


def _successes(tried: Sequence[Tried]) -> np.ndarray:
    return np.array([one.info.status == "success" for one in tried])


def _ranking(tried: Sequence[Tried], resamples: StateResamples) -> dict[str, dict[str, float | None]]:
    success = _successes(tried)
    r_ext, prefix, blind, furthest = (
        np.array([getattr(one, name) for one in tried], np.float64)
        for name in ("r_ext", "r_ext_prefix", "r_ext_blind", "furthest")
    )
    length = np.array([one.info.num_steps for one in tried], np.float64)
    auc, shortness = (clustered_auc(values, success, resamples) for values in (r_ext, -length))
    found = {
        "auc": auc,
        "auc_prefix": clustered_auc(prefix, success, resamples),
        "auc_blind": clustered_auc(blind, success, resamples),
        "auc_of_shortness": shortness,
        "auc_minus_shortness": auc.minus(shortness),
        "tau": clustered_tau(r_ext, furthest, resamples, ~success),
        "tau_prefix": clustered_tau(prefix, furthest, resamples, ~success),
    }
    return {name: one.as_dict() for name, one in found.items()}


def _stages(constraints: TaskConstraints, tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """How far successes and failures come, stage by stage."""
    success = _successes(tried)
    first_done = np.stack([one.observation.first_done for one in tried])
    completed = np.stack([one.trace.completed for one in tried])
    last = Counter((bool(won), int(one.trace.stage[-1])) for won, one in zip(success, tried, strict=True))
    return [
        {
            "name": stage.name,
            "done_when": stage.done_when,
            "num_successes_completed": int(completed[success, s].sum()),
            "num_failures_completed": int(completed[~success, s].sum()),
            "num_successes_own": int((first_done[success, s] >= 0).sum()),
            "num_failures_own": int((first_done[~success, s] >= 0).sum()),
            "num_at_start": int((first_done[:, s] == 0).sum()),
            "median_step": _median(first_done[success & (first_done[:, s] >= 0), s]),
            "num_successes_end_here": last[True, s],
            "num_failures_end_here": last[False, s],
        }
        for s, stage in enumerate(constraints.stages)
    ]


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None


def _share_in_order(constraints: TaskConstraints, tried: Sequence[Tried]) -> float | None:
    ordered = [
        in_stated_order(constraints, one.observation.first_done) for one in tried if one.info.status == "success"
    ]
    return float(np.mean(ordered)) if ordered else None


def _costs(
    constraints: TaskConstraints, tried: Sequence[Tried], settings: GuidedCostConfig, *, num_resamples: int, seed: int
) -> list[dict[str, Any]]:
    """What each cost did, over the episodes in which its stage was the current one."""
    rows = []
    for s, stage in enumerate(constraints.stages):
        for name in COSTS:
            expression = stage.cost(name)
            if expression is None:
                continue
            tau = stage.thresholds.get(name, float(spread(settings.taus[name], len(constraints.stages))[s]))
            own = [one for one in tried if (s, name) in one.observation.cost_range]
            ranges = np.array([one.observation.cost_range[s, name] for one in own]).reshape(-1, 2)
            charged = np.maximum(0, np.array([one.trace.costs[name][s] for one in own]) - tau)
            success = _successes(own).astype(bool)
            row: dict[str, Any] = {
                "stage": stage.name,
                "cost": name,
                "expression": expression.source,
                "threshold": tau,
                "num_episodes": len(own),
                "num_successes": int(success.sum()),
                "num_fired": int((ranges[:, 1] > 0).sum()),
                "num_over_threshold": int((charged > 0).sum()),
                "num_successes_never_met": int((ranges[success, 0] > 0).sum()),
                "smallest": None,
                "largest": None,
                "auc": {"value": None, "low": None, "high": None},
            }
            if own:
                row |= {"smallest": float(ranges[:, 0].min()), "largest": float(ranges[:, 1].max())}
                resamples = resample_states([_state(one.info) for one in own], num_resamples=num_resamples, seed=seed)
                row["auc"] = clustered_auc(-charged, success, resamples).as_dict()
            rows.append(row)
    return rows


def _conditions(constraints: TaskConstraints, tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """How often each condition held at all, and always."""
    rows = []
    for s, stage in enumerate(constraints.stages):
        for name in CONDITIONS:
            seen = [one.observation.holds[s, name] for one in tried if (s, name) in one.observation.holds]
            if (expression := stage.condition(name)) is not None:
                rows.append(
                    {
                        "stage": stage.name,
                        "condition": name,
                        "expression": expression.source,
                        "num_episodes": len(seen),
                        "num_ever": sum(ever for ever, _ in seen),
                        "num_always": sum(always for _, always in seen),
                    }
                )
    return rows
