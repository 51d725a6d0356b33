"""A small part of what ``python -m tests.constraints.fuzz`` does for as long as one likes."""

from __future__ import annotations

from tests.constraints.fuzz import run


def test_mutated_hostile_text_finds_nothing() -> None:
    report = run(seed=1, num_cases=1500, seconds=None)
    assert report.findings == []
    tried = (
        "expression refused",
        "sentence evaluated",
        "answer refused",
        "answer accepted",
        "file refused",
        "file accepted",
    )
    for wanted in tried:
        assert report.outcomes[wanted] > 10, report.outcomes  # it does reach what it is to try
    assert report.most_nodes > 10


def test_the_fuzzer_sees_a_crash(monkeypatch) -> None:
    def broken(*arguments: object) -> None:
        raise TypeError("by hand")

    monkeypatch.setattr("tests.constraints.fuzz.load_constraints", broken)
    report = run(seed=1, num_cases=40, seconds=None)
    assert report.findings and all("TypeError: by hand" in finding for finding in report.findings)
