"""A model's answer becomes stages, or one message with all that is wrong. All answers here are written by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grape.constraints import COSTS, TaskConstraints, answers, derive_constraints, shipped_constraints
from grape.constraints.answers import ANSWER_SCHEMA, MAX_PROBLEMS, parse_answer
from grape.constraints.ordering import Outline, ordering_problems
from grape.envs.simpler.tasks import BRIDGE_TASKS, SUITE
from grape.errors import ConstraintError
from tests.constraints.corpus import NAMES

FIELDS = ("name", "done_when", "requires", *COSTS)


def answer_of(constraints: TaskConstraints) -> str:
    """What a model would have to answer to get these stages, in the form of the schema."""
    stages = [
        {name: getattr(stage, name) for name in FIELDS}
        | {"thresholds": {cost: stage.thresholds.get(cost) for cost in COSTS} if stage.thresholds else None}
        for stage in constraints.stages
    ]
    return json.dumps({"stages": stages})


def parsed(text: str, names: tuple[str, ...] = NAMES, num_goals: int | None = 1) -> TaskConstraints:
    return parse_answer(text, instruction="by hand", keypoint_names=names, num_goals=num_goals, source="by hand")


def problems_of(text: str, **keywords: Any) -> list[str]:
    with pytest.raises(ConstraintError) as caught:
        parsed(text, **keywords)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("task_id", range(len(BRIDGE_TASKS)))
def test_the_shipped_stages_are_a_valid_answer(task_id: int) -> None:
    shipped = shipped_constraints(SUITE, task_id)
    assert shipped is not None
    assert parsed(answer_of(shipped), shipped.keypoint_names).stages == shipped.stages


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"])
def test_the_derived_stages_of_every_libero_task_are_a_valid_answer(suite: str) -> None:
    pytest.importorskip("libero", reason="LIBERO is not installed; pip install 'grape-vla[libero]'")
    from grape.envs.libero.tasks import libero_task, task_names

    for task_id in range(len(task_names(suite))):
        task = libero_task(suite, task_id)
        derived = derive_constraints(task.goal_predicates, task.keypoint_names, task.instruction)
        answer = parsed(answer_of(derived), derived.keypoint_names, len(task.goal_predicates))
        for got, wanted in zip(answer.stages, derived.stages, strict=True):
            assert [getattr(got, name) for name in FIELDS] == [getattr(wanted, name) for name in FIELDS]


def test_all_problems_are_listed_at_once() -> None:
    stages = [
        {"name": "2. place", "done_when": "grasped(boul_1)", "requires": 1, "path": "ee.x", "thresholds": {"pth": 1}},
        {"name": "1. grasp", "done_when": "goal(3)", "sub_goal": "distance(ee, boul_1) - 5", "why": "because"},
    ]
    first, *lines = problems_of(json.dumps({"stages": stages}))
    assert first == "the answer has 8 problems:"
    for found in (
        "stage 1 '2. place', requires: must be an expression as text, or null, got 1",
        "stage 1 '2. place', path: in constraint ee.x: Attribute (column 1) is not part of the language",
        "stage 1 '2. place', thresholds: no cost is called 'pth'. Did you mean 'path'?",
        "stage 2 '1. grasp' has an unknown field 'why'.",
        "stage 2 '1. grasp', done_when: goal(3) does not exist; goals are numbered from 0 to 0 in this task",
        "stage 2 '1. grasp', sub_goal: in constraint distance(ee, boul_1) - 5: 'distance(ee, boul_1) - 5' puts 5",
        "stage 1 '2. place', done_when: unknown keypoint 'boul_1'. Did you mean 'bowl_1'? Known: bowl_1, plate_1.",
        "the stages are numbered 2, 1; list them in the order in which they happen",
    ):
        assert any(line.startswith(f"- {found}") for line in lines), found


def test_many_problems_are_cut() -> None:
    stages = [{"name": f"s{i}", "done_when": "ee.x", "path": 1} for i in range(20)]
    lines = problems_of(json.dumps({"stages": stages}))
    assert lines[0] == "the answer has 40 problems:" and len(lines) == MAX_PROBLEMS + 2
    assert lines[-1] == "- and 30 more"


def test_problems_come_in_the_order_of_the_answer() -> None:
    # the repair turn quotes them, and is found in the cache by what it says: a set's order would change with the run
    fields = [f"field_{i}" for i in range(8)]
    lines = problems_of(json.dumps({"stages": [{"name": "s", "done_when": "goal(0)", **dict.fromkeys(fields, 1)}]}))
    assert [line.split("'")[3] for line in lines[1:]] == fields


def test_thousands_of_problems_take_no_longer_than_those_that_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(answers, "did_you_mean", lambda got, known: compared.append(got) or "")
    names = [f"other_contact({', '.join(f'no_{i}_{j}' for j in range(100))})" for i in range(20)]
    stages = [{"name": f"s{i}", "done_when": text, **{f"f{j}": 1 for j in range(50)}} for i, text in enumerate(names)]
    assert problems_of(json.dumps({"stages": stages}), num_goals=None)[-1] == f"- and {20 * 150 - MAX_PROBLEMS} more"
    assert len(compared) <= 2 * MAX_PROBLEMS


def test_a_wrong_keypoint_is_named_once() -> None:
    stages = [{"name": f"s{i}", "done_when": f"height(boul) > 0.{i}"} for i in range(1, 9)]
    stages.append({"name": "end", "done_when": "goal(0)"})
    (_, line) = problems_of(json.dumps({"stages": stages}))
    assert line.startswith(
        "- stage 1 's1', done_when, stage 2 's2', done_when, stage 3 's3', done_when: unknown keypoint"
    )


@pytest.mark.parametrize("num_goals", [None, 0])
def test_without_a_verdict_goals_may_not_be_used(num_goals: int | None) -> None:
    asks = '{"stages": [{"name": "a", "done_when": "goal(0)"}]}'
    assert "there are no goals in this task" in problems_of(asks, num_goals=num_goals)[1]
    assert parsed('{"stages": [{"name": "a", "done_when": "grasped(bowl_1)"}]}', num_goals=num_goals)


def test_the_schema_is_fit_for_strict_mode() -> None:
    objects: list[dict[str, Any]] = []

    def walk(schema: Any) -> None:
        if isinstance(schema, dict):
            objects.extend([schema] if schema.get("type") == "object" else [])
            for value in schema.values():
                walk(value)
        elif isinstance(schema, list):
            for value in schema:
                walk(value)

    walk(ANSWER_SCHEMA)
    assert len(objects) == 3
    for one in objects:
        assert one["additionalProperties"] is False and one["required"] == list(one["properties"])
    stage = ANSWER_SCHEMA["properties"]["stages"]["items"]["properties"]
    assert set(stage) == {*FIELDS, "thresholds"}
    for name in FIELDS[2:]:
        assert stage[name]["type"] == ["string", "null"]


def outlines(*pairs: tuple[str | None, str | None]) -> list[Outline]:
    return [
        Outline(label=f"stage {i}", name=f"s{i}", done_when=done, requires=required)
        for i, (done, required) in enumerate(pairs, start=1)
    ]


@pytest.mark.parametrize(
    "pairs",
    [
        # a distance may be small from the start; so may "not grasped" hold
        [
            ("grasped(a)", "height(a) < 0.2 and not grasped(a)"),
            ("goal(0) and height(a) < 0.2 and not grasped(a)", None),
        ],
        [("grasped(a) and grasped(b)", None), ("grasped(a) and grasped(b) and goal(0)", "grasped('a') and grasped(b)")],
        [("grasped(a)", None), ("height(a) > 0.2", "grasped(a)"), ("grasped(a) and goal(0)", None)],
        [(None, None), ("goal(0)", "grasped(a)")],  # what the first one brings about is unknown
        [("goal(1)", None), ("goal(0)", None)],
        [("grasped(a)", "grasped(a) or height(a) < 0.1"), ("goal(0) and goal(1)", None)],
    ],
)
def test_what_may_be_in_order_is_let_through(pairs: list[tuple[str | None, str | None]]) -> None:
    assert ordering_problems(outlines(*pairs), num_goals=2) == []


def test_names_that_only_sometimes_begin_with_a_number_do_not_count() -> None:
    stages = [Outline(label=name, name=name, done_when=None) for name in ("2 hands on the pot", "lift", "1 turn")]
    assert ordering_problems(stages, num_goals=None) == []
