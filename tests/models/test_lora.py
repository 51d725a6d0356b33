"""The LoRA layer against peft's own, in value, gradient and in what it keeps for the backward pass."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grape.models.adapter import load_adapter, save_adapter
from grape.models.lora import LightLoraLinear, use_light_lora
from tests.models.test_adapter import TOKENS, adapted
from tests.models.tiny_policy import INSTRUCTIONS, make_policy

ROWS, WIDTH, RANK = (3, 40), 64, 8


def wrapped(*, light: bool, dropout: float = 0.0, alpha: int = 5, dtype: torch.dtype = torch.float32) -> nn.Module:
    """One linear layer with an adapter whose matrices are both away from zero, the same for either class."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=alpha, lora_dropout=dropout, target_modules=["0"], init_lora_weights=False
    )
    if light:
        use_light_lora(config)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH)).to(dtype), config)
    assert isinstance(model.base_model.model[0], LightLoraLinear) == light
    return model


def run(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, and gradients of a fixed weighting of it, for the input and the adapter."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # the dropout mask
    out = model(x)
    out.backward(torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype))
    trained = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    return {"out": out.detach(), "x": x.grad, **trained}  # type: ignore[dict-item]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_equals_peft_in_float32(dropout: float) -> None:
    x = torch.randn(*ROWS, WIDTH, generator=torch.Generator().manual_seed(2))
    wanted, got = run(wrapped(light=False, dropout=dropout), x), run(wrapped(light=True, dropout=dropout), x)
    assert len(wanted) == 4 and got.keys() == wanted.keys()
    for name, value in wanted.items():
        # Scale and sum fall elsewhere among the roundings: a few of 6e-8, of the largest entry where terms cancel.
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=2e-6 * value.abs().max().item())


def test_bfloat16_is_as_close_to_the_truth_as_its_roundings() -> None:
    x = torch.randn(*ROWS, WIDTH, generator=torch.Generator().manual_seed(2)).bfloat16()
    model = wrapped(light=True, dtype=torch.bfloat16)
    got = run(model, x)
    truth = run(copy.deepcopy(wrapped(light=True, dtype=torch.bfloat16)).double(), x.double())
    assert {value.dtype for name, value in got.items() if "lora" in name} == {torch.float32}
    for name, value in truth.items():
        # Weights, inner product and result are each rounded by at most 2^-9 of their size; errors of the sums' terms
        # average out. 2^-7 of the norm leaves room for a few such roundings, a lost factor is far outside.
        assert (got[name] - value).norm() < 2**-7 * value.norm(), name


def kept_for_backward(model: nn.Module, x: Tensor) -> list[Tensor]:
    weights = {value.data_ptr() for value in model.parameters()}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x)
    return [tensor for tensor in kept if tensor.data_ptr() not in weights]


def test_no_float32_of_an_activation_s_size_is_kept() -> None:
    x = torch.randn(*ROWS, WIDTH).bfloat16().requires_grad_()

    def large(light: bool) -> list[Tensor]:
        kept = kept_for_backward(wrapped(light=light, dtype=torch.bfloat16), x)
        return [one for one in kept if one.dtype == torch.float32 and one.numel() >= x.numel()]

    assert large(light=False), "peft's own layer keeps one, else this test sees nothing"
    assert large(light=True) == []


def test_autocast_gives_the_type_of_the_output() -> None:
    x = torch.randn(*ROWS, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, got = wrapped(light=False)(x), wrapped(light=True)(x)
    assert got.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), wanted.double(), rtol=2**-6, atol=2**-6)  # a few roundings of 2^-9


def test_a_policy_s_adapter_is_light_fresh_and_loaded_and_leaves_its_base_alone(images, tmp_path) -> None:
    policy = adapted()
    layers = [layer for layer in policy.network.modules() if isinstance(layer, peft.tuners.lora.LoraLayer)]
    assert layers and all(isinstance(layer, LightLoraLinear) for layer in layers)
    save_adapter(policy, tmp_path)
    assert "LightLoraLinear" not in (tmp_path / "adapter_config.json").read_text()
    loaded = load_adapter(make_policy(), tmp_path)
    assert sum(isinstance(layer, LightLoraLinear) for layer in loaded.modules()) == len(layers)
    # The same file in peft's own layers gives the same log-probabilities.
    plain = make_policy()
    plain.model = peft.PeftModel.from_pretrained(plain.network, tmp_path)
    assert not any(isinstance(layer, LightLoraLinear) for layer in plain.model.modules())
    with torch.no_grad():
        wanted, got = (one.log_prob(images, INSTRUCTIONS, TOKENS) for one in (plain, policy))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)  # nats; float32 sums in another order, two layers deep


def test_merges_and_switches_off() -> None:
    x = torch.randn(*ROWS, WIDTH)
    model = wrapped(light=True)
    base = F.linear(x, model.base_model.model[0].base_layer.weight, model.base_model.model[0].base_layer.bias)
    with model.disable_adapter():
        assert torch.equal(model(x), base)
    with_adapter = model(x)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(merged(x), with_adapter, rtol=1e-4, atol=1e-5)  # the product is added before, not after
