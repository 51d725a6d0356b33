"""Which examples a run trains on, and in which order: pure functions of counts and a seed.

An example is a pair, or, with the window objective, one window of a pair; with the step objective, the time steps that
both trajectories of a pair have. Pairs are read in stored order into a buffer of ``buffer_size`` pairs; the examples
of one buffer are shuffled among themselves. So the order is known without reading anything, a resumed run finds its
place from the step alone, and memory is bounded by the buffer.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from grape.errors import PairingError
from grape.trainer.data_digest import add_to_digest

if TYPE_CHECKING:
    from grape.config.train import TrainConfig
    from grape.rlds import EpisodeData, PreferencePair


class PairSource(Protocol):
    """What the trainer needs of a data set of pairs; ``grape.rlds.PairDataset`` is one."""

    def __len__(self) -> int:
        """Number of pairs."""

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[PreferencePair]:
        """Pairs ``start`` to ``stop`` in stored order."""


@dataclass(frozen=True)
class Example:
    """One term of the loss."""

    pair_index: int
    """Position of the pair in the data set."""
    window_start: int | None = None
    """First step of the window; ``None`` for the whole trajectories."""
    aligned: bool = False
    """Without a window: only the time steps that both trajectories have."""


def num_windows(num_chosen: int, num_rejected: int, window_size: int) -> int:
    """Windows of a pair: one per step at which both trajectories still have a whole window, and at least one."""
    return max(1, min(num_chosen, num_rejected) - window_size + 1)


def example_steps(example: Example, num_chosen: int, num_rejected: int, window_size: int) -> tuple[range, range]:
    """Time steps of chosen and rejected that an example covers.

    Windows are aligned by time step: window ``s`` is steps ``s`` to ``s + window_size`` of both. What the longer
    trajectory has beyond the end of the shorter one has no counterpart and is in no window, nor in an aligned example;
    a trajectory that is shorter than a window is covered by its own end.
    """
    if example.window_start is None:
        if example.aligned:
            num_chosen = num_rejected = min(num_chosen, num_rejected)
        return range(num_chosen), range(num_rejected)
    start, stop = example.window_start, example.window_start + window_size
    return range(start, min(stop, num_chosen)), range(start, min(stop, num_rejected))


def epoch_examples(
    num_pairs: int,
    *,
    seed: int,
    epoch: int,
    buffer_size: int,
    windows: Sequence[int] | None = None,
    aligned: bool = False,
) -> list[Example]:
    """All examples of an epoch, in training order.

    Args:
        num_pairs: Pairs in the data set.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0; each has its own order.
        buffer_size: Pairs within which the order is shuffled; 1 keeps the stored order of pairs.
        windows: Number of windows of each pair; ``None`` makes one example of each pair.
        aligned: These examples cover only the time steps that both trajectories have.
    """
    ordered: list[Example] = []
    for start in range(0, num_pairs, buffer_size):
        indices = range(start, min(start + buffer_size, num_pairs))
        if windows is None:
            examples = [Example(index, aligned=aligned) for index in indices]
        else:
            examples = [Example(index, window) for index in indices for window in range(windows[index])]
        generator = np.random.default_rng(np.random.SeedSequence([seed, epoch, start]))
        ordered += [examples[position] for position in generator.permutation(len(examples))]
    return ordered


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How a run's optimiser steps map to examples."""

    num_pairs: int
    windows: tuple[int, ...] | None
    seed: int
    buffer_size: int
    examples_per_step: int
    """Over all processes and accumulation steps; the last step of an epoch may have fewer."""
    num_epochs: int
    max_steps: int | None
    aligned: bool = False
    """As in ``epoch_examples``."""

    @property
    def examples_per_epoch(self) -> int:
        """Terms of the loss in one pass over the data."""
        return self.num_pairs if self.windows is None else sum(self.windows)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the data."""
        return math.ceil(self.examples_per_epoch / self.examples_per_step)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        steps = self.num_epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def steps(self, start: int) -> Iterator[tuple[int, list[Example]]]:
        """From optimiser step ``start`` on: the epoch's number and the examples of each step."""
        order: list[Example] = []
        order_epoch = -1
        for step in range(start, self.num_steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self._order(epoch), epoch
            first = position * self.examples_per_step
            yield epoch, order[first : first + self.examples_per_step]

    def _order(self, epoch: int) -> list[Example]:
        return epoch_examples(
            self.num_pairs,
            seed=self.seed,
            epoch=epoch,
            buffer_size=self.buffer_size,
            windows=self.windows,
            aligned=self.aligned,
        )


@dataclass(frozen=True, kw_only=True)
class PairSurvey:
    """One pass over the pairs, pictures not decoded."""

    lengths: tuple[tuple[int, int], ...]
    """Time steps of chosen and rejected, of each pair."""
    digest: str
    """Of all pair ids, and of the episodes as ``add_to_digest`` says, in stored order."""
    longest_instruction: str
    """The one with the most characters."""


def survey_pairs(pairs: PairSource) -> PairSurvey:
    """Read a data set once; one pair is in memory at a time.

    Raises:
        PairingError: Chosen and rejected are the wrong way round, as the scores of the pairs show.
    """
    digest = hashlib.blake2b(digest_size=16)
    lengths, margins = [], []
    longest_instruction = ""
    for pair in pairs.iterate():
        lengths.append((len(pair.chosen), len(pair.rejected)))
        margins.append(_score(pair.chosen) - _score(pair.rejected))
        digest.update(f"{pair.pair_id} {lengths[-1]}".encode())
        for episode in (pair.chosen, pair.rejected):
            add_to_digest(digest, episode)
            longest_instruction = max(longest_instruction, episode.instruction, key=len)
    known = [margin for margin in margins if not math.isnan(margin)]
    if known and max(known) < 0:  # each: labels that mostly agree with the scores are their maker's business
        raise PairingError(
            f"in each of the {len(known)} scored pairs the chosen trajectory has the lower score: the folders are the "
            "wrong way round; swap --chosen_traj_dir and --rejected_traj_dir"
        )
    return PairSurvey(lengths=tuple(lengths), digest=digest.hexdigest(), longest_instruction=longest_instruction)


def _score(episode: EpisodeData) -> float:
    """As ``grape pair`` stored it; NaN where the data set does not say."""
    score = episode.metadata.get("score")
    return score if isinstance(score, float) else math.nan


def make_plan(config: TrainConfig, survey: PairSurvey, *, num_processes: int) -> TrainingPlan:
    """Lay out a run."""
    windows = None
    if config.objective == "window":
        windows = tuple(num_windows(chosen, rejected, config.window_size) for chosen, rejected in survey.lengths)
    return TrainingPlan(
        num_pairs=len(survey.lengths),
        windows=windows,
        seed=config.seed,
        buffer_size=config.shuffle_buffer_size,
        examples_per_step=config.batch_size * config.grad_accumulation_steps * num_processes,
        num_epochs=config.epoch,
        max_steps=config.max_steps,
        aligned=config.objective == "step",
    )


class PairBuffer:
    """Random access to the pairs of one buffer at a time; pictures stay encoded in it."""

    def __init__(self, source: PairSource, size: int) -> None:
        self._source = source
        self._size = size
        self._start = -1
        self._pairs: list[PreferencePair] = []
        self._lock = threading.Lock()  # the next example is prepared in a thread

    def get(self, index: int) -> PreferencePair:
        """The pair at a position of the data set; reads its buffer when it is not the one held."""
        start = index - index % self._size
        with self._lock:
            if start != self._start:
                stop = min(start + self._size, len(self._source))
                self._pairs, self._start = [], -1  # first, so that two buffers are never held at once
                self._pairs = list(self._source.iterate(start, stop))
                self._start = start
            return self._pairs[index - start]
