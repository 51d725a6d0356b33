"""Runs of one process that are killed, stopped or damaged; of several: test_ranks.py."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grape.errors import ConfigError, TrainingError
from grape.models import OpenVLAPolicy, load_policy
from grape.trainer import loop
from grape.trainer.checkpoint import lock_run_dir
from grape.trainer.loop import train
from grape.trainer.metrics import read_metrics
from tests.trainer import tiny
from tests.trainer.kill_and_resume import adapter_tensors, logged


def test_killed_at_random_moments_ends_bit_for_bit_equal(repository: Path) -> None:
    command = [sys.executable, "-m", "tests.trainer.kill_and_resume", "--kills", "4"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["equal"] and report["kills"] == 4
    resumed_from = set(report["last_checkpoint_at_kill"]) - {0}
    assert len(resumed_from) >= 2, report  # most kills fell on a run that had got on since the kill before


def test_ctrl_c_saves_and_resumes(
    checkpoint: Path, first_action_id: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tiny.make_pairs([(3, 4), (4, 3), (3, 3)], first_action_id)
    straight = tiny.tiny_config(checkpoint, tmp_path / "straight")
    train(straight, pairs)
    stopped = tiny.tiny_config(checkpoint, tmp_path / "stopped")
    real_step = loop.train_step

    def step_with_signal(*arguments: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)  # in the middle of a step
        return real_step(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step_with_signal)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, pairs)
    assert [row["step"] for row in read_metrics(stopped.run_dir)] == [1]
    with pytest.raises(ConfigError, match="holds a run of 1 steps; continue it with --resume True"):
        train(stopped, pairs)
    train(dataclasses.replace(stopped, resume=True), pairs)
    assert logged(stopped) == logged(straight)
    wanted, got = adapter_tensors(straight.run_dir / "adapter"), adapter_tensors(stopped.run_dir / "adapter")
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_resume_refuses_other_settings_and_says_which(checkpoint: Path, first_action_id: int, tmp_path: Path) -> None:
    pairs = tiny.make_pairs([(3, 4), (4, 3)], first_action_id)
    config = tiny.tiny_config(checkpoint, tmp_path)
    train(config, pairs)
    with pytest.raises(ConfigError, match="beta: 0.1 then, 0.5 now"):
        train(dataclasses.replace(config, resume=True, beta=0.5), pairs)
    with pytest.raises(ConfigError, match="number of pairs: 2 then, 1 now"):
        train(dataclasses.replace(config, resume=True), tiny.MemoryPairs(pairs.pairs[:1]))
    other = tiny.make_pairs([(4, 3), (3, 4)], first_action_id)
    with pytest.raises(
        ConfigError, match=r"other settings or data \(digest of the pairs in .*: \w{32} then, \w{32} now\)"
    ):
        train(dataclasses.replace(config, resume=True), other)
    with pytest.raises(ConfigError, match="processes: 1 then, 2 now"):
        train(dataclasses.replace(config, resume=True, batch_size=2), pairs)
    train(dataclasses.replace(config, resume=True, epoch=2), pairs)  # longer is the same run
    assert [row["step"] for row in read_metrics(config.run_dir)] == [1, 2, 3, 4]


def test_falls_back_from_a_damaged_checkpoint(
    checkpoint: Path, first_action_id: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = tiny.make_pairs([(3, 4), (4, 3), (3, 3)], first_action_id)
    config = tiny.tiny_config(checkpoint, tmp_path, save_steps=1)
    adapter = train(config, pairs)
    wanted = adapter_tensors(adapter)
    newest = config.run_dir / "checkpoints" / "step-00000003" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    train(dataclasses.replace(config, resume=True), pairs)
    assert "Checkpoint of step 3 is damaged" in caplog.text
    assert [row["step"] for row in read_metrics(config.run_dir)] == [1, 2, 3]
    assert all(torch.equal(value, wanted[name]) for name, value in adapter_tensors(adapter).items())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good(
    checkpoint: Path, first_action_id: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tiny.make_pairs([(3, 4), (4, 3), (3, 3)], first_action_id)
    config = tiny.tiny_config(checkpoint, tmp_path, save_steps=1, shuffle_buffer_size=1)
    real_log_prob = OpenVLAPolicy.log_prob
    second = pairs.pairs[1].chosen

    def overflowing(self: OpenVLAPolicy, images, instructions, tokens, **settings):  # type: ignore[no-untyped-def]
        values = real_log_prob(self, images, instructions, tokens, **settings)
        return values * float("nan") if (tokens[0] == second.action_tokens[0]).all() else values

    monkeypatch.setattr(OpenVLAPolicy, "log_prob", overflowing)
    with pytest.raises(TrainingError, match=r"step 2: pair 000001--tiny.*last good checkpoint, step 1, is kept"):
        train(config, pairs)
    assert [row["step"] for row in read_metrics(config.run_dir)] == [1]
    assert len(list((config.run_root_dir / "reference_cache").rglob("*.npz"))) == 1  # the broken one is not stored


def test_two_runs_into_one_folder(checkpoint: Path, first_action_id: int, tmp_path: Path) -> None:
    config = tiny.tiny_config(checkpoint, tmp_path)
    with lock_run_dir(config.run_dir), pytest.raises(TrainingError, match="another run is writing into"):
        train(config, tiny.make_pairs([(3, 4)], first_action_id))


def test_the_adapter_loads_and_acts_on_the_policy(checkpoint: Path, first_action_id: int, tmp_path: Path) -> None:
    pairs = tiny.make_pairs([(3, 4), (4, 3)], first_action_id)
    config = tiny.tiny_config(checkpoint, tmp_path, epoch=3)
    adapter = train(config, pairs)
    trained, base = load_policy(checkpoint, adapter=str(adapter), device="cpu"), load_policy(checkpoint, device="cpu")
    chosen, rejected = pairs.pairs[0].chosen, pairs.pairs[0].rejected

    def log_ratio(episode: tiny.EpisodeData) -> float:
        images, tokens = list(episode.decode_images(range(len(episode)))), episode.action_tokens
        assert tokens is not None
        words = [episode.instruction] * len(episode)
        with torch.no_grad():
            return (trained.log_prob(images, words, tokens) - base.log_prob(images, words, tokens)).sum().item()

    assert log_ratio(chosen) > 0 > log_ratio(rejected)
    kept = adapter_tensors(config.adapter_tmp_dir / config.run_name)  # type: ignore[operator]
    assert all(torch.equal(value, kept[name]) for name, value in adapter_tensors(adapter).items())
