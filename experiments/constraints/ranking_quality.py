"""How well the constraints that come with the toolkit rank stored rollouts: `grape constraints check` on several runs.

    python experiments/constraints/ranking_quality.py --rollouts RUN1 RUN2 --experts CAREFUL CARELESS --out FILE

Each policy's run is checked by itself, as two policies' episodes have the same names; runs of experts are checked
together, as one succeeds and the other fails. What is kept of a run is the policy's hash, not where it lay. Prints the
table of docs/constraint_quality.md.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grape.cli.arguments import parse_config
from grape.cli.check_report import interval
from grape.cli.constraints_check import check_rollouts
from grape.config.constraints_check import ConstraintsCheckConfig
from grape.files import write_bytes_atomic
from grape.rollouts.store import RolloutStore

KEPT = (
    "task", "instruction", "constraints", "num_episodes", "num_successes", "num_failures", "num_initial_states",
    "prefix_steps", "ranking", "stages", "share_in_order", "reasons", "warnings",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RankingQuality:
    """Which runs are checked."""

    rollouts: tuple[Path, ...]
    """Folders of `grape collect`; each is checked by itself."""
    experts: tuple[Path, ...] = ()
    """Folders of `grape experts`, of different initial states; checked together."""
    out: Path = Path("ranking_quality.json")
    """All numbers, as JSON."""
    num_resamples: int = 2000
    """Resamples of the initial states behind each 95 % interval."""
    seed: int = 0
    """Of the resamples."""


def main() -> int:
    config = parse_config(RankingQuality, "ranking_quality", sys.argv[1:])
    rows: list[dict[str, Any]] = []
    for runs in [*((run,) for run in config.rollouts), *([config.experts] if config.experts else [])]:
        infos = {f"{info.suite}/{info.task_id}": info for run in runs for info in RolloutStore(run).infos()}
        check = ConstraintsCheckConfig(rollouts=runs, num_resamples=config.num_resamples, seed=config.seed)
        for task, one in check_rollouts(check)["tasks"].items():
            info = infos[task]
            policy = {"checkpoint_hash": info.checkpoint_hash, "versions": info.simulator_settings["versions"]}
            rows.append(policy | {name: one[name] for name in KEPT})
    content = {"num_resamples": config.num_resamples, "seed": config.seed, "tasks": rows}
    write_bytes_atomic(config.out, (json.dumps(content, indent=1) + "\n").encode())
    print(markdown(rows))
    return 0


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the docs."""
    lines = [
        "| task | policy | successes, failures | AUC, whole | AUC, without goal() | AUC, first k steps | k "
        "| AUC of being shorter | tau, first k steps |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in rows:
        found = {name: interval(estimate) for name, estimate in one["ranking"].items()}
        policy = "experts" if one["checkpoint_hash"] == "scripted" else one["checkpoint_hash"][:6]
        cells = [
            f"{one['task']}: {one['instruction']}", policy,
            f"{one['num_successes']}, {one['num_failures']}", found["auc"], found["auc_blind"], found["auc_prefix"],
            str(one["prefix_steps"]), found["auc_of_shortness"], found["tau_prefix"],
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
