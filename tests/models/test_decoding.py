"""Decoding over kept memory: against transformers' ``generate`` and its growing cache, captured or not."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.benchmarks.operations import count_decision
from experiments.benchmarks.sampling import decode_with_dynamic_cache, generate, main
from grape.models import OpenVLAPolicy, decoding, replay
from grape.models.decoding import Decoder
from grape.models.sampling import TokenPicker
from grape.models.vision import Attention
from grape.trajectory import ACTION_DIM
from tests.models.tiny_policy import INSTRUCTIONS

TOLERANCE = 1e-4
"""Nats, float32: sums over a longer, masked row add up in another order; measured 9e-6."""


class Tape:
    """Stands in for CUDA graphs: output lies in one place, inputs must, and what it records can be counted."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0

    def __call__(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.num_captures += 1
        output = step().clone()

        def run_again() -> Tensor:
            self.num_replays += 1
            return output.copy_(step())

        return run_again


def picker(temperature: float, uniforms: np.ndarray) -> TokenPicker:
    return TokenPicker(
        first_id=0, end_id=None, temperature=temperature, top_p=None, uniforms=torch.from_numpy(uniforms)
    )


def observations(policy: OpenVLAPolicy, batch: int, *, is_mixed: bool, seed: int = 0):
    rng = np.random.default_rng(seed)
    images = list(rng.integers(0, 256, (batch, policy.image_size, policy.image_size, 3), dtype=np.uint8))
    texts = [INSTRUCTIONS[row % len(INSTRUCTIONS) if is_mixed else 0] for row in range(batch)]
    return policy.forward_inputs(images, texts), rng.random((batch, ACTION_DIM))


def poison(decoder: Decoder) -> None:
    """Make all that earlier calls left unusable."""
    if decoder._memory is not None:
        decoder._memory.fill_(float("nan"))


CALLS = ((3, True), (8, False), (1, False), (8, True), (2, True), (5, True))
"""(batch, whether lengths differ), one after another on the same memory, which grows once."""


@pytest.mark.parametrize(
    ("kind", "temperature", "has_adapter"),
    [("plain", 0.0, False), ("plain", 1.0, True), ("captured", 1.0, False), ("captured", 0.0, True)],
)
def test_equals_the_growing_cache_in_every_batch(policy, kind, temperature, has_adapter, monkeypatch) -> None:
    monkeypatch.setitem(decoding.PREFILL_ROWS, "cpu", 3)  # so that chunks are cut, evenly and not
    if has_adapter:
        add_strong_adapter(policy)
    tape = Tape()
    decoder = Decoder(policy.network, tape if kind == "captured" else None)
    with torch.inference_mode():
        for number, (batch, is_mixed) in enumerate(CALLS):
            inputs, uniforms = observations(policy, batch, is_mixed=is_mixed, seed=number)
            assert len(inputs.num_prompt_ids.unique()) == (min(batch, 3) if is_mixed else 1)
            pick = picker(temperature, uniforms)
            poison(decoder)
            tokens, logps, sampler = decoder.decode(inputs, ACTION_DIM, pick)
            expected = decode_with_dynamic_cache(policy.network, inputs, ACTION_DIM, pick)
            torch.testing.assert_close(tokens, expected[0], atol=0, rtol=0)
            torch.testing.assert_close(logps, expected[1], atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(sampler, expected[2], atol=TOLERANCE, rtol=0)
    # 3 rows need a step of 4; 8, 1 and 2 their own; 5 one of 8. Growing memory from 4 to 8 rows forgets the first.
    assert tape.num_captures == (4 if kind == "captured" else 0)
    assert tape.num_replays == (len(CALLS) * (ACTION_DIM - 1) if kind == "captured" else 0)
    assert decoder.num_captured == (3 if kind == "captured" else 0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_equals_generate(policy, attention) -> None:
    policy.network.language_model.config._attn_implementation = attention
    rng = np.random.default_rng(3)
    images = list(rng.integers(0, 256, (3, 28, 28, 3), dtype=np.uint8))
    policy.norm_stats = {"one": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}}
    ours = policy.act(images, INSTRUCTIONS, unnorm_key="one", restrict_to_actions=False)
    with torch.inference_mode():
        alone = [generate(policy, image, text, 0.0) for image, text in zip(images, INSTRUCTIONS, strict=True)]
    np.testing.assert_array_equal(ours.tokens, np.concatenate(alone))


def test_a_call_does_not_depend_on_the_calls_before(policy) -> None:
    small, uniforms = observations(policy, 2, is_mixed=True)
    large, more = observations(policy, 9, is_mixed=True)
    for capture in (None, Tape()):
        decoder = Decoder(policy.network, capture)
        with torch.inference_mode():
            before = decoder.decode(small, ACTION_DIM, picker(1.0, uniforms))
            decoder.decode(large, ACTION_DIM, picker(1.0, more))
            after = decoder.decode(small, ACTION_DIM, picker(1.0, uniforms))
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_changed_weights_are_read_and_other_adapters_captured_anew(policy) -> None:
    add_strong_adapter(policy)
    inputs, uniforms = observations(policy, 2, is_mixed=True)
    tape, pick = Tape(), picker(0.0, uniforms)
    decoder = Decoder(policy.network, tape)

    def decode() -> Tensor:
        with torch.inference_mode():
            logps = decoder.decode(inputs, ACTION_DIM, pick)[1]
            expected = decode_with_dynamic_cache(policy.network, inputs, ACTION_DIM, pick)[1]
        torch.testing.assert_close(logps, expected, atol=TOLERANCE, rtol=0)
        return logps

    first = decode()
    with torch.no_grad():
        policy.network.language_model.lm_head.weight.mul_(0.5)
    assert not torch.allclose(first, decode()) and tape.num_captures == 1
    with policy.reference():
        decode()
        assert tape.num_captures == 2
    decode()
    assert tape.num_captures == 3
    policy.merge_adapter()
    decode()
    assert tape.num_captures == 4


def test_what_cannot_be_captured_runs_without_and_says_so_once(policy, caplog) -> None:
    def refuse(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    decoder = Decoder(policy.network, refuse)
    with torch.inference_mode():
        for batch in (2, 3):
            inputs, uniforms = observations(policy, batch, is_mixed=True)
            pick = picker(1.0, uniforms)
            expected = decode_with_dynamic_cache(policy.network, inputs, ACTION_DIM, pick)[0]
            assert torch.equal(decoder.decode(inputs, ACTION_DIM, pick)[0], expected)
    assert [record.message.count("not permitted") for record in caplog.records] == [1]
    assert decoder.num_captured == 0


def test_captured_steps_are_few_and_bounded(policy, monkeypatch) -> None:
    sizes = {replay.captured_rows(batch) for batch in range(1, 129)}
    assert sorted(sizes) == [1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128]
    assert len(sizes) <= replay.MAX_CAPTURED
    assert all(batch <= replay.captured_rows(batch) < 2 * batch + 7 for batch in range(1, 129))
    monkeypatch.setattr(replay, "MAX_CAPTURED", 2)
    tape = Tape()
    decoder = Decoder(policy.network, tape)
    with torch.inference_mode():
        for batch in (8, 4, 2, 4, 8):
            inputs, uniforms = observations(policy, batch, is_mixed=False)
            decoder.decode(inputs, ACTION_DIM, picker(0.0, uniforms))
            assert decoder.num_captured <= 2
    assert tape.num_captures == 4  # 8, 4, 2 (8 forgotten), 8 again
    decoder.release()
    assert decoder.num_captured == 0 and decoder._memory is None


def test_what_is_forgotten_is_freed_at_once(policy) -> None:
    """A captured step holds the cache, at 7 B gigabytes: it must not wait for Python to look for cycles."""
    inputs, uniforms = observations(policy, 2, is_mixed=False)
    decoder = Decoder(policy.network, lambda step: step)
    gc.disable()
    try:
        with torch.inference_mode():
            decoder.decode(inputs, ACTION_DIM, picker(0.0, uniforms))
        assert decoder.num_captured == 1 and decoder._memory is not None
        memory = weakref.ref(decoder._memory)
        decoder.release()
        assert memory() is None
    finally:
        gc.enable()


def test_operations_counted_by_hand_are_those_that_torch_counts(policy) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    inputs, _ = observations(policy, 1, is_mixed=False)
    network = policy.network
    network.language_model.config._attn_implementation = "eager"  # torch does not count its kernels on a CPU
    for module in network.vision_backbone.modules():
        if isinstance(module, Attention):
            module.eager = True
    counted = count_decision(policy.config, inputs.input_ids.shape[1])
    with torch.no_grad(), FlopCounterMode(display=False) as vision:
        network.embed(inputs.pixel_values, inputs.input_ids)
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        network(inputs.pixel_values, inputs.input_ids, inputs.num_prompt_ids[:, None] - 1)
    assert counted.vision == vision.get_total_flops()
    sequence = inputs.input_ids.shape[1] + policy.config.num_patches
    text = network.language_model.config
    unseen = 2 * text.num_hidden_layers * sequence**2 * text.hidden_size  # torch counts what causality hides, too
    assert counted.prefill + unseen == whole.get_total_flops() - vision.get_total_flops()


def test_the_benchmark_runs_and_its_ways_agree(tmp_path, capsys) -> None:
    out = tmp_path / "sampling.json"
    command = f"--preset test --batch_sizes 1 3 --rounds 1 --matmul_size 64 --device cpu --out {out}"
    assert main(command.split()) == 0
    result = json.loads(out.read_text())
    assert result["greedy_tokens_equal_plain"] == {"dynamic": 1.0, "ours": 1.0}
    assert result["ratio_to_plain"]["plain: generate, one observation"] == 1
    for parts in result["shares_of_ours"].values():
        assert sum(parts.values()) == pytest.approx(1)
    printed = capsys.readouterr().out
    for name, rate in result["actions_per_second"].items():
        assert f"{name:<36} {rate:>10.2f}" in printed


def add_strong_adapter(policy: OpenVLAPolicy) -> None:
    """An adapter that changes what comes out."""
    policy.with_adapter(4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    policy.model.eval()
