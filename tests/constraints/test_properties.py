"""Properties of the language: what holds for any sentence, and for any text."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grape.constraints import Expression, FactTable, compile_condition, compile_cost
from grape.constraints.answers import parse_answer
from grape.constraints.reading import parse_json, parse_yaml
from grape.errors import ConstraintError
from tests.constraints.corpus import NAMES, cases, three_rows
from tests.constraints.grammar import DoubtfulError, reference, sentence

TABLE = three_rows()
FACTS = (
    "ee_position", "ee_quaternion", "gripper_opening", "keypoints", "grasped", "robot_contact", "finger_contact",
    "arm_contact", "goal_satisfied", "ee_force", "joint_positions",
)  # fmt: skip


def facts_of(table: FactTable) -> dict[str, np.ndarray]:
    return {name: table.fact(name) for name in FACTS}


def nudged(table: FactTable) -> FactTable:
    """The same facts, but for 1e-9 of noise in every number."""
    noise = np.random.default_rng(0)
    facts = facts_of(table)
    numbers = {name: value + noise.normal(0, 1e-9, value.shape) for name, value in facts.items() if value.dtype != bool}
    return FactTable(facts | numbers, table.keypoint_names)


NUDGED = nudged(TABLE)
kinds = st.sampled_from(["scalar", "condition"])


@st.composite
def sentences(draw: st.DrawFn, kind: str | None = None) -> tuple[str, Expression]:
    """A well-formed text and its compiled form; those that ``units.py`` refuses are left out."""
    kind = kind or draw(kinds)
    text = sentence(kind, lambda options: draw(st.sampled_from(options)), draw(st.integers(0, 3)))
    try:
        return text, (compile_cost if kind == "scalar" else compile_condition)(text)
    except ConstraintError as error:
        assert "not plausible" in str(error) or "syntax nodes" in str(error), "a well-formed text is refused"
        assume(False)
        raise


def by_plain_python(text: str, table: FactTable) -> list[float] | None:
    """The reference in every row; ``None`` where it is worth nothing in one of them."""
    try:
        values = [float(reference(text, table, row)) for row in range(table.num_rows)]
    except (ArithmeticError, ValueError):
        return None
    except DoubtfulError:
        assume(False)
        raise
    return values if np.isfinite(values).all() else None


@settings(max_examples=300, deadline=None)
@given(sentences())
def test_plain_python_agrees_row_by_row(pair: tuple[str, Expression]) -> None:
    text, expression = pair
    wanted, moved = by_plain_python(text, TABLE), by_plain_python(text, NUDGED)
    # where 1e-9 of noise decides, e.g. a comparison of equals, so may the rounding of another order of operations
    assume((wanted is None) == (moved is None))
    if wanted is None:
        with pytest.raises(ConstraintError, match="must be finite"):
            expression.evaluate(TABLE)
        return
    assume(np.allclose(wanted, moved, rtol=1e-6, atol=1e-6))
    values = expression.evaluate(TABLE)
    assert values.shape == (3,) and values.dtype == (bool if expression.kind == "condition" else np.float64)
    np.testing.assert_allclose(values.astype(float), wanted, rtol=1e-6, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(sentences())
def test_evaluation_changes_nothing_and_repeats(pair: tuple[str, Expression]) -> None:
    facts = facts_of(TABLE)
    before = {name: value.copy() for name, value in facts.items()}
    table = FactTable(facts, NAMES)
    try:
        first = pair[1].evaluate(table)
        again = pair[1].evaluate(table)
        np.testing.assert_array_equal(first, again)
        first[:] = 0  # the result is the caller's own
    except ConstraintError:
        pass
    for name, value in facts.items():
        np.testing.assert_array_equal(value, before[name])


@settings(max_examples=150, deadline=None)
@given(sentences())
def test_renaming_keypoints_commutes(pair: tuple[str, Expression]) -> None:
    text, expression = pair
    new = {"bowl_1": "plate_1", "plate_1": "cup_7"}
    renamed = re.sub("bowl_1|plate_1", lambda found: new[found[0]], text)
    other = (compile_cost if expression.kind == "scalar" else compile_condition)(renamed)
    assert other.keypoints == {new[name] for name in expression.keypoints}
    results = []
    for one, names in ((expression, NAMES), (other, tuple(new[name] for name in NAMES))):
        try:
            results.append(one.evaluate(FactTable(facts_of(TABLE), names)).tolist())
        except ConstraintError as error:
            results.append(str(error).endswith("every value must be finite"))
    assert results[0] == results[1]


fragments = st.sampled_from(
    [piece for case in cases("expressions") for piece in re.findall(r"\w+|\s+|[^\w\s]", case["text"])[:40]]
)
json_pieces = st.sampled_from(["{", "}", "[", "]", '"stages"', '"name"', ":", ",", "null", "1e999", "NaN", '"\\u0000"'])
yaml_pieces = st.sampled_from(
    ["- ", ": ", "? ", "&a", "*a", "!!int", "\n", "  ", "|", ">", "'", '"', "%", "<<", "---", "#"]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(fragments, max_size=25).map("".join) | st.text(max_size=60))
def test_any_text_is_a_finite_number_or_a_clean_error(source: str) -> None:
    for compiler in (compile_cost, compile_condition):
        try:
            values = compiler(source).evaluate(TABLE)
        except ConstraintError:
            continue
        assert values.shape == (3,) and np.isfinite(values).all()


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | st.lists(json_pieces | yaml_pieces | fragments, max_size=30).map("".join))
def test_any_text_is_plain_data_or_a_clean_error(text: str) -> None:
    for parse in (parse_json, parse_yaml):
        try:
            data = parse(text)
        except ConstraintError:
            continue
        assert json.loads(json.dumps(data, allow_nan=False)) == data


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | fragments,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
stage_fields = ("name", "done_when", "requires", "collision", "grasp", "path", "sub_goal", "thresholds")
stages = st.dictionaries(st.sampled_from(stage_fields) | st.text(max_size=5), values | st.just("goal(0)"), max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.lists(stages, max_size=3).map(lambda found: json.dumps({"stages": found})) | st.text(max_size=80))
def test_any_answer_is_constraints_or_a_clean_error(text: str) -> None:
    try:
        answer = parse_answer(text, instruction="any", keypoint_names=NAMES, num_goals=1, source="by hand")
    except ConstraintError as error:
        assert str(error).startswith("the answer ")
    else:
        assert all(math.isfinite(tau) for stage in answer.stages for tau in stage.thresholds.values())
