"""The next example's pictures are made in a thread while the current one trains: one example ahead, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from grape.models.preprocessing import center_crop
from grape.trainer.examples import example_steps

if TYPE_CHECKING:
    from grape.config.train import TrainConfig
    from grape.rlds import PreferencePair
    from grape.trainer.distributed import Ranks
    from grape.trainer.examples import Example, PairBuffer, TrainingPlan
    from grape.trainer.prepare import PairPreparer, StepBatch


@dataclass(frozen=True)
class PreparedExample:
    """An example with everything that its passes read."""

    pair: PreferencePair
    chosen_steps: range
    rejected_steps: range
    batch: StepBatch
    """Its pictures are cropped already."""


class RunParts(Protocol):
    """What is needed of a training run."""

    config: TrainConfig
    plan: TrainingPlan
    ranks: Ranks
    pairs: PairBuffer
    preparer: PairPreparer
    step: int


def prepare_example(run: RunParts, example: Example, epoch: int) -> PreparedExample:
    """Read, decode, augment, tokenise and crop.

    Raises:
        GrapeError: The pair cannot be used.
    """
    pair = run.pairs.get(example.pair_index)
    steps = example_steps(example, len(pair.chosen), len(pair.rejected), run.config.window_size)
    batch = run.preparer.batch(pair, epoch=epoch, chosen_steps=steps[0], rejected_steps=steps[1])
    return PreparedExample(pair, *steps, cropped(batch))


def cropped(batch: StepBatch) -> StepBatch:
    """With the centre crop done, once instead of in every pass."""
    if not batch.center_crop:
        return batch
    images = np.stack([center_crop(image, image.shape[0]) for image in batch.images])
    return dataclasses.replace(batch, images=images, center_crop=False)


class ExamplesAhead:
    """Gives this process's examples in training order, having begun on the next one.

    An error in the thread is raised where its example is asked for. Use as a context, so that the thread ends with it.
    """

    def __init__(self, run: RunParts) -> None:
        self._run = run
        self._coming = self._order() if run.config.prefetch else iter(())
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grape-prefetch")
        self._next: tuple[tuple[int, Example], Future[PreparedExample]] | None = None

    def __enter__(self) -> ExamplesAhead:
        self._begin()
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def take(self, example: Example, epoch: int) -> PreparedExample:
        """The example, prepared; one that is out of turn (a step is taken again) is prepared here."""
        if self._next is None or self._next[0] != (epoch, example):
            return prepare_example(self._run, example, epoch)
        prepared = self._next[1].result()
        self._begin()
        return prepared

    def _begin(self) -> None:
        key = next(self._coming, None)
        if key is None:
            self._next = None
        else:
            self._next = key, self._executor.submit(prepare_example, self._run, key[1], key[0])

    def _order(self) -> Iterator[tuple[int, Example]]:
        for epoch, examples in self._run.plan.steps(self._run.step):
            for example in examples[self._run.ranks.rank :: self._run.ranks.world_size]:
                yield epoch, example
