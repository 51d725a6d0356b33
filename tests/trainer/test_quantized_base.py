"""Training an adapter on a 4-bit base, from the settings to the merged checkpoint."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch

from grape.cli.main import run_command
from grape.models import load_policy
from grape.trainer.loop import train
from grape.trainer.metrics import read_metrics
from tests.trainer import tiny


def test_a_run_on_a_4_bit_base(checkpoint: Path, first_action_id: int, tmp_path: Path, caplog, capsys) -> None:
    pairs = tiny.make_pairs([(6, 5), (4, 6)], first_action_id)
    settings = tiny.tiny_config(checkpoint, tmp_path, epoch=6, batch_size=2, use_quantization=True)
    with caplog.at_level(logging.INFO, "grape"):
        train(settings, pairs)
        assert "Reference: 0 pairs from cache, 2 computed" in caplog.text
        adapter = train(tiny.tiny_config(checkpoint, tmp_path, epoch=6, batch_size=2, run_name="full"), pairs)
        assert caplog.text.count("2 computed") == 2 and "quantization: nf4" in caplog.text  # another base, and why
    losses = [row["loss"] for row in read_metrics(settings.run_dir)]
    assert losses[0] == pytest.approx(math.log(2)) and losses[-1] < 0.5
    assert losses != [row["loss"] for row in read_metrics(adapter.parent)]

    adapter, merged = settings.run_dir / "adapter", tmp_path / "merged"
    assert json.loads((adapter / "training.json").read_text())["quantization"].startswith("nf4")
    command = ["--vla_path", str(checkpoint), "--adapter", str(adapter), "--out", str(merged), "--device", "cpu"]
    assert run_command("merge", command) == 0
    assert "trained on a 4-bit base" in capsys.readouterr().out
    assert load_policy(merged, device="cpu").dtype == torch.float32
