"""The benchmark of a training step runs, and its two ways compute the same loss of a window."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import tpo_step
from grape.trainer.distributed import Ranks

CPU = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def test_both_ways_have_one_loss_and_take_one_step(tmp_path: Path) -> None:
    asked = tpo_step.StepBenchmark(preset="test", dtype="float32", device="cpu", lora_rank=2, window_size=3)
    with tpo_step.checkpoint(asked) as path:
        config = dataclasses.replace(asked, vla_path=path)
        plain = tpo_step.Plain(config, CPU.device)
        policy, trainer = tpo_step.load_ours(config, CPU, longest=3)
    ours = tpo_step.Ours(policy, dataclasses.replace(trainer, include_end_token=True))
    window = tpo_step.random_pair(policy, 3)
    reference = ours.scorer.score_reference(window)
    weights = dict(policy.network.named_parameters())
    torch.manual_seed(0)
    with torch.no_grad():  # the same adapter in both, away from its start, where every loss is log 2
        for name, value in plain.policy.network.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.1)
                weights[name].copy_(value)
    assert ours.step(window, reference) == pytest.approx(plain.step(window), rel=1e-5)
    moved = [name for name, value in plain.policy.network.named_parameters() if value.requires_grad]
    assert moved and all("lora_" in name for name in moved)
    for name in moved:  # AdamW's first step moves each weight by the learning rate, whatever rounding does
        torch.testing.assert_close(weights[name], dict(plain.policy.network.named_parameters())[name], atol=3e-6, rtol=0)


def test_the_command_prints_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    out = tmp_path / "step.json"
    flags = "--preset test --num_steps 3 --window_size 2 --num_rounds 1 --short_steps 2 --long_steps 4 --device cpu"
    monkeypatch.setattr(sys, "argv", ["tpo_step", *flags.split(), "--lora_rank", "2", "--out", str(out)])
    assert tpo_step.main() == 0
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert len(result["peaks"]) == 3 and all(peak["peak"] >= peak["before"] > 0 for peak in result["peaks"].values())
    for name, seconds in result["seconds"].items():
        assert f"{name:<50} {seconds:>10.3f} s" in printed
    assert 0 < result["utilisation"]["share"] < 1.5 and result["micro_batch_size"] == 16
