"""Supervised fine-tuning on a tiny real RLDS data set, written through ``grape.rlds``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grape.cli.main import EXIT_INTERRUPTED
from grape.cli.sft import main
from grape.config.inputs import CROP_KEY
from grape.config.sft import SFTConfig, check_sft_config
from grape.errors import CheckpointError, ConfigError, DatasetError, TrainingError
from grape.models import OpenVLAPolicy, load_policy
from grape.rlds import EpisodeDataset, ExportEpisode, publish, write_dataset
from grape.trainer.checkpoint import CheckpointStore
from grape.trainer.distributed import Ranks
from grape.trainer.metrics import METRICS_FILE, read_metrics
from grape.trainer.sft import batch_loss, fine_tune, noised_tokens
from grape.trainer.sft_data import choose_statistics, held_out_episodes, survey_episodes
from grape.trainer.sft_frames import Frame, FrameOrder, PictureLoader, load_pictures
from grape.trainer.sft_run import SFTRun, prepare_run
from grape.trainer.sft_storage import ADAPTER_FOLDER, CHECKPOINT_FOLDER
from grape.trajectory import EpisodeInfo, Trajectory

NAME = "tiny_demos"
NUM_EPISODES, NUM_STEPS, IMAGE_SIZE = 6, 4, 28
INSTRUCTIONS = ("put the bowl on the plate", "open the drawer")


def make_trajectory(seed: int, *, tokens: np.ndarray | None = None, **changes: Any) -> Trajectory:
    """Noise pictures; the executed action differs from the intended one, as with noisy demonstrations."""
    rng = np.random.default_rng(seed)
    intended = rng.uniform(-0.5, 0.5, (NUM_STEPS, 7)).astype(np.float32)
    intended[:, 6] = rng.integers(0, 2, NUM_STEPS)
    executed = intended + rng.normal(0, 0.2, intended.shape).astype(np.float32)
    executed[:, 6] = 1 - 2 * intended[:, 6]
    values: dict[str, Any] = {
        "simulator": "libero",
        "simulator_settings": {},
        "suite": "libero_spatial",
        "task_id": seed % 2,
        "task_name": "task",
        "instruction": INSTRUCTIONS[seed % 2],
        "init_state_id": f"train/{seed // 2}",
        "init_state_hash": f"hash{seed}",
        "policy": "expert",
        "checkpoint_hash": "",
        "policy_settings": {},
        "seed": seed,
        **changes,
    }
    return Trajectory(
        info=EpisodeInfo(status="success", num_steps=NUM_STEPS, **values),
        images=rng.integers(0, 256, (NUM_STEPS, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8),
        action_tokens=np.zeros((NUM_STEPS, 7), np.int32) if tokens is None else tokens,
        token_logps=np.zeros((NUM_STEPS, 7), np.float32),
        sampler_logps=np.zeros((NUM_STEPS, 7), np.float32),
        policy_actions=intended,
        actions=executed,
        states=rng.normal(size=(NUM_STEPS, 8)).astype(np.float32),
        facts={},
    )


def write(root: Path, trajectories: list[Trajectory]) -> Path:
    with publish(root / NAME) as working:
        write_dataset(working / "1.0.0", NAME, {"train": [ExportEpisode(trajectory=one) for one in trajectories]})
    return root


@pytest.fixture(scope="session")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripted demonstrations: no sampled tokens."""
    return write(tmp_path_factory.mktemp("demos"), [make_trajectory(seed) for seed in range(NUM_EPISODES)])


@pytest.fixture(scope="session")
def sampled_tokens(first_action_id: int) -> np.ndarray:
    return np.random.default_rng(0).integers(first_action_id, first_action_id + 256, (2, NUM_STEPS, 7)).astype(np.int32)


@pytest.fixture(scope="session")
def chosen(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, sampled_tokens: np.ndarray) -> Path:
    """Rollouts of the policy that is trained, as ``grape pair`` writes them."""
    made_by = load_policy(checkpoint, device="cpu").checkpoint_hash
    rollouts = [make_trajectory(seed, tokens=sampled_tokens[seed], checkpoint_hash=made_by) for seed in range(2)]
    return write(tmp_path_factory.mktemp("chosen"), rollouts)


def new_weights(data: Path, root: Path, **changes: Any) -> SFTConfig:
    values: dict[str, Any] = {"preset": "test", "learning_rate": 3e-3, "batch_size": 8}
    return config_of(data, root, **values | changes)


