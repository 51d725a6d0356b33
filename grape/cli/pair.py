"""``grape pair``: scored rollouts in, two RLDS data sets out."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from grape.cli.arguments import parse_config
from grape.cli.score import FORMAT_VERSION
from grape.config.pair import PairConfig
from grape.errors import PairingError, RecordError
from grape.preferences import PairingReport, ScoredEpisode, pair_episodes
from grape.rlds import ExportEpisode, publish, write_dataset
from grape.rlds.writer import VERSION, check_dataset_name
from grape.rollouts.store import RolloutStore

REPORT_FILE = "pairing.json"
_SCORED_AS = ("init_state_id", "num_steps", "checkpoint_hash")
"""What a scores file repeats of an episode's header: it must still be the same episode."""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, pair, write, report."""
    config = parse_config(PairConfig, "pair", argv)
    report = pair_runs(config)
    print(report.text())
    if not config.dry_run:
        flags = ["--chosen_traj_dir", str(config.out / "chosen"), "--rejected_traj_dir", str(config.out / "rejected")]
        print(f"wrote {config.out}; train with: {shlex.join([*flags, '--dataset_name', config.dataset_name])}")
    return 0


def pair_runs(config: PairConfig) -> PairingReport:
    """Pair the runs' episodes and, unless it is a dry run, write both data sets.

    Raises:
        PairingError: Nothing could be paired, or what was given does not go together.
        RecordError: A run or a scores file is damaged.
        DatasetError: ``out`` exists, is being written by another run, or the disk is full.
    """
    check_dataset_name(config.dataset_name)
    stores = [RolloutStore(run) for run in config.runs]
    runs = [
        ScoredRun(store, path, read_scores(path))
        for store, path in zip(stores, _scores_files(config.runs, config.scores), strict=True)
    ]
    _refuse_unknown_scores(runs, shared=len(config.scores) == 1 and len(runs) > 1)
    _refuse_other_settings(runs)
    report = pair_episodes([episode for run in runs for episode in run.episodes()], config.pairing)
    if config.dry_run:
        return report
    if not report.pairs:
        print(report.text(), file=sys.stderr)
        raise PairingError("no pair could be made, so nothing was written; the reasons are listed above")
    write_pairs(config.out, config.dataset_name, report, runs)
    return report


@dataclass(frozen=True)
class ScoredRun:
    """A run folder and the scores of its episodes."""

    store: RolloutStore
    scores_path: Path
    scores: dict[str, Any]

    def episodes(self) -> Iterator[ScoredEpisode]:
        """Headers with scores, in order of their ids; pictures are not read."""
        for info in self.store.infos():
            entry = self.scores["episodes"].get(info.episode_id, {})
            path = self.store.episodes_dir.resolve() / f"{info.episode_id}.npz"
            for name in _SCORED_AS:
                if name in entry and entry[name] != getattr(info, name):
                    raise PairingError(
                        f"{self.scores_path} scored {info.episode_id} with {name} {entry[name]!r}, but {path} has "
                        f"{getattr(info, name)!r}; the run has changed since: score it again with grape score"
                    )
            yield ScoredEpisode(info=info, score=entry.get("score"), terms=entry, path=path)


def read_scores(path: Path) -> dict[str, Any]:
    """Read a scores file.

    Raises:
        RecordError: It is missing, or not a scores file of this format.
    """
    try:
        scores = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is not a readable scores file ({error}); make one with: grape score RUN") from error
    if not isinstance(scores, dict) or not isinstance(scores.get("episodes"), dict):
        raise RecordError(f'{path} has no "episodes"; make a scores file with: grape score RUN')
    version = scores.get("format_version", FORMAT_VERSION)  # scores of other origin need not name one
    if version != FORMAT_VERSION:
        raise RecordError(f"{path} has format version {version}, this release reads {FORMAT_VERSION}")
    for name, entry in scores["episodes"].items():
        score = entry.get("score") if isinstance(entry, dict) else entry
        if not isinstance(entry, dict) or isinstance(score, bool) or not isinstance(score, int | float | None):
            raise RecordError(
                f"{path}: the score of {name} is {score!r}; wanted a number; score again with: grape score"
            )
    return scores


def write_pairs(out: Path, dataset_name: str, report: PairingReport, runs: Sequence[ScoredRun]) -> None:
    """Publish ``chosen``, ``rejected`` and the report under ``out``, all at once."""
    by_folder = {run.store.episodes_dir.resolve(): run for run in runs}
    sides: tuple[Literal["chosen"], Literal["rejected"]] = ("chosen", "rejected")
    with publish(out) as working:
        for side in sides:
            episodes = _side(report, side, by_folder)
            write_dataset(working / side / dataset_name / VERSION, dataset_name, {"train": episodes})
        (working / REPORT_FILE).write_text(json.dumps(report.to_json(), indent=2) + "\n")


def _side(
    report: PairingReport, side: Literal["chosen", "rejected"], by_folder: dict[Path, ScoredRun]
) -> Iterator[ExportEpisode]:
    for pair in tqdm(report.pairs, desc=f"writing {side}", unit="episode", disable=None):
        episode = pair.chosen if side == "chosen" else pair.rejected
        assert episode.path is not None, "episodes of a run folder have a path"
        run = by_folder[episode.path.parent]
        yield ExportEpisode(
            trajectory=run.store.load(episode.info.episode_id),
            pair_id=pair.pair_id,
            num_steps=pair.num_steps,
            score=episode.score,
            terms=episode.terms,
            score_settings=run.scores.get("settings", {}),
            run=run.store.run_dir.resolve().name,
        )


def _scores_files(runs: Sequence[Path], scores: Sequence[Path]) -> list[Path]:
    """One scores file for each run."""
    if not runs:
        raise PairingError("no run was given; usage: grape pair RUN [RUN …] --out DIR --dataset_name NAME")
    if not scores:
        return [_only_scores_file(run) for run in runs]
    if len(scores) not in (1, len(runs)):
        raise PairingError(f"{len(runs)} runs but {len(scores)} scores files; give one for all, or one for each run")
    return list(scores) if len(scores) == len(runs) else [scores[0]] * len(runs)


def _only_scores_file(run: Path) -> Path:
    found = sorted((run / "scores").glob("*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise PairingError(f"{run / 'scores'} has {len(found)} scores files ({names}); name one with --scores")
    return found[0]


def _refuse_unknown_scores(runs: Sequence[ScoredRun], *, shared: bool) -> None:
    """A scores file that fits none of a run's episodes, or one entry that would serve two episodes, is a mix-up."""
    owner: dict[str, Path] = {}
    for run in runs:
        ids = run.store.episode_ids()
        if ids and not any(name in run.scores["episodes"] for name in ids):
            raise PairingError(
                f"{run.scores_path} scores no episode of {run.store.run_dir}; score that run with: grape score"
            )
        for name in ids if shared else ():
            if name in run.scores["episodes"] and name in owner:
                raise PairingError(
                    f"{run.scores_path} has one score for {name}, but both {owner[name]} and {run.store.run_dir} hold "
                    "an episode of that name; give one scores file for each run, in the same order"
                )
            owner[name] = run.store.run_dir


def _refuse_other_settings(runs: Sequence[ScoredRun]) -> None:
    """Scores that were computed in two ways cannot be compared."""
    first = runs[0]
    for run in runs[1:]:
        if run.scores.get("settings") != first.scores.get("settings"):
            raise PairingError(
                f"{first.scores_path} and {run.scores_path} were scored with other settings and cannot be compared; "
                "score all runs with the same flags: grape score"
            )
