"""Checkpoints with random weights: the published names and shapes, readable, and a function of the seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from grape.cli.main import main
from grape.errors import CheckpointError, ConfigError
from grape.models import load_policy, random_checkpoint
from grape.models.checkpoint import build_on_meta
from grape.models.random_checkpoint import lay_out, random_tensor, write_random_checkpoint
from grape.models.weights import INDEX_FILE, find_shards, read_tensors


def test_openvla_7b_has_the_published_names_shapes_and_action_ids(shared_dir: Path, tmp_path: Path) -> None:
    published = json.loads((shared_dir / "golden" / "openvla_7b_state_dict_shapes.json").read_text())
    config, assets = lay_out("openvla-7b")
    ours = {name: list(tensor.shape) for name, tensor in build_on_meta(config).state_dict().items()}
    assert ours == published
    vocabulary = json.loads(assets["tokenizer.json"])["model"]["vocab"]
    assert len(vocabulary) == 32_000
    assert (vocabulary["<action_0>"], vocabulary["<action_255>"]) == (31_744, 31_999)
    assert config.real_vocab_size == 32_000


@pytest.mark.parametrize(("preset", "millions"), [("nano", 4.5), ("micro", 11.3), ("mid", 91), ("openvla-7b", 7541)])
def test_presets_are_as_large_as_they_say(preset: str, millions: float) -> None:
    config, _ = lay_out(preset)
    assert sum(p.numel() for p in build_on_meta(config).parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    if preset == "mid":
        assert (config.image_size, config.num_patches) == (224, 256)


@pytest.mark.parametrize("preset", ["test", "nano"])
def test_the_command_writes_a_policy_that_acts(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made" / preset
    assert main(["init-checkpoint", "--preset", preset, "--out", str(folder), "--seed", "3"]) == 0
    assert f"wrote {folder}" in capsys.readouterr().out
    policy = load_policy(folder, device="cpu", dtype="float32")
    size = policy.image_size
    images = list(np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8))
    chosen = policy.act(images, ["put the bowl on the plate", "open it"], unnorm_key=None)
    assert np.isfinite(chosen.token_logps).all() and (np.abs(chosen.actions) <= 1).all()
    with torch.no_grad():
        logits = policy.action_logits(policy.forward_inputs(images, ["a", "b"], chosen.tokens))
    assert 0.05 < logits.std().item() < 20  # neither constant nor saturated
    assert json.loads((folder / "config.json").read_text())["random_weights"]["seed"] == 3
    assert main(["init-checkpoint", "--preset", preset, "--out", str(folder)]) == 1
    assert "exists; choose another folder" in capsys.readouterr().err


def test_the_seed_decides_the_weights_and_shards_do_not(tmp_path: Path) -> None:
    write_random_checkpoint("test", tmp_path / "whole", seed=1)
    write_random_checkpoint("test", tmp_path / "parts", seed=1, shard_bytes=30_000)
    write_random_checkpoint("test", tmp_path / "other", seed=2)
    policies = {name: load_policy(tmp_path / name, device="cpu") for name in ("whole", "parts", "other")}
    assert policies["whole"].checkpoint_hash == policies["parts"].checkpoint_hash
    assert policies["whole"].checkpoint_hash != policies["other"].checkpoint_hash
    shards = find_shards(tmp_path / "parts")
    assert len(shards) > 3 and (tmp_path / "parts" / INDEX_FILE).is_file()
    for shard in shards:
        tensors = dict(read_tensors([shard]))
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 30_000 or len(tensors) == 1
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_weights_are_normal_and_differ_between_tensors() -> None:
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    values = random_tensor(name, (400, 500), torch.bfloat16, 0).double()
    # 200,000 draws: the mean's standard error is 0.02/447, that of the standard deviation 0.02/632
    assert abs(values.mean().item()) < 5 * 0.02 / 447
    assert values.std().item() == pytest.approx(0.02, rel=5 / 632)
    assert not torch.equal(values, random_tensor(name.replace("up", "gate"), (400, 500), torch.bfloat16, 0).double())
    assert torch.equal(random_tensor("a.norm.weight", (5,), torch.float32, 0), torch.ones(5))
    assert torch.equal(random_tensor("a.bias", (5,), torch.float32, 0), torch.zeros(5))


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'openvla-7b'"):
        write_random_checkpoint("openvla-8b", tmp_path / "x")
    with pytest.raises(ConfigError, match="dtype 'bf16' is unknown"):
        write_random_checkpoint("test", tmp_path / "x", dtype="bf16")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="exists"):
        write_random_checkpoint("test", tmp_path / "full")
    with pytest.raises(CheckpointError, match=r"needs 1000000000.0 GB, and .* GB free"):
        random_checkpoint.check_room(tmp_path / "x", 10**18)

    def interrupted(*arguments: object) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(random_checkpoint, "random_tensor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_random_checkpoint("test", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
