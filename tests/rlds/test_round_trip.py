"""What is written is what tfds and the reader give back, bit for bit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grape.errors import ConfigError, DatasetError, MissingDependencyError, PairingError
from grape.rlds import EpisodeDataset, ExportEpisode, PairDataset, libero_to_policy_actions, publish, write_dataset
from grape.rlds.runtime import tensorflow
from grape.trajectory import Trajectory

NUM_PAIRS = 35  # three files of 16, 16 and 3
MakeSide = Callable[..., list[ExportEpisode]]
MakeTrajectory = Callable[..., Trajectory]


def write_side(root: Path, episodes: list[ExportEpisode], name: str = "pairs") -> Path:
    with publish(root) as working:
        write_dataset(working / name / "1.0.0", name, {"train": iter(episodes)})
    return root


@pytest.fixture(scope="module")
def sides(make_side: MakeSide) -> tuple[list[ExportEpisode], list[ExportEpisode]]:
    return make_side(0, NUM_PAIRS), make_side(1000, NUM_PAIRS, status="failure")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, sides: tuple[list[ExportEpisode], list[ExportEpisode]]) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "out"
    with publish(out) as working:
        for side, episodes in zip(("chosen", "rejected"), sides, strict=True):
            write_dataset(working / side / "pairs" / "1.0.0", "pairs", {"train": iter(episodes)})
    return out


@pytest.fixture(scope="module")
def pairs(written: Path) -> PairDataset:
    return PairDataset(written / "chosen", written / "rejected", "pairs")


def test_tfds_itself_reads_every_step_bit_for_bit(written: Path, sides: tuple[list[ExportEpisode], ...]) -> None:
    tfds = tensorflow().tfds
    builder = tfds.builder_from_directory(str(written / "chosen" / "pairs" / "1.0.0"))
    read = list(tfds.as_numpy(builder.as_dataset(split="train")))  # default settings of tfds keep the order, too
    assert len(read) == NUM_PAIRS
    for example, episode in zip(read, sides[0], strict=True):
        steps, trajectory = list(example["steps"]), episode.trajectory
        last = trajectory.info.num_steps - 1
        assert len(steps) == trajectory.info.num_steps
        assert example["episode_metadata"]["pair_id"].decode() == episode.pair_id
        for number, step in enumerate(steps):
            np.testing.assert_array_equal(step["observation"]["image"], trajectory.images[number])
            np.testing.assert_array_equal(step["observation"]["state"], trajectory.states[number])
            np.testing.assert_array_equal(step["action"], trajectory.actions[number])
            np.testing.assert_array_equal(step["policy_action"], trajectory.policy_actions[number])
            np.testing.assert_array_equal(step["action_tokens"], trajectory.action_tokens[number])
            np.testing.assert_array_equal(step["token_logps"], trajectory.token_logps[number])
            np.testing.assert_array_equal(step["sampler_logps"], trajectory.sampler_logps[number])
            assert step["language_instruction"].decode() == trajectory.info.instruction
            assert bool(step["is_first"]) == (number == 0)
            assert bool(step["is_last"]) == bool(step["is_terminal"]) == (number == last)
            assert step["reward"] == float(number == last) and step["discount"] == 1.0


def test_a_failed_episode_ends_without_a_terminal_state_or_reward(written: Path) -> None:
    tfds = tensorflow().tfds
    builder = tfds.builder("pairs", data_dir=str(written / "rejected"))  # the call that OpenVLA's loader makes
    steps = list(next(iter(tfds.as_numpy(builder.as_dataset(split="train"))))["steps"])
    assert steps[-1]["is_last"] and not any(step["is_terminal"] for step in steps)
    assert not any(step["reward"] for step in steps)


def test_a_cut_episode_ends_early_and_earns_nothing(tmp_path: Path, make_trajectory: MakeTrajectory) -> None:
    whole = [ExportEpisode(trajectory=make_trajectory(seed, num_steps=4)) for seed in range(2)]
    cut = [dataclasses.replace(episode, num_steps=length) for episode, length in zip(whole, (3, 9), strict=True)]
    write_dataset(tmp_path / "cut" / "1.0.0", "cut", {"train": cut})
    builder = tensorflow().tfds.builder("cut", data_dir=str(tmp_path))
    short, long = tensorflow().tfds.as_numpy(builder.as_dataset(split="train"))
    for read, length, earned in ((short, 3, 0.0), (long, 4, 1.0)):
        steps = list(read["steps"])
        assert len(steps) == read["episode_metadata"]["num_steps"] == length
        assert [step["is_last"] for step in steps] == [False] * (length - 1) + [True]
        assert steps[-1]["reward"] == float(steps[-1]["is_terminal"]) == earned


def test_the_reader_gives_back_pictures_tokens_and_metadata(
    pairs: PairDataset, sides: tuple[list[ExportEpisode], ...]
) -> None:
    assert len(pairs) == NUM_PAIRS
    for position, pair in enumerate(pairs):
        for got, episode in ((pair.chosen, sides[0][position]), (pair.rejected, sides[1][position])):
            trajectory = episode.trajectory
            assert pair.pair_id == episode.pair_id == got.metadata["pair_id"]
            np.testing.assert_array_equal(got.images, trajectory.images)
            for name in ("actions", "policy_actions", "action_tokens", "token_logps", "sampler_logps", "states"):
                np.testing.assert_array_equal(getattr(got, name), getattr(trajectory, name))
                assert getattr(got, name).dtype == getattr(trajectory, name).dtype
            assert got.instruction == trajectory.info.instruction
            assert got.metadata["policy_settings"] == {"temperature": 1.0}
            assert got.metadata["score_terms"] == episode.terms
            assert got.metadata["score_settings"] == {"preset": "default"}
            assert got.metadata["goal_predicates"] == [["on", "bowl", "plate"]]
            for name in ("checkpoint_hash", "init_state_id", "init_state_hash", "suite", "task_id", "seed", "status"):
                assert got.metadata[name] == getattr(trajectory.info, name)
            assert got.metadata["score"] == 1.5 + position and got.metadata["r_self"] == -0.25
    np.testing.assert_array_equal(pairs[3].chosen.decode_images([1]), sides[0][3].trajectory.images[1:2])


def test_reading_may_start_anywhere_and_gives_the_same(pairs: PairDataset) -> None:
    every = [pair.pair_id for pair in pairs]
    assert every == [f"{index:06d}--pair" for index in range(NUM_PAIRS)]
    for start in (0, 1, 15, 16, 17, 34, 35):
        assert [pair.pair_id for pair in pairs.iterate(start)] == every[start:]
    assert [pair.pair_id for pair in pairs.iterate(14, 18)] == every[14:18]
    assert [pairs[index].pair_id for index in (34, 0, 16)] == [every[index] for index in (34, 0, 16)]
    with pytest.raises(IndexError):
        pairs[NUM_PAIRS]
    with pytest.raises(ConfigError, match="cannot start"):
        next(pairs.iterate(NUM_PAIRS + 1))


def test_files_have_the_standard_names_and_no_trace_of_the_working_folder(written: Path) -> None:
    folder = written / "chosen" / "pairs" / "1.0.0"
    shards = [f"pairs-train.tfrecord-{index:05d}-of-00003" for index in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == ["dataset_info.json", "features.json", *shards]
    assert ".partial" not in (folder / "dataset_info.json").read_text()
    assert [path.name for path in written.parent.iterdir()] == [written.name]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"init_state_id": "rollout/99"}, ("init_state_id", "'rollout/0'", "'rollout/99'")),
        ({"init_state_hash": "other"}, ("init_state_hash", "'state0'", "'other'")),
        ({"task_id": 5}, ("task_id", "2", "5")),
        ({"suite": "libero_goal"}, ("suite", "'libero_spatial'", "'libero_goal'")),
        ({"instruction": "open"}, ("language_instruction", "'pick up the bowl'", "'open'")),
    ],
)
def test_sides_that_do_not_match_are_refused_with_both_named(
    tmp_path: Path, make_side: MakeSide, changes: dict[str, object], named: tuple[str, ...]
) -> None:
    write_side(tmp_path / "chosen", make_side(0, 2))
    write_side(tmp_path / "rejected", make_side(10, 2, **changes))
    with pytest.raises(PairingError) as caught:
        PairDataset(tmp_path / "chosen", tmp_path / "rejected", "pairs")
    assert all(part in str(caught.value) for part in (*named, "(chosen)", "(rejected)", str(tmp_path / "rejected")))
    unchecked = PairDataset(tmp_path / "chosen", tmp_path / "rejected", "pairs", validate=False)
    with pytest.raises(PairingError):
        next(iter(unchecked))


def test_counts_and_shifted_pairs_are_refused(tmp_path: Path, written: Path, make_side: MakeSide) -> None:
    write_side(tmp_path / "short", make_side(1000, NUM_PAIRS - 1))
    with pytest.raises(PairingError, match=r"35 episodes .*chosen.* 34 in .*rejected"):
        PairDataset(written / "chosen", tmp_path / "short", "pairs")
    same_state = {"init_state_id": "rollout/0", "init_state_hash": "h"}
    write_side(tmp_path / "chosen", make_side(0, 3, **same_state))
    write_side(tmp_path / "shifted", make_side(10, 4, **same_state)[1:])
    with pytest.raises(PairingError, match="pair_id of pair 0 differs: '000000--pair' .* '000001--pair'"):
        PairDataset(tmp_path / "chosen", tmp_path / "shifted", "pairs")
    with pytest.raises(PairingError, match="same folder"):
        PairDataset(written / "chosen", written / "chosen", "pairs")


def test_missing_and_empty_data_sets_name_the_next_step(tmp_path: Path, written: Path, make_side: MakeSide) -> None:
    with pytest.raises(DatasetError, match="Did you mean 'pairs'"):
        EpisodeDataset(written / "chosen", "pair")
    with pytest.raises(DatasetError, match="no split 'val'.*train"):
        EpisodeDataset(written / "chosen", "pairs", "val")
    with pytest.raises(DatasetError, match="image_primary.*Known: image, state"):
        EpisodeDataset(written / "chosen", "pairs", image_key="image_primary")
    with pytest.raises(DatasetError, match="no episode"), publish(tmp_path / "out") as working:
        write_dataset(working / "1.0.0", "pairs", {"train": []})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="TFDS name"):
        write_dataset(tmp_path / "1.0.0", "My-Data", {"train": make_side(0, 1)})
    empty = tmp_path / "empty"
    write_side(empty, make_side(0, 1))
    info_path = empty / "pairs" / "1.0.0" / "dataset_info.json"
    info = json.loads(info_path.read_text())
    info["splits"][0].update(shardLengths=[], numBytes="0")
    info_path.write_text(json.dumps(info))
    with pytest.raises(DatasetError, match="is empty"):
        EpisodeDataset(empty, "pairs")


def test_crashed_empty_and_oddly_sized_episodes_are_never_written(
    tmp_path: Path, make_trajectory: Callable[..., object]
) -> None:
    good = ExportEpisode(trajectory=make_trajectory(0))  # type: ignore[arg-type]
    for changes, message in (
        ({"status": "crashed"}, "crashed"),
        ({"num_steps": 0}, "no steps"),
        ({"size": 20}, "one data set for each picture size"),
    ):
        bad = ExportEpisode(trajectory=make_trajectory(1, **changes))  # type: ignore[arg-type]
        with pytest.raises(DatasetError, match=message), publish(tmp_path / "out") as working:
            write_dataset(working / "1.0.0", "pairs", {"train": [good, bad]})
    assert list(tmp_path.iterdir()) == []


def test_libero_actions_in_the_policy_convention_by_hand() -> None:
    stored = np.array([[0.1, 0, 0, 0, 0, 0, -1.0], [0.2, 0, 0, 0, 0, 0, 1.0]], np.float32)
    np.testing.assert_array_equal(libero_to_policy_actions(stored)[:, 6], [1.0, 0.0])  # open is 1, close is 0
    np.testing.assert_array_equal(libero_to_policy_actions(stored)[:, :6], stored[:, :6])


def test_dlimp_is_optional_and_says_where_it_comes_from(written: Path) -> None:
    pytest.importorskip("tensorflow")
    try:
        import dlimp  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependencyError, match="not on PyPI"):
            EpisodeDataset(written / "chosen", "pairs").as_dlimp()
    else:
        assert len(list(EpisodeDataset(written / "chosen", "pairs").as_dlimp())) == NUM_PAIRS
