"""A fuzzer for the constraint language, answers and files: ``python -m tests.constraints.fuzz --seconds 60``.

Cases are the hostile corpus, sentences of the grammar and a valid answer, mutated by bytes, by tokens, by fields, and
by splicing two of them. A finding is anything but a finite result or a ``ConstraintError``, a message that is not fit
to be shown, a node that is computed more than once per evaluation, or more memory than follows from the limits.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from grape.constraints import FactTable, compile_condition, compile_cost, expression, load_constraints, translate
from grape.constraints.answers import parse_answer
from grape.constraints.expression import MAX_NODES
from grape.errors import ConstraintError
from tests.constraints.corpus import NAMES, cases, three_rows
from tests.constraints.grammar import random_sentence

MAX_MEMORY_BYTES = 30_000_000
"""For one case: 128 KiB of text as plain data or as PyYAML's nodes, of up to some 200 bytes for each byte."""
NOISE = "\x00\n\t \"'\\()[]{}<>*&!|:;,.#%@`~^-+=/_?é\ufeff\u202e\ud800０ｎ"


@dataclass
class Report:
    """What was tried and what came of it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    most_nodes: int = 0
    """The most nodes that one evaluation computed."""
    slowest: tuple[float, str] = (0.0, "")
    """Seconds of processor time of the slowest case, and its text; printed, never judged."""
    largest: tuple[int, str] = (0, "")
    """Bytes of the case that needed the most memory at once."""


class Fuzzer:
    """Makes cases from one seed and tries them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.table: FactTable = three_rows()
        self.folder = folder
        self.report = Report()
        expressions, answers, files, accepted = map(cases, ("expressions", "answers", "files", "accepted_answers"))
        self.expressions = [case["text"] for case in expressions]
        self.answers = [case["text"] for case in answers + accepted]
        self.valid = next(case["text"] for case in accepted if case["kind"] == "fields left out")
        self.files = [(case["suffix"], case["text"]) for case in files if "text" in case]
        self.tokens = sorted({token for text in self.expressions for token in re.findall(r"\w+|[^\w\s]+", text)[:30]})
        self.num_computed = 0

    def step(self) -> None:
        """One case of one kind."""
        target = self.random.choice(("expression", "expression", "sentence", "answer", "file"))
        text, suffix = self._case(target)
        began = time.process_time()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            outcome = self._try(target, text, suffix)
        except ConstraintError:
            outcome = "refused"
        except (Exception, RecursionError) as error:  # a fuzzer looks for whatever else there is
            outcome = "crash"
            self.report.findings.append(f"{target} {text!r}: {type(error).__name__}: {error}")
        seconds, size = time.process_time() - began, tracemalloc.get_traced_memory()[1] - before
        self.report.outcomes[f"{target} {outcome}"] += 1
        self.report.slowest = max(self.report.slowest, (seconds, f"{target} {text!r}"))
        self.report.largest = max(self.report.largest, (size, f"{target} {text[:200]!r}"))
        if size > MAX_MEMORY_BYTES:
            self.report.findings.append(f"{target} {text[:500]!r}: {size} bytes")

    def _case(self, target: str) -> tuple[str, str]:
        if target == "sentence":
            text = random_sentence(self.random.choice(("scalar", "condition")), self.random)
            return (self._mutated(text, self.expressions) if self.random.random() < 0.5 else text), ""
        if target == "expression":
            return self._mutated(self.random.choice(self.expressions), self.expressions), ""
        if target == "answer":
            whole = self._stages() if self.random.random() < 0.5 else self.random.choice(self.answers)
            return (self._mutated(whole, self.answers) if self.random.random() < 0.5 else whole), ""
        suffix, text = self.random.choice(self.files)
        if self.random.random() < 0.5:
            return json.dumps({"instruction": "fuzz"} | json.loads(self._stages())), self.random.choice(
                ("json", "yaml")
            )
        return self._mutated(text, [other for _, other in self.files]), suffix

    def _stages(self) -> str:
        """A valid answer with some fields of some stages put in place of others, by values of any kind."""
        data = json.loads(self.valid)
        data["stages"][1].pop("thresholds")
        for _ in range(self.random.randint(0, 3)):
            stage = self.random.choice(data["stages"])
            kinds = (
                lambda: random_sentence("condition", self.random, 3),
                lambda: random_sentence("scalar", self.random, 3),
                lambda: self.random.choice(self.expressions),
                lambda: self.random.choice((None, True, -1, 0.5, 1e300, float("nan"), [], {}, "", "a" * 600)),
                lambda: {self.random.choice(("path", "sub_goal", "pth")): self.random.choice((0.4, 40, None, "1"))},
            )
            stage[self.random.choice((*stage, "path", "requires", "thresholds"))] = self.random.choice(kinds)()
        if self.random.random() < 0.2:
            self.random.shuffle(data["stages"])
        return json.dumps(data)

    def _mutated(self, text: str, others: list[str]) -> str:
        for _ in range(self.random.randint(1, 4)):
            place = self.random.randint(0, len(text))
            end = min(len(text), place + self.random.choice((0, 1, 1, 3, 20)))
            text = text[:place] + self._inserted(text[place:end], others) + text[end:]
        return text[:200_000]

    def _inserted(self, removed: str, others: list[str]) -> str:
        kinds = (
            lambda: "",
            lambda: self.random.choice(NOISE) * self.random.choice((1, 1, 2, 500)),
            lambda: self.random.choice(self.tokens),
            lambda: self._piece(self.random.choice(others)),
            lambda: removed * self.random.choice((2, 30)),
            lambda: random_sentence("scalar", self.random, 2),
            lambda: json.dumps(random_sentence("condition", self.random, 2)),
        )
        return self.random.choice(kinds)()

    def _piece(self, text: str) -> str:
        place = self.random.randint(0, len(text))
        return text[place : place + self.random.randint(0, 60)]

    def _try(self, target: str, text: str, suffix: str) -> str:
        if target == "answer":
            parse_answer(text, instruction="fuzz", keypoint_names=NAMES, num_goals=1, source="by hand")
            return "accepted"
        if target == "file":
            path = self.folder / f"task.{suffix}"
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            load_constraints(path)
            return "accepted"
        outcome = "refused"
        for compiler in (compile_cost, compile_condition):
            try:
                compiled = compiler(text)
            except ConstraintError as error:
                if len(str(error)) > 2000 or not str(error).isprintable():
                    raise AssertionError("a message that is not fit to be shown") from error
                continue
            outcome = "not finite, or unknown"
            self.num_computed = 0
            try:
                values = compiled.evaluate(self.table)
            finally:
                self.report.most_nodes = max(self.report.most_nodes, self.num_computed)
                assert self.num_computed <= MAX_NODES, "nodes are computed more than once"
            assert values.shape == (self.table.num_rows,) and np.isfinite(values).all(), "not finite"
            outcome = "evaluated"
        return outcome


