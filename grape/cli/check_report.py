"""What ``grape constraints check`` prints of one task, from the content of its report alone."""

from __future__ import annotations

from typing import Any

RANKING = {
    "auc": "whole episode",
    "auc_prefix": "first {prefix_steps} steps alone",
    "auc_blind": "whole, goal() taken away",
    "auc_of_shortness": "being shorter (to beat)",
    "auc_minus_shortness": "whole minus shorter",
    "tau": "tau in failures, whole",
    "tau_prefix": "tau in failures, first {prefix_steps}",
}


def format_check(report: dict[str, Any]) -> str:
    """What to mend first, then the tables."""
    lines = [
        f"{report['task']}: {report['instruction']!r} under constraints by {report['constraints']!r}",
        f"{report['num_episodes']} episodes from {report['num_initial_states']} initial states: "
        f"{report['num_successes']} successes, {report['num_failures']} failures",
        "",
    ]
    for level, mark in (("reasons", "NOT USABLE"), ("warnings", "warning"), ("notes", "note")):
        lines += [f"{mark}: {text}" for text in report[level]]
    if not report["reasons"]:
        lines.append(f"usable, with {len(report['warnings'])} warning(s)")
    if "stages" in report:
        lines += ["", *_ranking(report), "", *_stages(report), "", *_costs(report)]
    return "\n".join(lines)


def _ranking(report: dict[str, Any]) -> list[str]:
    lines = ["How it ranks (R_ext; 95 % interval over resampled initial states)"]
    for name, label in RANKING.items():
        lines.append(f"  {label.format(**report):<34}{interval(report['ranking'][name])}")
    return [
        *lines,
        "AUC: probability that a success has the higher R_ext than a failure. tau: Kendall's tau_b of R_ext, among",
        "failures, with the number of stages that the reference constraints (shipped or derived) count as completed.",
    ]


def _stages(report: dict[str, Any]) -> list[str]:
    won, lost = report["num_successes"], report["num_failures"]
    lines = [f"{'stage':<40}{'successes':>11}{'by itself':>11}{'step':>6}{'failures':>10}{'end here':>10}"]
    for one in report["stages"]:
        step = "-" if one["median_step"] is None else f"{one['median_step']:.0f}"
        completed, own = (f"{one[f'num_successes_{kind}']}/{won}" for kind in ("completed", "own"))
        failed = f"{one['num_failures_completed']}/{lost}"
        name = f"  {one['name'][:37]}"
        lines.append(f"{name:<40}{completed:>11}{own:>11}{step:>6}{failed:>10}{one['num_failures_end_here']:>10}")
    return [
        *lines,
        "successes, failures: that completed the stage; by itself: its own condition held, not only that of the last",
        "stage of its subtask; step: median of that in successes; end here: failures whose last step is in the stage.",
    ]


def _costs(report: dict[str, Any]) -> list[str]:
    lines = [f"{'cost':<50}{'smallest':>9}{'largest':>9}{'tau':>7}{'fired':>9}{'over tau':>10}   AUC"]
    for one in report["costs"]:
        count = one["num_episodes"]
        smallest, largest = (("-" if one[k] is None else f"{one[k]:.3f}") for k in ("smallest", "largest"))
        fired, over = f"{one['num_fired']}/{count}", f"{one['num_over_threshold']}/{count}"
        name = f"  {one['stage'][:37]:<38}{one['cost']:<10}"
        lines.append(
            f"{name}{smallest:>9}{largest:>9}{one['threshold']:>7g}{fired:>9}{over:>10}   {interval(one['auc'])}"
        )
    return [
        *lines,
        "smallest, largest: in any step; fired, over tau: of episodes that were in the stage; AUC: of what it charges.",
    ]


def interval(estimate: dict[str, float | None]) -> str:
    """``0.73 [0.61, 0.84]``; a dash where it is not defined."""
    if estimate["value"] is None:
        return "-"
    bounds = "" if estimate["low"] is None else f" [{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return f"{estimate['value']:.2f}{bounds}"
