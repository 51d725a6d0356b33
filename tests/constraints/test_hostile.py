"""Each case of the hostile corpus is refused, by ``ConstraintError`` alone, for the reason that the corpus states."""

from __future__ import annotations

from pathlib import Path

import pytest

from grape.constraints import compile_condition, compile_cost, load_constraints
from grape.constraints.answers import parse_answer
from grape.errors import ConstraintError
from tests.constraints.corpus import NAMES, Case, cases, labels, three_rows, write_file

EXPRESSIONS, ANSWERS, FILES, ACCEPTED = map(cases, ("expressions", "answers", "files", "accepted_answers"))
TABLE = three_rows()


@pytest.mark.parametrize("case", EXPRESSIONS, ids=labels(EXPRESSIONS))
def test_an_expression_is_refused(case: Case) -> None:
    messages = []
    for compiler in (compile_cost, compile_condition):
        with pytest.raises(ConstraintError) as caught:
            compiler(case["text"]).evaluate(TABLE)
        messages.append(str(caught.value))
    assert any(case["says"] in message for message in messages)
    assert all(len(message) < 1500 and message.isprintable() for message in messages)


@pytest.mark.parametrize("case", ANSWERS, ids=labels(ANSWERS))
def test_an_answer_is_refused(case: Case) -> None:
    with pytest.raises(ConstraintError) as caught:
        parse_answer(case["text"], instruction="put it there", keypoint_names=NAMES, num_goals=1, source="by hand")
    message = str(caught.value)
    assert case["says"] in message and message.startswith("the answer ")
    assert len(message) < 8000 and message.replace("\n", " ").isprintable()  # fit to be sent back, and to be printed


@pytest.mark.parametrize("case", FILES, ids=labels(FILES))
def test_a_file_is_refused(tmp_path: Path, case: Case) -> None:
    path = write_file(tmp_path, case)
    with pytest.raises(ConstraintError) as caught:
        load_constraints(path)
    assert str(caught.value).startswith(f"{path}: ") and case["says"] in str(caught.value)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("case", ACCEPTED, ids=labels(ACCEPTED))
def test_what_chat_models_put_around_an_answer_is_taken_off(case: Case) -> None:
    answer = parse_answer(case["text"], instruction="put it there", keypoint_names=NAMES, num_goals=1, source="by hand")
    assert [stage.name for stage in answer.stages] == ["grasp", "carry", "place"]
    assert answer.stages[1].thresholds == {"collision": 2, "path": 0.8} and answer.source == "by hand"


def test_the_corpus_is_large_and_its_cases_differ() -> None:
    for found in (EXPRESSIONS, ANSWERS, FILES):
        texts = {(case.get("text", case.get("hex")), case.get("suffix")) for case in found}
        assert len(texts) == len(found) >= 140
    wanted = {
        "attribute walk", "dunder access", "comprehension bomb", "huge power", "unicode look-alike",
        "string formatting", "deep nesting", "prompt injection", "non-JSON", "half JSON", "wrong keypoint id",
        "wrong units", "stages out of order",
    }  # fmt: skip
    assert wanted <= {case["kind"] for case in EXPRESSIONS + ANSWERS}