def run(seed: int, num_cases: int | None, seconds: float | None) -> Report:
    """Fuzz until a number of cases, or of seconds, is over."""
    plain = translate._finite
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(seed, Path(folder))

        def finite(run: translate.Run, source: str) -> translate.Run:
            checked = plain(run, source)

            def count(table: FactTable, wanted: np.ndarray) -> np.ndarray:
                fuzzer.num_computed += 1
                return checked(table, wanted)

            return count

        translate._finite = finite
        expression._compile_text.cache_clear()  # what is compiled from here on is counted
        tracemalloc.start()
        began, done = time.monotonic(), 0
        try:
            while (num_cases is None or done < num_cases) and (seconds is None or time.monotonic() - began < seconds):
                fuzzer.step()
                done += 1
        finally:
            tracemalloc.stop()
            translate._finite = plain
            expression._compile_text.cache_clear()
    return fuzzer.report


def main() -> None:
    """Fuzz, print the report, and fail if there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the cases; the same seed makes the same cases")
    parser.add_argument("--cases", type=int, default=None, help="stop after so many cases")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so many seconds")
    arguments = parser.parse_args()
    if arguments.cases is None and arguments.seconds is None:
        parser.error("say when to stop: --cases or --seconds")
    report = run(arguments.seed, arguments.cases, arguments.seconds)
    print(f"{sum(report.outcomes.values())} cases, {len(report.findings)} findings")
    for outcome, count in sorted(report.outcomes.items()):
        print(f"  {outcome}: {count}")
    print(f"most nodes computed in one evaluation: {report.most_nodes} (limit {MAX_NODES})")
    print(f"most memory: {report.largest[0]} bytes, {report.largest[1]}")
    print(f"slowest, traced: {report.slowest[0]:.3f} s of processor time, {report.slowest[1][:300]}")
    for finding in report.findings:
        print(f"FOUND {finding[:2000]}")
    raise SystemExit(bool(report.findings))


if __name__ == "__main__":
    main()
