"""Order, windows and steps of a run."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grape.errors import PairingError
from grape.rlds import PreferencePair
from grape.trainer.examples import (
    Example,
    PairBuffer,
    TrainingPlan,
    epoch_examples,
    example_steps,
    make_plan,
    num_windows,
    survey_pairs,
)
from grape.trainer.schedule import learning_rate_at
from tests.trainer import tiny


def plan(**changes: object) -> TrainingPlan:
    values: dict[str, object] = {"num_pairs": 10, "windows": None, "seed": 1, "buffer_size": 4, "examples_per_step": 3}
    values |= {"num_epochs": 2, "max_steps": None}
    return TrainingPlan(**values | changes)  # type: ignore[arg-type]


def test_an_epoch_has_every_pair_once_and_shuffles_within_buffers() -> None:
    order = [example.pair_index for example in epoch_examples(10, seed=1, epoch=0, buffer_size=4)]
    assert [sorted(order[start : start + 4]) for start in (0, 4, 8)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert order != sorted(order)
    assert order == [example.pair_index for example in epoch_examples(10, seed=1, epoch=0, buffer_size=4)]
    assert order != [example.pair_index for example in epoch_examples(10, seed=1, epoch=1, buffer_size=4)]
    assert order != [example.pair_index for example in epoch_examples(10, seed=2, epoch=0, buffer_size=4)]


def test_buffer_of_one_keeps_the_stored_order() -> None:
    assert [example.pair_index for example in epoch_examples(5, seed=1, epoch=0, buffer_size=1)] == [0, 1, 2, 3, 4]


def test_steps_cover_each_epoch_with_a_short_last_step() -> None:
    steps = list(plan().steps(0))
    assert [(epoch, len(examples)) for epoch, examples in steps] == [(e, n) for e in (0, 1) for n in (3, 3, 3, 1)]
    for number in (0, 1):
        seen = Counter(example.pair_index for epoch, examples in steps if epoch == number for example in examples)
        assert seen == Counter(range(10))


def test_resumed_steps_are_the_rest() -> None:
    whole = list(plan().steps(0))
    assert [list(plan().steps(start)) for start in range(9)] == [whole[start:] for start in range(9)]


def test_max_steps_ends_the_run() -> None:
    assert plan(max_steps=5).num_steps == len(list(plan(max_steps=5).steps(0))) == 5
    assert plan(max_steps=500).num_steps == 8


def test_windows_by_hand() -> None:
    assert num_windows(10, 12, 8) == 3  # starts 0, 1, 2
    assert num_windows(8, 100, 8) == 1
    assert num_windows(5, 100, 8) == 1
    assert example_steps(Example(0, 2), 10, 12, 8) == (range(2, 10), range(2, 10))
    assert example_steps(Example(0, 0), 5, 100, 8) == (range(0, 5), range(0, 8))
    assert example_steps(Example(0), 5, 100, 8) == (range(5), range(100))
    assert example_steps(Example(0, aligned=True), 5, 100, 8) == (range(5), range(5))
    assert example_steps(Example(0, aligned=True), 9, 3, 8) == (range(3), range(3))


def test_window_examples_are_all_windows_of_all_pairs(checkpoint: Path, tmp_path: Path) -> None:
    pairs = tiny.make_pairs([(10, 12), (5, 9), (9, 9)], first_action_id=0)
    config = tiny.tiny_config(checkpoint, tmp_path, objective="window", batch_size=2, shuffle_buffer_size=2)
    made = make_plan(config, survey_pairs(pairs), num_processes=3)
    assert made.windows == (3, 1, 2)
    assert (made.examples_per_epoch, made.examples_per_step, made.num_steps) == (6, 6, 1)
    [(_, examples)] = made.steps(0)
    assert set(examples) == {Example(0, 0), Example(0, 1), Example(0, 2), Example(1, 0), Example(2, 0), Example(2, 1)}


def test_step_examples_are_the_pairs_without_what_only_one_side_has(checkpoint: Path, tmp_path: Path) -> None:
    pairs = tiny.make_pairs([(3, 4), (5, 2), (2, 2)], first_action_id=0)
    config = tiny.tiny_config(checkpoint, tmp_path, objective="step", shuffle_buffer_size=1)
    made = make_plan(config, survey_pairs(pairs), num_processes=1)
    examples = [example for _, [example] in made.steps(0)]
    assert examples == [Example(index, aligned=True) for index in range(3)]


def test_the_survey_notices_every_change_of_the_pairs() -> None:
    pair, other = tiny.make_pairs([(3, 4), (3, 4)], first_action_id=0).pairs

    def digest(*pairs: PreferencePair) -> str:
        return survey_pairs(tiny.MemoryPairs(pairs)).digest

    def with_chosen(**changes: Any) -> PreferencePair:
        return dataclasses.replace(pair, chosen=dataclasses.replace(pair.chosen, **changes))

    assert digest(pair, other) == digest(*tiny.make_pairs([(3, 4), (3, 4)], first_action_id=0).pairs)
    digests = [
        digest(pair, other),
        digest(other, pair),
        digest(dataclasses.replace(pair, pair_id="renamed"), other),
        digest(dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen), other),
        digest(with_chosen(instruction="open the drawer"), other),
        digest(with_chosen(action_tokens=pair.chosen.action_tokens + 1), other),  # type: ignore[operator]
        digest(with_chosen(action_tokens=None), other),
        digest(with_chosen(encoded_images=(*pair.chosen.encoded_images[:2], b"other")), other),
    ]
    assert len(set(digests)) == len(digests)


class CountingPairs(tiny.MemoryPairs):
    """Notes which ranges were read."""

    def __init__(self, pairs: list[PreferencePair]) -> None:
        super().__init__(pairs)
        self.reads: list[tuple[int, int | None]] = []

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[PreferencePair]:
        self.reads.append((start, stop))
        return super().iterate(start, stop)


def test_a_buffer_is_read_once_while_it_is_used() -> None:
    source = CountingPairs(tiny.make_pairs([(1, 1)] * 5, first_action_id=0).pairs)
    buffer = PairBuffer(source, size=2)
    assert [buffer.get(index).pair_id[:6] for index in (1, 0, 2, 3, 2, 4)] == [
        "000001", "000000", "000002", "000003", "000002", "000004",
    ]  # fmt: skip
    assert source.reads == [(0, 2), (2, 4), (4, 5)]


def test_learning_rate_by_hand() -> None:
    def rates(steps: list[int], **settings: Any) -> list[float]:
        return [learning_rate_at(step, peak=1.0, num_steps=10, **settings) for step in steps]

    assert rates([0, 1, 3, 4, 9], schedule="constant", warmup_steps=4) == [0.25, 0.5, 1.0, 1.0, 1.0]
    # half a cosine over the 8 steps after warm-up: 1 at its start, 1/2 in the middle, (1 + cos(7π/8)) / 2 at the end
    assert rates([0, 2, 6, 9], schedule="cosine", warmup_steps=2) == pytest.approx([0.5, 1.0, 0.5, 0.0380602])


@pytest.mark.parametrize(
    ("scores", "refused"),
    [
        ([(0.0, 1.0), (1.0, 2.0)], True),
        ([(0.0, 1.0), (math.nan, math.nan)], True),
        ([(1.0, 0.0), (1.0, 2.0)], False),  # most labels may come from elsewhere
        ([(1.0, 1.0), (0.0, 1.0)], False),
        ([(math.nan, 1.0), (None, 1.0)], False),
    ],
)
def test_scores_show_which_side_is_which(scores: list[tuple[float | None, float]], refused: bool) -> None:
    pairs = tiny.make_pairs([(2, 3), (3, 2)], first_action_id=1)
    scored = [
        dataclasses.replace(
            pair,
            chosen=dataclasses.replace(pair.chosen, metadata={"score": chosen}),
            rejected=dataclasses.replace(pair.rejected, metadata={"score": rejected}),
        )
        for pair, (chosen, rejected) in zip(pairs.pairs, scores, strict=True)
    ]
    if refused:
        with pytest.raises(PairingError, match="wrong way round"):
            survey_pairs(tiny.MemoryPairs(scored))
    else:
        survey_pairs(tiny.MemoryPairs(scored))
