"""``grape export``: rollouts or demonstrations as one RLDS data set, for supervised fine-tuning."""

from __future__ import annotations

import math
import shlex
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from grape.cli.arguments import parse_config
from grape.config.pair import ExportConfig
from grape.errors import DatasetError
from grape.rlds import ACTION_TRANSFORMS, ExportEpisode, dataset_statistics, publish, write_dataset, write_statistics
from grape.rlds.writer import VERSION, check_dataset_name
from grape.rollouts.store import RolloutStore
from grape.trajectory import EpisodeInfo, Trajectory


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, export, report."""
    config = parse_config(ExportConfig, "export", argv)
    for split, count in export_runs(config).items():
        print(f"{split}: {count} episodes")
    flags = shlex.join(["--data_root_dir", str(config.out), "--dataset_name", config.dataset_name])
    print(f"wrote {config.out / config.dataset_name / VERSION}; fine-tune with: {flags}")
    return 0


def export_runs(config: ExportConfig) -> dict[str, int]:
    """Write one data set from the runs' episodes; returns the number of episodes of each split.

    Raises:
        DatasetError: No episode qualifies, the data set exists already, or the disk is full.
        RecordError: A run is damaged.
    """
    check_dataset_name(config.dataset_name)
    sources = list(_select(config))
    if not sources:
        raise DatasetError(
            f"none of the runs' episodes qualifies (only {config.only}, none crashed); nothing was written"
        )
    validation = _validation_states([source.info for source in sources], config.val_fraction)
    tally = _Tally()
    train = [source for source in sources if _state(source.info) not in validation]
    held_out = [source for source in sources if _state(source.info) in validation]
    splits = {"train": _episodes(train, "train", tally)}
    if held_out:
        splits["val"] = _episodes(held_out, "val", tally)
    with publish(config.out / config.dataset_name) as working:
        counts = write_dataset(working / VERSION, config.dataset_name, splits)
        statistics = dataset_statistics(config.dataset_name, tally.actions, tally.states)
        write_statistics(working / VERSION, statistics)
    return counts


@dataclass(frozen=True)
class _Source:
    store: RolloutStore
    info: EpisodeInfo


class _Tally:
    """Actions and states of all episodes that were written: numbers only, about 60 bytes a step."""

    def __init__(self) -> None:
        self.actions: list[np.ndarray] = []
        self.states: list[np.ndarray] = []

    def add(self, trajectory: Trajectory) -> None:
        simulator = trajectory.info.simulator
        to_policy = ACTION_TRANSFORMS.get(simulator)
        # Simulators whose stored action has no known way back: the policy's own output is in its convention.
        self.actions.append(to_policy(trajectory.actions) if to_policy else trajectory.policy_actions)
        self.states.append(trajectory.states)


def _select(config: ExportConfig) -> Iterator[_Source]:
    wanted = ("success",) if config.only == "success" else ("success", "failure")
    for run in _distinct(config.runs):
        store = RolloutStore(run)
        for info in store.infos():
            if info.status in wanted and info.num_steps > 0:
                yield _Source(store, info)


def _distinct(runs: Sequence[Path]) -> Sequence[Path]:
    if not runs:
        raise DatasetError("no run was given; usage: grape export RUN [RUN …] --out DIR --dataset_name NAME")
    resolved = [run.resolve() for run in runs]
    for run in resolved:
        if resolved.count(run) > 1:
            raise DatasetError(f"{run} was given twice; name each run once")
    return runs


def _episodes(sources: Sequence[_Source], split: str, tally: _Tally) -> Iterator[ExportEpisode]:
    for source in tqdm(sources, desc=f"writing {split}", unit="episode", disable=None):
        trajectory = source.store.load(source.info.episode_id)
        tally.add(trajectory)
        yield ExportEpisode(trajectory=trajectory, run=source.store.run_dir.resolve().name)


def _state(info: EpisodeInfo) -> tuple[str, int, str]:
    return info.suite, info.task_id, info.init_state_id


def _validation_states(infos: Sequence[EpisodeInfo], fraction: float) -> set[tuple[str, int, str]]:
    """A fixed share of each task's initial states, chosen by a checksum of the state's name, not by its place."""
    chosen: set[tuple[str, int, str]] = set()
    states = {_state(info) for info in infos}
    for suite, task_id in sorted({state[:2] for state in states}):
        of_task = [state for state in states if state[:2] == (suite, task_id)]
        of_task.sort(key=lambda state: (zlib.crc32(repr(state).encode()), state))
        count = math.floor(fraction * len(of_task))
        if fraction and not count:
            print(
                f"warning: val_fraction {fraction:g} of {suite} task {task_id}'s initial states ({len(of_task)}) is "
                "less than one: none is held out for validation",
                file=sys.stderr,
            )
        chosen.update(of_task[:count])
    return chosen
