"""What ``grape score`` prints and draws, from the content of a scores file alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from grape.files import write_bytes_atomic
from grape.rewards.guided_cost import TERMS
from grape.rewards.plot import plot_terms


def format_report(scores: dict[str, Any]) -> str:
    """One block for the ranking of all tasks, one for how far episodes came."""
    reports = scores["report"]
    settings = scores["settings"]
    lines = [
        f"preset {settings['preset']}, objective {settings['objective']}: {len(scores['episodes'])} episodes scored, "
        f"{len(scores['unscored'])} crashed and left out",
        "",
        "Ranking within an initial state: share of the variance of R | Kendall's tau with R, of each term "
        "(self, ext, success)",
        f"{'task':<20}{'episodes':>9}{'success':>8}  {'variance share':<20}{'tau':<20}"
        f"{'r with length':<20}{'AUC ext':>8}{'AUC len':>8}{'inverted':>9}",
    ]
    for task, one in reports.items():
        lines.append(
            f"{task:<20}{one['num_episodes']:>9}{one['num_successes']:>8}  {_three(one['variance_share']):<20}"
            f"{_three(one['kendall_tau']):<20}{_three(one['length_correlation']):<20}"
            f"{_number(one['auc_of_r_ext']):>8}{_number(one['auc_of_shortness']):>8}"
            f"{one['num_failures_above_successes']:>9}"
        )
    lines += [
        "",
        "AUC: probability that a success has the higher R_ext (ext), or is the shorter episode (len), than a failure.",
        "inverted: pairs within an initial state in which a failure scores at least as high as a success.",
        "",
        "Stages completed, of the task's episodes:",
    ]
    for task in reports:
        lines.append(f"  {task}: {_progress(scores, task)}")
    return "\n".join(lines)


def write_plot(path: Path, scores: dict[str, Any]) -> None:
    """Draw the distributions of the three terms and of R over all scored episodes."""
    episodes = list(scores["episodes"].values())
    values = {name: np.array([one[name] or 0.0 for one in episodes], np.float64) for name in (*TERMS, "score")}
    write_bytes_atomic(path, plot_terms(values, values["i_success"] > 0.5))


def _progress(scores: dict[str, Any], task: str) -> str:
    own = [episode for episode in scores["episodes"].values() if episode["task"] == task]
    completed: Counter[str] = Counter()
    for episode in own:
        completed.update({stage["name"]: int(stage["completed"]) for stage in episode["stages"]})
    return ", ".join(f"{name} {count}/{len(own)}" for name, count in completed.items())


def _three(values: dict[str, float | None]) -> str:
    return " ".join(f"{_number(values[name]):>5}" for name in TERMS)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