def adapter_on(checkpoint: Path, data: Path, root: Path, **changes: Any) -> SFTConfig:
    values: dict[str, Any] = {"vla_path": str(checkpoint), "lora_rank": 2, "learning_rate": 1e-2, "batch_size": 4}
    return config_of(data, root, **values | changes)


def config_of(data: Path, root: Path, **changes: Any) -> SFTConfig:
    values = {"data_root_dir": data, "dataset_name": NAME, "run_root_dir": root, "run_name": "run", "device": "cpu"}
    return SFTConfig(**values | changes)


def prepared(config: SFTConfig) -> SFTRun:
    return prepare_run(config, Ranks(rank=0, world_size=1, device=torch.device("cpu")), None)


def final_state(config: SFTConfig) -> dict[str, Any]:
    latest = CheckpointStore(config.run_dir / "checkpoints").load_latest()
    assert latest is not None
    return latest.state


def assert_equal_bits(one: Any, other: Any) -> None:
    """Compare nested dicts, lists, tensors and plain values exactly."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal_bits(one[name], other[name])
    elif isinstance(one, (list, tuple)):
        for first, second in zip(one, other, strict=True):
            assert_equal_bits(first, second)
    else:
        assert one == other


def test_new_weights_learn_the_demonstrations(demos: Path, tmp_path: Path) -> None:
    config = new_weights(demos, tmp_path, max_steps=150, shuffle_buffer_size=10, save_dtype="float32")
    result = fine_tune(config)
    rows = read_metrics(config.run_dir)
    assert [row["step"] for row in rows] == list(range(1, 151))
    vocabulary = load_policy(result, device="cpu").config.text["vocab_size"]
    assert rows[0]["loss"] == pytest.approx(np.log(vocabulary), rel=0.1)  # random weights: close to uniform
    assert rows[-1]["loss"] < 0.2 * rows[0]["loss"]
    assert rows[-1]["action_accuracy"] > 0.9 > rows[0]["action_accuracy"]
    assert rows[-1]["l1_loss"] < 0.1 < rows[0]["l1_loss"]

    policy = load_policy(result, device="cpu")
    assert policy.source_config[CROP_KEY] is False
    assert set(policy.norm_stats) == {NAME}
    episodes = list(EpisodeDataset(demos, NAME))
    intended = np.concatenate([episode.policy_actions for episode in episodes])
    np.testing.assert_allclose(policy.norm_stats[NAME]["action"]["q99"], np.quantile(intended, 0.99, axis=0), rtol=1e-6)
    images = [image for episode in episodes for image in episode.images]
    instructions = [episode.instruction for episode in episodes for _ in episode.images]
    said = policy.act(images, instructions, unnorm_key=NAME).actions
    # The intended actions, not the executed ones, which are 0.16 away on average.
    assert np.abs(said - intended)[:, :6].mean() < 0.05


def test_the_loss_is_the_mean_over_the_action_and_end_tokens(
    checkpoint: Path, chosen: Path, tmp_path: Path, policy: OpenVLAPolicy, sampled_tokens: np.ndarray
) -> None:
    run = prepared(adapter_on(checkpoint, chosen, tmp_path, batch_size=2 * NUM_STEPS, max_steps=1))
    frames = next(run.frame_batches())
    images = load_pictures(frames, IMAGE_SIZE)
    tokens = np.stack([frame.tokens for frame in frames])
    assert sorted(map(tuple, tokens)) == sorted(map(tuple, sampled_tokens.reshape(-1, 7)))

    loss, sums = batch_loss(run, frames, images, tokens, center_crop=False)

    with torch.no_grad():
        wanted = policy.log_prob(images, [frame.instruction for frame in frames], tokens, include_end_token=True)
    assert wanted.shape == (2 * NUM_STEPS, 8)
    assert loss.item() == pytest.approx(-wanted.sum().item(), rel=1e-5)  # another kernel, other rounding
    assert sums[0].item() / len(frames) == pytest.approx(-wanted.mean().item(), rel=1e-5)


@pytest.mark.parametrize(("labels", "direct"), [("auto", True), ("tokens", True), ("actions", False)])
def test_labels_of_own_rollouts(
    labels: str, direct: bool, checkpoint: Path, chosen: Path, tmp_path: Path, sampled_tokens: np.ndarray
) -> None:
    run = prepared(adapter_on(checkpoint, chosen, tmp_path, labels=labels, unnorm_key="tiny"))
    held = run.episodes.get(frozenset({0}), 1)
    assert np.array_equal(held.tokens, sampled_tokens[1]) == direct
    if not direct:
        actions = EpisodeDataset(chosen, NAME)[1].policy_actions
        assert np.array_equal(held.tokens, run.policy.encode_actions(actions, "tiny"))
    assert run.new_statistics == {}


def test_tokens_of_another_policy_are_not_taken_over(
    checkpoint: Path, tmp_path: Path, sampled_tokens: np.ndarray
) -> None:
    data = write(tmp_path / "data", [make_trajectory(0, tokens=sampled_tokens[0], checkpoint_hash="other")])
    run = prepared(adapter_on(checkpoint, data, tmp_path))
    actions = make_trajectory(0).policy_actions
    assert np.array_equal(run.episodes.get(frozenset({0}), 0).tokens, run.policy.encode_actions(actions, NAME))
    assert set(run.policy.norm_stats) == {"tiny", NAME}


def test_tokens_outside_the_action_tokens_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data", [make_trajectory(0, tokens=np.full((NUM_STEPS, 7), 5, np.int32))])
    run = prepared(adapter_on(checkpoint, data, tmp_path, labels="tokens"))
    with pytest.raises(ConfigError, match="episode 0: tokens from 5 to 5"):
        next(run.frame_batches())


def test_statistics_beside_the_data_are_taken(demos: Path, tmp_path: Path) -> None:
    config, survey = new_weights(demos, tmp_path), survey_episodes(EpisodeDataset(demos, NAME))
    entry = {"action": {"q01": [0.0] * 7, "q99": [1.0] * 7}}
    assert choose_statistics(config, {}, survey, {NAME: entry}) == {NAME: entry}
    assert choose_statistics(config, {NAME: entry}, survey, None) == {}
    with pytest.raises(DatasetError, match="knows a, b, not 'tiny_demos'"):
        choose_statistics(config, {}, survey, {"a": entry, "b": entry})


def test_an_adapter_leaves_the_base_as_it_was(checkpoint: Path, chosen: Path, tmp_path: Path) -> None:
    config = adapter_on(checkpoint, chosen, tmp_path, max_steps=20, lora_rank=8, adapter_tmp_dir=tmp_path / "adapters")
    result = fine_tune(config)
    assert result == config.run_dir / ADAPTER_FOLDER
    rows = read_metrics(config.run_dir)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    assert (tmp_path / "adapters" / "run" / "adapter_model.safetensors").read_bytes() == (
        result / "adapter_model.safetensors"
    ).read_bytes()

    base, adapted = load_policy(checkpoint, device="cpu"), load_policy(checkpoint, adapter=result, device="cpu")
    episode = EpisodeDataset(chosen, NAME)[0]
    inputs = (list(episode.images), [episode.instruction] * NUM_STEPS, episode.action_tokens)
    with torch.no_grad():
        before, after = base.log_prob(*inputs), adapted.log_prob(*inputs)
        with adapted.reference():
            assert torch.equal(adapted.log_prob(*inputs), before)
    assert after.mean() > before.mean() + 0.1


def test_training_an_adapter_changes_no_base_weight(checkpoint: Path, chosen: Path, tmp_path: Path) -> None:
    config = adapter_on(checkpoint, chosen, tmp_path, max_steps=2, save_merged=True, save_dtype="float32")
    before = load_policy(checkpoint, device="cpu").network.state_dict()
    fine_tune(config)
    assert all(".lora_" in name for name in final_state(config)["weights"])
    merged = load_policy(config.run_dir / CHECKPOINT_FOLDER, device="cpu").network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed
    assert all(name.endswith(".weight") and before[name].ndim == 2 for name in changed)


STOCHASTIC: dict[str, Any] = {
    "image_aug": True,
    "input_token_noise": 0.3,
    "shuffle_buffer_size": 5,
    "schedule": "cosine",
    "warmup_steps": 2,
}


def test_stopped_and_resumed_is_the_same_run(checkpoint: Path, chosen: Path, tmp_path: Path) -> None:
    changes = STOCHASTIC | {"schedule": "constant", "lora_dropout": 0.3, "grad_accumulation_steps": 2, "batch_size": 3}
    whole = adapter_on(checkpoint, chosen, tmp_path / "whole", max_steps=5, **changes)
    fine_tune(whole)
    parts = tmp_path / "parts"
    fine_tune(adapter_on(checkpoint, chosen, parts, max_steps=2, **changes))
    resumed = adapter_on(checkpoint, chosen, parts, max_steps=5, resume=True, **changes)
    fine_tune(resumed)
    assert_equal_bits(final_state(whole), final_state(resumed))
    steps = [{name: row[name] for name in ("step", "loss", "grad_norm")} for row in read_metrics(whole.run_dir)]
    assert steps == [{name: row[name] for name in steps[0]} for row in read_metrics(resumed.run_dir)]


def test_killed_and_resumed_is_the_same_run(demos: Path, tmp_path: Path) -> None:
    changes = STOCHASTIC | {"max_steps": 25}
    whole = new_weights(demos, tmp_path / "whole", **changes)
    fine_tune(whole)

    killed = new_weights(demos, tmp_path / "killed", **changes)
    flags = {name: getattr(killed, name) for name in ("preset", "learning_rate", "batch_size", *changes)}
    flags |= {"data_root_dir": demos, "dataset_name": NAME, "run_root_dir": tmp_path / "killed", "run_name": "run"}
    arguments = [part for name, value in (flags | {"device": "cpu"}).items() for part in (f"--{name}", str(value))]
    script = "import sys, torch; torch.set_num_threads(1); from grape.cli.sft import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", script, *arguments, "--save_steps", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    store = CheckpointStore(killed.run_dir / "checkpoints")
    deadline = time.monotonic() + 120
    while not store.steps() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < store.steps()[-1] < 25, "the process was to be killed on the way"

    assert main([*arguments, "--resume"]) == 0
    assert_equal_bits(final_state(whole), final_state(killed))


def test_ctrl_c_of_the_command_saves_and_is_resumed(demos: Path, tmp_path: Path) -> None:
    config = new_weights(demos, tmp_path)
    flags = {"preset": "test", "data_root_dir": demos, "dataset_name": NAME, "run_root_dir": tmp_path}
    flags |= {"run_name": "run", "device": "cpu", "save_steps": 10**6}  # so nothing but the signal makes it save
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "grape.cli.main", "sft", *arguments, "--max_steps", str(10**6)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    log, deadline = config.run_dir / METRICS_FILE, time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_INTERRUPTED
    assert "finishing this step, then saving" in told and "--resume" in told
    done = final_state(config)["step"]
    assert [row["step"] for row in read_metrics(config.run_dir)] == list(range(1, done + 1))

    assert main([*arguments, "--max_steps", str(done + 1), "--resume"]) == 0
    assert [row["step"] for row in read_metrics(config.run_dir)] == list(range(1, done + 2))


def test_an_unknown_unnorm_key_is_refused_also_where_tokens_make_it_needless(
    checkpoint: Path, chosen: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"unnorm_key 'tinny' .* Did you mean 'tiny'\?"):
        prepared(adapter_on(checkpoint, chosen, tmp_path, unnorm_key="tinny"))


def test_another_run_does_not_go_into_the_folder(demos: Path, tmp_path: Path) -> None:
    fine_tune(new_weights(demos, tmp_path, max_steps=1))
    with pytest.raises(ConfigError, match="holds a run of 1 steps; continue it with --resume True"):
        fine_tune(new_weights(demos, tmp_path, max_steps=2))
    with pytest.raises(ConfigError, match="learning_rate: 0.003 then, 0.1 now"):
        fine_tune(new_weights(demos, tmp_path, max_steps=2, resume=True, learning_rate=0.1))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(demos: Path, tmp_path: Path) -> None:
    config = new_weights(demos, tmp_path, max_steps=5, learning_rate=1e30, save_steps=1)
    with pytest.raises(TrainingError, match=r"stopped at step 2: .*tiny_demos.*step 1, is kept"):
        fine_tune(config)
    assert final_state(config)["step"] == 1


def test_validation_is_on_states_that_were_not_trained_on(demos: Path, tmp_path: Path) -> None:
    config = new_weights(demos, tmp_path, val_fraction=0.3, val_steps=2, max_steps=3, image_aug=True)
    run = prepared(config)
    states = survey_episodes(EpisodeDataset(demos, NAME)).states
    held_out = set(states) - {states[episode] for episode in run.order.lengths}
    assert len(held_out) == 2
    assert len(run.validation) == NUM_STEPS * len(held_out)
    assert all(frame.augmentation is None for frame in run.validation)
    fine_tune(config)
    rows = read_metrics(config.run_dir)
    assert [row["step"] for row in rows if "val/loss" in row] == [2, 3]
    assert {"val/action_accuracy", "val/l1_loss"} <= rows[-1].keys()


def test_validation_on_a_split_of_the_data_set(tmp_path: Path) -> None:
    splits = {name: [ExportEpisode(trajectory=make_trajectory(seed))] for seed, name in enumerate(("train", "val"))}
    with publish(tmp_path / NAME) as working:
        write_dataset(working / "1.0.0", NAME, splits)
    run = prepared(new_weights(tmp_path, tmp_path, val_split="val", val_frames=2))
    assert run.order.lengths == {0: NUM_STEPS}
    last = EpisodeDataset(tmp_path, NAME, "val")[0].encoded_images
    assert [frame.encoded_image for frame in run.validation] == [last[0], last[NUM_STEPS - 1]]  # spread evenly


def test_episodes_of_a_state_are_held_out_together() -> None:
    states = ["a", "b", "a", "c", "b", "d"]
    for seed in range(5):
        held_out = held_out_episodes(states, 0.5, seed)
        names = {states[position] for position in held_out}
        assert len(names) == 2
        assert held_out == [position for position, state in enumerate(states) if state in names]
    with pytest.raises(DatasetError, match="leaves nothing to train on"):
        held_out_episodes(["a", "a"], 0.1, 0)


def test_accumulated_batches_are_one_batch(demos: Path, tmp_path: Path) -> None:
    states = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        changes = {"batch_size": batch_size, "grad_accumulation_steps": accumulation, "input_token_noise": 0.5}
        config = new_weights(demos, tmp_path / str(batch_size), max_steps=1, max_grad_norm=0, **changes)
        fine_tune(config)
        states.append(final_state(config)["optimizer"]["state"])
    largest = max(entry["exp_avg"].abs().max().item() for entry in states[0].values())
    for index, entry in states[0].items():  # after one step exp_avg is a tenth of the gradient
        torch.testing.assert_close(entry["exp_avg"], states[1][index]["exp_avg"], rtol=1e-4, atol=1e-5 * largest)


def test_noise_is_in_the_input_alone(demos: Path, tmp_path: Path) -> None:
    run = prepared(new_weights(demos, tmp_path, batch_size=24, input_token_noise=0.5))
    tokens = np.arange(24 * 7).reshape(24, 7)
    noised = noised_tokens(run, tokens)
    assert np.array_equal(noised % 7, tokens % 7)  # another frame's token, of the same column
    assert 0.3 < (noised != tokens).mean() < 0.7
    assert np.array_equal(tokens, np.arange(24 * 7).reshape(24, 7))


def test_every_frame_once_an_epoch_and_never_more_than_the_buffer_in_memory() -> None:
    lengths = {episode: 1 + episode % 5 for episode in range(100) if episode % 9}
    order = FrameOrder(lengths, seed=1, buffer_frames=120)
    total = order.frames_per_epoch
    stream = order.frames()
    drawn = [next(stream) for _ in range(2 * total)]
    everything = Counter((episode, step) for episode, length in lengths.items() for step in range(length))
    for epoch in range(2):
        of_epoch = [ref for _, ref in drawn[epoch * total : (epoch + 1) * total]]
        assert {ref.epoch for ref in of_epoch} == {epoch}
        assert Counter((ref.episode, ref.step) for ref in of_epoch) == everything
    assert [ref.episode for _, ref in drawn[:total]] != [ref.episode for _, ref in drawn[total:]]
    for chunks, ref in drawn:
        assert ref.episode // 16 in chunks
        assert sum(length for episode, length in lengths.items() if episode // 16 in chunks) <= 120
    assert len({chunks for chunks, _ in drawn}) > 2
    for start in (1, 77, total, total + 130):
        later = order.frames(start)
        assert [next(later) for _ in range(10)] == drawn[start : start + 10]


def test_loader_processes_give_the_same_pictures(demos: Path) -> None:
    encoded = EpisodeDataset(demos, NAME)[0].encoded_images
    frames = [
        Frame(source="here", encoded_image=image, instruction="", tokens=np.zeros(7), augmentation=(3, "sft", n))
        for n, image in enumerate(encoded)
    ]
    batches = [frames[:3], frames[3:], frames[1:2], frames, frames[2:]]
    with PictureLoader(IMAGE_SIZE) as here, PictureLoader(IMAGE_SIZE, num_processes=2) as elsewhere:
        wanted, got = list(here.load(batches)), list(elsewhere.load(batches))
    assert len(got) == len(batches)
    for (_, expected), (frames_back, pictures) in zip(wanted, got, strict=True):
        assert np.array_equal(np.stack(expected), np.stack(pictures))
        assert [frame.augmentation for frame in frames_back] == [frame.augmentation for frame in _]


def test_a_broken_picture_is_named() -> None:
    frame = Frame(source="demos episode 4 step 2", encoded_image=b"no picture", instruction="", tokens=np.zeros(7))
    with pytest.raises(DatasetError, match="demos episode 4 step 2: the picture cannot be decoded"):
        load_pictures([frame], IMAGE_SIZE)


class NoEpisodes:
    def __len__(self) -> int:
        return 0

    def iterate(self, start: int = 0, stop: int | None = None) -> Any:
        return iter(())


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no episodes"):
        fine_tune(new_weights(tmp_path, tmp_path), NoEpisodes())
    with pytest.raises(DatasetError, match="no RLDS data set 'tiny_demos'"):
        fine_tune(new_weights(tmp_path, tmp_path / "other"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give one of them"),
        ({"preset": "nano", "vla_path": "here"}, "give one of them"),
        ({"preset": "nano", "use_lora": True}, "nothing to adapt"),
        ({"preset": "nano", "unnorm_key": "libero_goal"}, "new weights have no statistics"),
        ({"preset": "nano", "labels": "tokens"}, "another policy"),
        ({"preset": "nano", "save_merged": True}, "written anyway"),
        ({"preset": "nano", "batch_size": 0}, "want at least 1"),
        ({"preset": "nano", "val_fraction": 1.0}, "want 0 to below 1"),
        ({"preset": "nano", "val_fraction": 0.1, "val_split": "val"}, "give one of them"),
        ({"preset": "nano", "image_aug": True, "center_crop": True}, "leave one out"),
        ({"preset": "nano", "dtype": "float8"}, "want auto, float32 or bfloat16"),
        ({"preset": "nano", "attn_implementation": "slow"}, "want sdpa, eager or flash_attention_2"),
        ({"preset": "nano", "learning_rate": 0.0}, "want more than 0"),
        ({"preset": "nano", "learning_rate": float("inf")}, "want more than 0, and finite"),
        ({"preset": "nano", "weight_decay": float("nan")}, "weight_decay=nan: want 0 or more"),
        ({"preset": "nano", "run_name": ".."}, "want the name of one folder"),
        ({"vla_path": "here", "lora_alpha": 0}, "lora_alpha=0: want at least 1, or None"),
        ({"vla_path": "here", "run_root_dir": Path("x"), "adapter_tmp_dir": Path("x")}, "one would replace the other"),
    ],
)
def test_settings_that_cannot_be_honoured(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sft_config(config_of(tmp_path, tmp_path, **changes))


def test_an_earlier_adapter_is_replaced_and_nothing_else(checkpoint: Path, chosen: Path, tmp_path: Path) -> None:
    newest = tmp_path / "newest" / "run"
    newest.mkdir(parents=True)
    (newest / "data.txt").write_text("mine")
    changes: dict[str, Any] = {"adapter_tmp_dir": newest.parent, "max_steps": 1, "labels": "actions"}
    with pytest.raises(ConfigError, match=r"holds something else \(data\.txt\)"):
        fine_tune(adapter_on(checkpoint, chosen, tmp_path / "one", **changes))
    assert (newest / "data.txt").read_text() == "mine"
    (newest / "data.txt").unlink()
    for root in ("one", "two"):  # the second finds the first one's adapter, statistics included
        fine_tune(adapter_on(checkpoint, chosen, tmp_path / root, **changes))
    assert (newest / "dataset_statistics.json").is_file()


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(demos: Path, tmp_path: Path) -> None:
    losses = {}
    for dtype in ("float32", "bfloat16"):
        config = new_weights(demos, tmp_path / dtype, max_steps=3, dtype=dtype)
        fine_tune(config)
        losses[dtype] = [row["loss"] for row in read_metrics(config.run_dir)]
        assert {value.dtype for value in final_state(config)["weights"].values()} == {torch.float32}
    assert losses["float32"] != losses["bfloat16"]
    np.testing.assert_allclose(losses["float32"], losses["bfloat16"], rtol=0.02)  # 8 bits of mantissa
