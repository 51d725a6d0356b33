"""report.html of a demo run: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from grape.demo.charts import Interval, Series, histogram, interval_chart, line_chart
from grape.demo.evidence import ExamplePair, ScoredRollout, Video, example_pair, example_videos, scored_rollouts
from grape.demo.pictures import data_uri, encode_jpeg, strip_steps
from grape.demo.pipeline import AFTER, BEFORE, SUPERVISED, Layout
from grape.demo.result import summary_lines
from grape.demo.revision import NOT_COMMITTED
from grape.demo.stages import total_time_in_words
from grape.trainer.metrics import read_metrics

ARM_NAMES = {
    BEFORE: "before",
    AFTER: "after preference optimization",
    SUPERVISED: "after imitating the chosen trajectories",
}
CURVES = (
    ("Loss", ("loss",)),
    ("Implicit rewards", ("rewards/chosen", "rewards/rejected")),
    ("Margin", ("rewards/margins",)),
    ("Share of pairs ranked right", ("rewards/accuracies",)),
)
TERMS = (
    ("score", "R, the guided cost"),
    ("r_self", "λ1·R_self, likelihood"),
    ("r_ext", "λ2·R_ext, stage costs"),
    ("i_success", "λ3·I_success"),
)
NUM_STRIP_FRAMES = 8


def write_report(path: Path, result: Mapping[str, Any], layout: Layout) -> None:
    """Write the report of a finished run."""
    sections = [
        _head(result),
        _tasks(result),
        _training(layout),
        _scores(scored_rollouts(layout)),
        _pair(example_pair(layout)),
        _videos(example_videos(layout, result)),
        _stages(result),
        _settings(result),
    ]
    style = importlib.resources.files("grape.demo").joinpath("report.css").read_text()
    title = escape(f"grape demo: {result['plan']['name']}")
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body>{''.join(sections)}</body></html>\n",
        encoding="utf-8",
    )


def _head(result: Mapping[str, Any]) -> str:
    rows = [
        Interval(
            name=ARM_NAMES[name],
            value=arm["rate"],
            low=arm["low"],
            high=arm["high"],
            note=f"{arm['successes']:g}/{arm['trials']}"
            + (f", {arm['num_crashed']} crashed" if arm["num_crashed"] else ""),
        )
        for name, arm in result["arms"].items()
        if arm["rate"] is not None
    ]
    lines = "".join(f"<p>{escape(line)}</p>" for line in summary_lines(result))
    return (
        f"<h1>{escape(result['plan']['question'])}</h1>"
        f'<p class="faint">{escape(_what_ran(result))}</p>'
        f'<div class="verdict">{lines}</div>'
        f'<div class="card">{interval_chart(rows, x_label="success, with Wilson 95 % interval")}</div>'
    )


def _what_ran(result: Mapping[str, Any]) -> str:
    plan = result["plan"]
    commit = _short(result["plan_commit"])
    time = total_time_in_words(result["wall_time_s"], result["killed_attempts"])
    return (
        f"Plan {plan['name']} ({result['plan_hash'][:12]}, plan file {commit}), policy {plan['policy']}, "
        f"states {plan['test_states']['split']}, test: {plan['test']}, at α = {plan['alpha']:g}. "
        f"Code {' and '.join(_code_in_words(means) for means in result['ran_with'])}. Finished in {time}."
    )


def _code_in_words(means: Mapping[str, Any]) -> str:
    changes = f" with {len(means['code_changed'])} changed files" if means["code_changed"] else ""
    return f"{_short(means['code_commit'])}{changes}, on {means['device']}, {means['num_workers']} workers"


def _tasks(result: Mapping[str, Any]) -> str:
    arms = list(result["arms"])
    header = "".join(f'<th class="number">{escape(ARM_NAMES[arm])}</th>' for arm in arms)
    distance = '<th class="number">nearest used state:<br>closest, median</th>'
    body = "".join(
        f"<tr><td>{escape(row['suite'])} {row['task_id']}<br>"
        f'<span class="faint">{escape(row["instruction"])}</span></td>'
        f'<td class="number">{_centimetres(row["nearest_used_state_m"])}</td>'
        + "".join(f'<td class="number">{_count(row[arm])}</td>' for arm in arms)
        + "</tr>"
        for row in result["tasks"]
    )
    return _section(
        "Each task", f'<div class="scroll"><table><tr><th>task</th>{distance}{header}</tr>{body}</table></div>'
    )


def _centimetres(distances_m: Sequence[float]) -> str:
    return f"{100 * min(distances_m):.1f}, {100 * median(distances_m):.1f} cm"


def _short(revision: str) -> str:
    return revision if revision == NOT_COMMITTED else f"at commit {revision[:12]}"


def _count(outcomes: Sequence[Any]) -> str:
    known = [outcome for outcome in outcomes if outcome is not None]
    crashed = len(outcomes) - len(known)
    return f"{sum(known):g}/{len(known)}" + (f" ({crashed} crashed)" if crashed else "")


def _training(layout: Layout) -> str:
    runs = {f"TPO {iteration + 1}": layout.training(iteration) for iteration in range(layout.plan.iterations)}
    if layout.plan.iterations == 1:
        runs = {"TPO": layout.training(0)}
    if layout.plan.supervised_arm:
        runs["supervised"] = layout.supervised()
    logs = {name: read_metrics(path) for name, path in runs.items()}
    cards = []
    for title, names in CURVES:
        series = list(_curves(logs, names))
        if series:
            cards.append(f'<div class="card"><h3>{title}</h3>{line_chart(series, x_label="step", y_label="")}</div>')
    return _section("Training", f'<div class="grid2">{"".join(cards)}</div>')


def _curves(logs: Mapping[str, list[dict[str, Any]]], names: Sequence[str]) -> Iterator[Series]:
    for run, rows in logs.items():
        for name in names:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                label = f"{run} {name.split('/')[-1]}" if len(logs) > 1 or len(names) > 1 else name
                yield Series(name=label, x=tuple(x for x, _ in points), y=tuple(y for _, y in points))


def _scores(rollouts: Sequence[ScoredRollout]) -> str:
    cards = []
    for key, label in TERMS:
        samples = [
            Series(
                name=name, y=tuple(one.terms[key] for one in rollouts if one.success is success and key in one.terms)
            )
            for name, success in (("failures", False), ("successes", True))
        ]
        drawn = histogram([sample for sample in samples if sample.y], x_label=label)
        cards.append(f'<div class="card"><h3>{label}</h3>{drawn}</div>')
    text = (
        f"<p>{len(rollouts)} rollouts, ranked by R. The three terms beside it are what R adds up: weighted and, "
        "where the settings say so, normalised.</p>"
    )
    return _section("Scores", f'{text}<div class="grid2">{"".join(cards)}</div>')


def _pair(pair: ExamplePair | None) -> str:
    if pair is None:
        return ""
    rows = []
    for name, trajectory, score in (
        ("chosen", pair.chosen, pair.chosen_score),
        ("rejected", pair.rejected, pair.rejected_score),
    ):
        frames = "".join(
            f'<figure><img alt="step {step}" src="{data_uri(encode_jpeg(trajectory.images[step]), "image/jpeg")}">'
            f"<figcaption>step {step}</figcaption></figure>"
            for step in strip_steps(len(trajectory.images[: pair.num_steps]), NUM_STRIP_FRAMES)
        )
        rows.append(
            f"<h3>{name}: {trajectory.info.status} in {trajectory.info.num_steps} steps, score {score:.3f}</h3>"
            f'<div class="strip">{frames}</div>'
        )
    info = pair.chosen.info
    text = f"{info.instruction} ({info.suite} {info.task_id}, state {info.init_state_id})"
    if pair.num_steps is not None:
        text += f"; cut where they part: training saw, and here are, at most {pair.num_steps} steps of each"
    return _section("One pair, as the policy saw it", f"<p>{escape(text)}</p>{''.join(rows)}")


def _videos(videos: Sequence[Video]) -> str:
    if not videos:
        return ""
    cards = "".join(
        f'<div class="card"><h3>{escape(ARM_NAMES[video.arm])}: {escape(video.status)}</h3>'
        f'<video controls muted loop playsinline src="{data_uri(video.path.read_bytes(), "video/mp4")}"></video></div>'
        for video in videos
    )
    title = f"{videos[0].suite} {videos[0].task_id}, state {videos[0].state}, same start"
    text = "One state, chosen because its outcome changed if any did: an illustration, not evidence."
    return _section("Before and after", f'<p>{escape(title)}. {text}</p><div class="grid2">{cards}</div>')


def _stages(result: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{_time(result, name, seconds)}</td><td>'
        + "".join(f"<pre>{escape(command)}</pre>" for command in result["commands"][name])
        + "</td></tr>"
        for name, seconds in result["wall_time_s"].items()
    )
    table = f"<table><tr><th>stage</th><th>time</th><th>command</th></tr>{rows}</table>"
    return _section("Stages", f'<div class="scroll">{table}</div>')


def _time(result: Mapping[str, Any], stage: str, seconds: float) -> str:
    return total_time_in_words({stage: seconds}, {stage: result["killed_attempts"][stage]})


def _settings(result: Mapping[str, Any]) -> str:
    parts = [
        ("Versions", result["versions"]),
        ("Code (commit, and files that differ from it), device and workers", result["ran_with"]),
        ("Plan", result["plan"]),
        ("Rounds: rollouts, pairs, training", result["iterations"]),
        ("Settings of every stage", result["settings"]),
        ("Checkpoint hashes", result["checkpoint_hashes"]),
        ("Tests", result["tests"]),
    ]
    body = "".join(
        f"<details><summary>{name}</summary><pre>{escape(json.dumps(content, indent=2))}</pre></details>"
        for name, content in parts
    )
    return _section("Settings and versions", body)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"
