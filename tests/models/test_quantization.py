"""A 4-bit base: which layers, the same numbers as with the rounded weights written out, and nothing rounded is kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grape.cli.merge import main as merge_main
from grape.errors import ConfigError, MissingDependencyError
from grape.models import OpenVLAPolicy, load_policy, save_policy
from grape.models.adapter import save_adapter
from grape.models.quantization import replaced_layers
from tests.models.test_adapter import TOKENS
from tests.models.tiny_policy import INSTRUCTIONS

bnb = pytest.importorskip("bitsandbytes")


@pytest.fixture
def quantized(folder: Path) -> OpenVLAPolicy:
    return load_policy(folder, device="cpu", quantize=True)


def dequantized(quantized: OpenVLAPolicy, folder: Path) -> OpenVLAPolicy:
    """An ordinary policy whose weights are the rounded ones, written out."""
    plain = load_policy(folder, device="cpu")
    weights = plain.network.state_dict()
    for name, layer in replaced_layers(quantized.network).items():
        weights[name].copy_(bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state))
    return plain


def moved(policy: OpenVLAPolicy) -> dict[str, Tensor]:
    """A new adapter, away from its start."""
    torch.manual_seed(0)
    policy.with_adapter(4, dropout=0.0)
    trained = {name: value for name, value in policy.model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for value in trained.values():
            value.add_(0.05 * torch.randn_like(value))
    return trained


def test_the_language_model_s_linear_layers_and_no_others(quantized: OpenVLAPolicy, folder: Path) -> None:
    plain = load_policy(folder, device="cpu")
    packed = replaced_layers(quantized.network)
    assert len(packed) == 2 * 7 and all(".layers." in name for name in packed)
    for name, value in plain.network.named_parameters():
        stored = quantized.network.get_parameter(name)
        if name in packed:
            assert stored.dtype == torch.uint8 and stored.numel() == value.numel() / 2
            assert stored.quant_state.quant_type == "nf4" and stored.quant_state.nested
        else:
            assert torch.equal(stored, value)
    assert quantized.dtype == torch.float32 and quantized.checkpoint_hash == plain.checkpoint_hash


def test_values_and_gradients_are_those_of_the_rounded_weights(quantized, folder, images) -> None:
    plain = dequantized(quantized, folder)
    results = []
    for policy in (quantized, plain):
        with torch.no_grad():
            base = policy.log_prob(images, INSTRUCTIONS, TOKENS)
        trained = moved(policy)
        value = policy.log_prob(images, INSTRUCTIONS, TOKENS)
        value.sum().backward()
        with policy.reference(), torch.no_grad():
            assert torch.equal(policy.log_prob(images, INSTRUCTIONS, TOKENS), base)
        results.append({"base": base, "value": value.detach()} | {name: one.grad for name, one in trained.items()})
    got, wanted = results
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        # The same products, summed in another order: some 1e-6 of the largest entry, over two layers.
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=2e-5 * value.abs().max().item())
    with torch.no_grad():
        unrounded = load_policy(folder, device="cpu").log_prob(images, INSTRUCTIONS, TOKENS)
    assert (wanted["base"] - unrounded).abs().max() > 1e-2, "rounding is visible, else this compares nothing"


def test_bfloat16_computes_in_bfloat16(folder, images) -> None:
    policy = load_policy(folder, device="cpu", dtype="bfloat16", quantize=True)
    moved(policy)
    kept: list[Tensor] = []
    layer = next(iter(replaced_layers(policy.network).values()))
    layer.register_forward_hook(lambda _, inputs, output: kept.extend([*inputs, output]))
    policy.log_prob(images, INSTRUCTIONS, TOKENS).sum().backward()
    assert {one.dtype for one in kept} == {torch.bfloat16}


def test_rounded_weights_are_never_written(quantized, folder, images, tmp_path) -> None:
    with pytest.raises(ConfigError, match="rounded weights are not written"):
        save_policy(quantized, tmp_path / "x")
    moved(quantized)
    with pytest.raises(ConfigError, match="grape merge"):
        quantized.merge_adapter()
    save_adapter(quantized, tmp_path / "adapter")
    flags = ["--vla_path", str(folder), "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]
    assert merge_main(flags) == 0
    with torch.no_grad():
        on_whole_weights = load_policy(folder, adapter=tmp_path / "adapter", device="cpu")
        wanted = on_whole_weights.log_prob(images, INSTRUCTIONS, TOKENS)
        got = load_policy(tmp_path / "merged", device="cpu").log_prob(images, INSTRUCTIONS, TOKENS)
        again = load_policy(folder, adapter=tmp_path / "adapter", device="cpu", quantize=True)
        torch.testing.assert_close(
            again.log_prob(images, INSTRUCTIONS, TOKENS), quantized.log_prob(images, INSTRUCTIONS, TOKENS)
        )
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)  # nats: the product is added before, not after


def test_without_bitsandbytes_the_extra_is_named(folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "grape-vla\[quantization\]"'):
        load_policy(folder, device="cpu", quantize=True)
