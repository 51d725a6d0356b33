"""What ``grape constraints check`` concludes from its counts: reasons not to use constraints, warnings, notes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Report = dict[str, Any]
LARGEST_ROW = {"sub_goal": 3.0, "path": 0.5, "collision": 10.0, "grasp": 10.0}
"""Beyond this, in one step, units are wrong: no table is 3 m long, no arm moves half a metre, a contact counts 1."""
OFTEN = 0.9
"""Share of successes in which a stage is expected to be done by its own condition."""
FEW_STATES = 8
"""Below this, an interval from resampled initial states says little."""


def add_findings(report: Report) -> Report:
    """The report with ``reasons`` (it cannot be used), ``warnings`` (to be mended) and ``notes``, most grave first."""
    found: dict[str, list[str]] = {"reasons": list(_reasons(report)), "warnings": [], "notes": []}
    if "stages" in report:
        parts = (_of_ranking, _of_stages, _of_costs, _of_conditions)
        for level, text in (finding for part in parts for finding in part(report)):
            found[level].append(text)
    return {**report, **found}


def _reasons(report: Report) -> Iterator[str]:
    for error in report["errors"]:
        yield (
            f"stage {error['stage']!r}, {error['expression']}: {error['message']}; "
            f"in {error['num_episodes']} of {report['num_episodes']} episodes"
        )
    if report["num_successes"] == 0:
        yield (
            f"none of the {report['num_episodes']} episodes is a success: nothing shows that the stages can be "
            "completed; check with rollouts of a policy, or of grape experts, that succeeds"
        )
    elif "stages" in report:
        for stage in report["stages"]:
            if stage["num_successes_own"] == 0:
                yield (
                    f"stage {stage['name']!r} is never completed: in none of the {report['num_successes']} successes "
                    f"does {stage['done_when']} hold"
                )
    auc = report.get("ranking", {}).get("auc", {"high": None})
    if auc["high"] is not None and auc["high"] < 0.5:
        yield f"failures cost less than successes: AUC {_interval(auc)} lies below 0.5; is a sign reversed?"


def _of_ranking(report: Report) -> Iterator[tuple[str, str]]:
    ranking, count = report["ranking"], report["num_initial_states"]
    if report["num_failures"] == 0 or report["num_successes"] == 0:
        kind = "failures" if report["num_failures"] == 0 else "successes"
        yield "warnings", f"AUC is not defined: there are no {kind}, so nothing says that failures cost more"
    elif count < FEW_STATES:
        yield "warnings", f"{count} initial state(s) only: intervals come from resampling states, and say little here"
    auc, prefix = ranking["auc"], ranking["auc_prefix"]
    if auc["low"] is not None and auc["low"] <= 0.5 <= auc["high"]:
        yield "warnings", f"successes and failures are not told apart: AUC {_interval(auc)} holds 0.5"
    if prefix["high"] is not None and prefix["high"] < 0.5:
        yield "warnings", f"over the first {report['prefix_steps']} steps failures cost less: AUC {_interval(prefix)}"
    wanted, got = report["instruction"], report["constraints_instruction"]
    if _plain(wanted) != _plain(got):
        yield "warnings", f"the constraints are about {got!r}, the rollouts about {wanted!r}"
    if report["reads_goal"]:
        yield "notes", "goal() is the simulator's verdict, which is what success means: see AUC without it"
    if (ranking["auc_of_shortness"]["value"] or 0) > 0.99:
        yield "notes", "length alone tells success here, as episodes stop at it: only the first steps are a fair test"
    if report["is_reference"]:
        yield (
            "notes",
            "tau compares the reference constraints with their own stages: over the whole episode it is no test",
        )


def _of_stages(report: Report) -> Iterator[tuple[str, str]]:
    successes, episodes = report["num_successes"], report["num_episodes"]
    for stage in report["stages"]:
        own = stage["num_successes_own"]
        if 0 < own < OFTEN * successes:
            yield (
                "warnings",
                (f"stage {stage['name']!r}: in only {own} of {successes} successes does {stage['done_when']} hold"),
            )
        if stage["num_at_start"] > (1 - OFTEN) * episodes:
            yield (
                "warnings",
                (
                    f"stage {stage['name']!r} is over before it began: in {stage['num_at_start']} of {episodes} "
                    f"episodes {stage['done_when']} holds in the first row; units are metres and radians"
                ),
            )
    if report["share_in_order"] is not None and report["share_in_order"] < OFTEN:
        yield (
            "warnings",
            (f"only {report['share_in_order']:.0%} of the successes do the stages in the stated order"),
        )


def _of_costs(report: Report) -> Iterator[tuple[str, str]]:
    silent, idle = [], []
    for row in report["costs"]:
        if row["num_episodes"] == 0:
            continue
        name, expression = f"stage {row['stage']!r}, {row['cost']}", row["expression"]
        if row["largest"] > LARGEST_ROW[row["cost"]]:
            yield "warnings", f"{name}: up to {row['largest']:.3g} in a step; metres are wanted: {expression}"
        if row["num_fired"] == 0 and row["cost"] in ("collision", "grasp"):
            silent.append(f"{row['stage']}, {row['cost']}")  # no contact, no lost grasp: that may be good news
        elif row["num_fired"] == 0:
            yield "warnings", f"{name} never fires, it is <= 0 in all {row['num_episodes']} episodes: {expression}"
        elif row["smallest"] == row["largest"]:
            yield "warnings", f"{name} is constant, {row['smallest']:.3g}: {expression}"
        elif row["num_over_threshold"] == 0:
            idle.append(f"{row['stage']}, {row['cost']} ({row['threshold']:g})")
        if row["cost"] != "path" and 0 < row["num_successes"] == row["num_successes_never_met"]:
            yield "warnings", f"{name} is not satisfied in any of {row['num_successes']} successes: {expression}"
        if row["auc"]["high"] is not None and row["auc"]["high"] < 0.5:
            yield "warnings", f"{name} costs successes more: AUC {_interval(row['auc'])}: {expression}"
    if silent:
        yield "notes", f"never fires: {'; '.join(silent)}"
    if idle:
        yield "notes", f"threshold never exceeded, so it changes no score: {'; '.join(idle)}"


def _of_conditions(report: Report) -> Iterator[tuple[str, str]]:
    always = []
    for row in report["conditions"]:
        if row["num_episodes"] == 0 or row["condition"] == "done_when":  # of which the stages tell more
            continue
        if row["num_ever"] == 0:
            name = f"stage {row['stage']!r}, {row['condition']}"
            yield "warnings", f"{name} never holds in {row['num_episodes']} episodes: {row['expression']}"
        elif row["num_always"] == row["num_episodes"]:
            always.append(f"{row['stage']}, {row['condition']}")
    if always:
        yield "notes", f"holds in every row, so it asks for nothing: {'; '.join(always)}"


def _plain(text: str) -> str:
    return " ".join(text.lower().strip(" .").split())


def _interval(estimate: dict[str, float | None]) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
