"""Do pairs chosen under an objective differ in what it is about? Counted from the facts of stored rollouts.

python -m experiments.objectives.compare RUN [RUN …] --out result.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.objectives.counts import MEASURES, Counts, State, compare_states, count_run, mean_by_state
from experiments.objectives.pairs import PAIRINGS, VARIANTS, make_pairs, score_under
from grape.errors import GrapeError
from grape.files import write_bytes_atomic
from grape.preferences import PairingReport
from grape.rollouts.store import RolloutStore

BASELINE = "task_completion"
SIDES = ("chosen", "rejected")
Counted = Mapping[str, tuple[State, Counts]]


@dataclass(frozen=True, kw_only=True)
class CompareObjectives:
    """Score runs under each objective, make the pairs of each, and count what chosen and rejected did."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of ``grape collect``, each scored and paired on its own; nothing in them is changed."""
    out: Path | None = None
    """JSON file for the result."""


def compare_runs(runs: Sequence[Path]) -> dict[str, Any]:
    """All pairings of the runs, and of their successes how much the best choice by one measure alone could gain."""
    counted = [with_run(count_run(run), str(index)) for index, run in enumerate(runs)]
    scored = {
        name: [list(score_under(settings, run).episodes()) for run in runs] for name, settings in VARIANTS.items()
    }
    return {
        "runs": [describe(run, episodes) for run, episodes in zip(runs, counted, strict=True)],
        "headroom": headroom(one for episodes in counted for one in episodes.values()),
        "pairings": {
            name: compare_variants(
                {variant: [make_pairs(run, name, pairing) for run in of_runs] for variant, of_runs in scored.items()},
                counted,
            )
            for name, pairing in PAIRINGS.items()
        },
    }


def with_run(counted: Counted, run: str) -> dict[str, tuple[State, Counts]]:
    """States named after their run, too: two runs may start from the same ones."""
    return {name: ((run, *state), counts) for name, (state, counts) in counted.items()}


def describe(run: Path, counted: Counted) -> dict[str, Any]:
    """Which rollouts these are."""
    settings = RolloutStore(run).run["settings"]
    names = ("suite", "task_ids", "init_split", "first_state", "num_states", "num_rollouts", "temperature", "seed")
    return {
        **{name: settings[name] for name in names},
        "checkpoint_hash": settings["checkpoint_hash"],
        "num_episodes": len(counted),
        "num_successes": int(sum(counts.success for _, counts in counted.values())),
    }


def compare_variants(reports: Mapping[str, Sequence[PairingReport]], counted: Sequence[Counted]) -> dict[str, Any]:
    """Paired differences of what was chosen and of what was rejected, over initial states.

    Args:
        reports: Variant -> its pairs of each run.
        counted: The episodes of each run.
    """
    means = {variant: side_means(of_runs, counted) for variant, of_runs in reports.items()}
    baseline = pair_names(reports[BASELINE])
    return {
        variant: {
            "num_pairs": len(pair_names(reports[variant])),
            "num_pairs_unlike_baseline": len(pair_names(reports[variant]) - baseline),
            **{
                side: {name: compare_states(*(_column(means[one][side], name) for one in (BASELINE, variant)))
                       for name in MEASURES}
                for side in SIDES
            },
        }
        for variant in reports
    }  # fmt: skip


def side_means(
    reports: Sequence[PairingReport], counted: Sequence[Counted]
) -> dict[str, dict[State, dict[str, float]]]:
    """For each side, each state's means over its pairs; an episode counts as often as it is in a pair."""
    return {
        side: mean_by_state(
            episodes[getattr(pair, side).info.episode_id]
            for report, episodes in zip(reports, counted, strict=True)
            for pair in report.pairs
        )
        for side in SIDES
    }


def pair_names(reports: Sequence[PairingReport]) -> set[tuple[int, str, str]]:
    """Run, chosen and rejected of each pair."""
    return {
        (index, pair.chosen.info.episode_id, pair.rejected.info.episode_id)
        for index, report in enumerate(reports)
        for pair in report.pairs
    }


def headroom(episodes: Iterable[tuple[State, Counts]]) -> dict[str, Any]:
    """Of each state's successes, the mean and the least collision steps and path, averaged over states.

    No choice of one success per state can have less than the least.
    """
    successes: dict[State, list[Counts]] = {}
    for state, counts in episodes:
        if counts.success:
            successes.setdefault(state, []).append(counts)
    groups = list(successes.values())
    result: dict[str, Any] = {"num_states": len(groups)}
    for name in ("collision_steps", "collided", "path_m"):
        values = [[getattr(one, name) for one in group] for group in groups]
        result[name] = {
            "mean": sum(sum(group) / len(group) for group in values) / len(groups),
            "least": sum(min(group) for group in values) / len(groups),
            "num_states_that_differ": sum(max(group) - min(group) > 1e-9 for group in values),
        }
    return result


def _column(means: Mapping[State, Mapping[str, float]], name: str) -> dict[State, float]:
    return {state: values[name] for state, values in means.items()}


def table(result: Mapping[str, Any]) -> str:
    """The chosen sides as a table in Markdown."""
    lines = [
        "| pairs | objective | number, of which task completion has not | collision steps | any | path, m |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for pairing, objectives in result["pairings"].items():
        for objective, one in objectives.items():
            cells = [in_words(one["chosen"][name], 3) for name in ("collision_steps", "collided", "path_m")]
            counts = f"{one['num_pairs']}, {one['num_pairs_unlike_baseline']}"
            lines.append(f"| {pairing} | {objective} | {counts} | {' | '.join(cells)} |")
    return "\n".join(lines)


def in_words(one: Mapping[str, Any], digits: int) -> str:
    """The mean, and the difference with its interval and counts where there is any."""
    if not one["num_lower"] and not one["num_higher"]:
        return f"{one['after']:.{digits}f}"
    interval = f"{one['difference']:+.{digits}f} [{one['low']:+.{digits}f}, {one['high']:+.{digits}f}]"
    return f"{one['after']:.{digits}f}: {interval}, less in {one['num_lower']}, more in {one['num_higher']}"


def main() -> int:
    """Parse the command line, compare, write, print."""
    config = tyro.cli(CompareObjectives, use_underscores=True)
    try:
        result = compare_runs(config.runs)
    except GrapeError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    print(table(result))
    print(json.dumps(result["headroom"], indent=1))
    if config.out is not None:
        write_bytes_atomic(config.out, (json.dumps(result, indent=1) + "\n").encode())
        print(f"wrote {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
