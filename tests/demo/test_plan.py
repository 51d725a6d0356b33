"""Plans: strict reading, states that are kept apart, looks at test states that are counted."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from grape.cli.demo import check_command
from grape.config.demo import DemoConfig
from grape.demo.driver import log_start, read_looks
from grape.demo.pipeline import Layout, build_stages
from grape.demo.plan import load_plan, parse_plan
from grape.errors import ConfigError

CONTENT: dict[str, Any] = {
    "name": "tiny",
    "question": "Does it?",
    "policy": "policy",
    "tasks": {"libero_object": [0, 3], "libero_spatial": [1]},
    "test_states": {"split": "official", "num_per_task": 5},
    "rollout_states": {"split": "rollout", "num_per_task": 4},
    "test": "two-sided exact McNemar, one look",
}


def changed(**entries: Any) -> dict[str, Any]:
    return copy.deepcopy(CONTENT) | entries


def test_counts_of_states() -> None:
    plan = parse_plan(CONTENT, "here")
    assert plan.num_test_states == 15
    assert plan.is_proof
    assert str(plan.rollout_states.shifted(2)) == "rollout/8-11"


def test_hash_ignores_notes_and_layout_and_nothing_else() -> None:
    plan = parse_plan(CONTENT, "here")
    assert parse_plan(changed(notes="a word"), "here").hash() == plan.hash()
    assert parse_plan(dict(reversed(CONTENT.items())), "here").hash() == plan.hash()
    assert parse_plan(changed(alpha=0.01), "here").hash() != plan.hash()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"rolout_states": 1}, "Did you mean 'rollout_states'"),
        ({"rollout_states": {"split": "official", "num_per_task": 1}}, "for testing only"),
        ({"test_states": {"split": "rollout", "num_per_task": 1}}, "share the split"),
        ({"test_states": {"split": "official", "num_per_task": 0}}, "num_per_task 0"),
        ({"test_states": {"split": "official"}}, "'num_per_task' is missing"),
        ({"tasks": {}}, "names no tasks"),
        ({"iterations": 0}, "iterations is 0"),
        ({"train": ["beta"]}, "object of flags"),
        ({"test": "one-sided exact McNemar, one look"}, "the only one that is implemented is 'two-sided exact"),
        ({"used_states": ["train/0-9", "train/x"]}, "here: used_states: states 'train/x'"),
        ({"used_states": ["train/0-9", "official/4-9"]}, "'official/4-9' overlap with test_states official/0-4"),
        ({"used_states": "train/0-9"}, "here: used_states: wanted a list in which each entry is a text"),
        ({"tasks": {"libero_goal": "8"}}, "here: tasks: libero_goal: wanted a list .* whole number, got '8'"),
        ({"tasks": {"libero_goal": [True]}}, "here: tasks: libero_goal: wanted a list"),
        ({"tasks": ["libero_goal"]}, "here: tasks: wanted suites"),
        ({"iterations": "one"}, "here: iterations: wanted a whole number, got 'one'"),
        ({"alpha": "0.05"}, "here: alpha: wanted a number, got '0.05'"),
        ({"supervised_arm": "no"}, "here: supervised_arm: wanted true or false, got 'no'"),
        ({"rollout_states": {"split": "rollout", "num_per_task": 4.5}}, "num_per_task: wanted a whole number"),
    ],
)
def test_a_wrong_plan_is_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_plan(changed(**entries), "here")


def test_other_states_of_the_test_split_may_have_been_used() -> None:
    plan = parse_plan(changed(used_states=["official/5-9", "train/0-9"], alpha=1e-3), "here")
    assert plan.used_states == ("official/5-9", "train/0-9")


def test_a_plan_says_how_it_will_be_judged() -> None:
    with pytest.raises(ConfigError, match="'test' is missing"):
        parse_plan({name: value for name, value in CONTENT.items() if name != "test"}, "here")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_plan(tmp_path / "absent.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("name", ["quick.json", "plan.json", "plan_simpler.json"])
def test_shipped_plans_load(name: str, repository: Path, tmp_path: Path) -> None:
    plan = load_plan(repository / "experiments" / "demo" / name)
    assert plan.is_proof == (name != "quick.json"), "make demo must leave the proof's states alone"
    layout = Layout(run_dir=tmp_path, plan=plan)
    for stage in build_stages(DemoConfig(), plan, layout, count_steps=lambda folder: 1):
        for command, *argv in stage.commands():
            check_command(command, argv)  # raises for a flag that the command does not take


OFFICIAL = {"test_states": {"split": "official", "first": 0, "num_per_task": 10}}


def test_every_look_at_test_states_is_logged_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, plan = tmp_path / "plan.json", parse_plan(changed(**OFFICIAL), "here")
    for _ in range(2):
        log_start(path, plan, "abc")
    assert "looked at before; this is look 2" in capsys.readouterr().out
    other = parse_plan(changed(**OFFICIAL, alpha=0.01), "here")
    with pytest.raises(ConfigError, match="needs fresh states"):
        log_start(path, other, "abc")
    log_start(path, other, "abc", insist=True)
    fresh = {"split": "official", "first": 10, "num_per_task": 5}
    log_start(path, parse_plan(changed(test_states=fresh), "here"), "abc")
    lines = (tmp_path / "log.md").read_text().splitlines()
    assert [re.search(r"look (\d)", line)[1] for line in lines] == ["1", "2", "3", "1"]  # type: ignore[index]


def test_an_entry_that_is_younger_than_a_logged_hash_does_not_change_it() -> None:
    plan = parse_plan(CONTENT, "here")
    assert "proof" not in plan.deciding() and "proof" in parse_plan(changed(proof=True), "here").deciding()


def test_a_proof_on_sampled_states_counts_as_a_look_as_well(tmp_path: Path) -> None:
    states = {"split": "heldout", "first": 50, "num_per_task": 10}
    path, plan = tmp_path / "plan.json", parse_plan(changed(test_states=states, proof=True), "here")
    assert plan.is_proof and not parse_plan(changed(test_states=states), "here").is_proof
    log_start(path, plan, "abc")
    with pytest.raises(ConfigError, match="needs fresh states"):
        log_start(path, parse_plan(changed(test_states=states, proof=True, alpha=0.01), "here"), "abc")
    log_start(path, parse_plan(changed(proof=True, test_states=states | {"split": "official"}), "here"), "abc")
    log_start(path, parse_plan(changed(proof=True, test_states=states | {"first": 60}), "here"), "abc")
    log_start(path, plan, "abc")
    assert len(read_looks(path, plan)) == 2
