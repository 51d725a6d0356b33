"""``grape pair`` and ``grape export`` from run folders to data sets."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grape.cli.main import main
from grape.rlds import EpisodeDataset, PairDataset
from grape.rollouts.store import RunWriter

NUM_STATES = 5


@pytest.fixture
def run(tmp_path: Path, make_trajectory: Callable[..., object]) -> Path:
    """Three rollouts from each state: the first succeeds, the second fails, the third crashes."""
    folder = tmp_path / "run"
    episodes = {}
    with RunWriter(folder, settings={}) as writer:
        for state in range(NUM_STATES):
            for rollout, status in enumerate(("success", "failure", "crashed")):
                trajectory = make_trajectory(
                    10 * state + rollout,
                    status=status,
                    rollout_index=rollout,
                    init_state_id=f"rollout/{state}",
                    init_state_hash=f"h{state}",
                )
                writer.save(trajectory)  # type: ignore[arg-type]
                score = 1.0 / 3.0 + state if status == "success" else -1.0
                if status != "crashed":
                    episodes[trajectory.info.episode_id] = {"score": score, "r_self": -2.5, "num_steps": 4}  # type: ignore[attr-defined]
    (folder / "scores").mkdir()
    (folder / "scores" / "default.json").write_text(json.dumps({"settings": {"preset": "x"}, "episodes": episodes}))
    return folder


def test_pair_writes_two_data_sets_and_the_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my pairs"
    assert main(["pair", str(run), "--out", str(out), "--dataset_name", "nano"]) == 0
    printed = capsys.readouterr().out
    assert "5 pairs from 15 episodes" in printed and "5: crashed" in printed
    flags = ["--chosen_traj_dir", str(out / "chosen"), "--rejected_traj_dir", str(out / "rejected")]
    assert shlex.split(printed.partition("train with: ")[2])[:4] == flags
    pairs = list(PairDataset(out / "chosen", out / "rejected", "nano"))
    assert len(pairs) == NUM_STATES
    for pair in pairs:
        assert pair.chosen.metadata["success"] and not pair.rejected.metadata["success"]
        assert pair.chosen.metadata["init_state_hash"] == pair.rejected.metadata["init_state_hash"]
        assert pair.chosen.metadata["run"] == "run"
        state = int(pair.chosen.metadata["init_state_id"].split("/")[1])
        assert pair.chosen.metadata["score_terms"]["score"] == 1.0 / 3.0 + state  # full precision
    report = json.loads((out / "pairing.json").read_text())
    assert [entry["pair_id"] for entry in report["pairs"]] == [pair.pair_id for pair in pairs]
    before = (out / "pairing.json").stat().st_mtime_ns
    assert main(["pair", str(run), "--out", str(out), "--dataset_name", "nano"]) == 1
    assert "exists already" in capsys.readouterr().err and (out / "pairing.json").stat().st_mtime_ns == before


def test_pair_refuses_what_does_not_go_together(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["pair", *arguments, "--out", str(tmp_path / "out"), "--dataset_name", "nano"]) == 1
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    scores = run / "scores" / "default.json"
    assert "given twice" in refused(str(run), str(run), "--scores", str(scores), str(scores))
    assert "no pair could be made" in refused(str(run), "--min_margin", "99")
    assert "grape collect" in refused(str(tmp_path))
    assert "grape score" in refused(str(run), "--scores", str(tmp_path / "none.json"))
    content = json.loads(scores.read_text())
    other = shutil.copytree(run, tmp_path / "other")
    (other / "scores" / "default.json").write_text(json.dumps({**content, "settings": {"preset": "y"}}))
    assert "other settings" in refused(str(run), str(other))
    for entry in content["episodes"].values():
        entry["num_steps"] = 5
    (run / "scores" / "stale.json").write_text(json.dumps(content))
    assert "name one with --scores" in refused(str(run))
    assert "score it again" in refused(str(run), "--scores", str(run / "scores" / "stale.json"))
    name = next(iter(content["episodes"]))
    for damage, message in (("1.0", "the score of"), (True, "the score of"), ([], "the score of")):
        content["episodes"][name] = {"score": damage}
        (run / "scores" / "stale.json").write_text(json.dumps(content))
        assert message in refused(str(run), "--scores", str(run / "scores" / "stale.json"))
    (run / "scores" / "stale.json").write_text(json.dumps({**content, "format_version": 99}))
    assert "format version 99" in refused(str(run), "--scores", str(run / "scores" / "stale.json"))
    (run / "scores" / "stale.json").write_text(json.dumps({"episodes": {"other": {"score": 1.0}}}))
    assert "scores no episode" in refused(str(run), "--scores", str(run / "scores" / "stale.json"))


def test_one_score_never_serves_two_episodes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(run, other)
    scores = str(run / "scores" / "default.json")
    arguments = ["pair", str(run), str(other), "--out", str(tmp_path / "out"), "--dataset_name", "nano"]
    assert main([*arguments, "--scores", scores]) == 1
    assert "both" in capsys.readouterr().err
    assert main([*arguments, "--dry_run"]) == 0
    assert "5 pairs from 30 episodes" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_export_keeps_whole_states_apart_and_writes_statistics(run: Path, tmp_path: Path) -> None:
    arguments = ["export", str(run), "--out", str(tmp_path / "sft"), "--dataset_name", "demos", "--val_fraction", "0.4"]
    assert main(arguments) == 0
    train, val = (EpisodeDataset(tmp_path / "sft", "demos", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (6, 4)  # crashed ones are left out; 2 of 5 states are for validation
    states = [{meta["init_state_id"] for meta in split.iterate_metadata()} for split in (train, val)]
    assert states[0].isdisjoint(states[1]) and len(states[0] | states[1]) == NUM_STATES
    statistics = train.statistics()
    assert statistics is not None
    action = statistics["demos"]["action"]
    actions = np.concatenate([episode.actions for split in (train, val) for episode in split]).astype(np.float64)
    actions[:, 6] = np.where(actions[:, 6] < 0, 1, 0)  # LIBERO: -1 opens, policies say 1 for open
    np.testing.assert_allclose(action["mean"], actions.mean(axis=0), rtol=1e-12)  # sums in another order
    np.testing.assert_allclose(action["q99"], np.quantile(actions, 0.99, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(action["min"], actions.min(axis=0))
    assert action["mask"] == [True] * 6 + [False]
    assert statistics["demos"]["num_transitions"] == 40 and statistics["demos"]["num_trajectories"] == 10


def test_export_says_where_a_share_is_less_than_one_state(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my sets"
    arguments = ["export", str(run), "--out", str(out), "--dataset_name", "demos", "--val_fraction", "0.19"]
    assert main(arguments) == 0  # 0.19 of 5 states is 0.95
    captured = capsys.readouterr()
    assert "libero_spatial task 2's initial states (5) is less than one" in captured.err
    command = captured.out.partition("fine-tune with: ")[2]
    assert shlex.split(command) == ["--data_root_dir", str(out), "--dataset_name", "demos"]


def test_export_of_successes_only(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(run), "--out", str(tmp_path / "sft"), "--dataset_name", "good", "--only", "success"]
    assert main(arguments) == 0
    dataset = EpisodeDataset(tmp_path / "sft", "good")
    assert len(dataset) == NUM_STATES and all(meta["success"] for meta in dataset.iterate_metadata())
    assert main(arguments) == 1 and "exists already" in capsys.readouterr().err
    assert main(["export", str(run), str(run), "--out", str(tmp_path / "x"), "--dataset_name", "good"]) == 1
    assert main(["export", str(run), "--out", str(tmp_path / "x"), "--dataset_name", "Bad Name"]) == 1
    assert not (tmp_path / "x").exists()
