"""What the meta device counts against what real passes keep, and against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from grape.models import OpenVLAPolicy, load_policy
from grape.models.checkpoint import build_on_meta
from grape.models.random_checkpoint import lay_out, shard_header, write_random_checkpoint
from grape.models.recompute import recompute_blocks
from grape.trainer import memory
from grape.trainer.gradient import StepScorer, backward_example
from grape.trainer.kernels import training_attention
from grape.trainer.prepare import StepBatch
from grape.trainer.step_cost import AliveBytes, KeptBytes, OnMeta, StepCost, measure_step, meta_policy
from tests.trainer import tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("random")
    for preset in ("test", "nano"):
        write_random_checkpoint(preset, root / preset)
    return {preset: root / preset for preset in ("test", "nano")}


def adapted(config: Any) -> OpenVLAPolicy:
    policy = load_policy(config.vla_path, device="cpu", dtype=config.dtype)
    policy.with_adapter(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
    return policy


def step_batch(policy: OpenVLAPolicy, rows: int) -> StepBatch:
    rng, size = np.random.default_rng(rows), policy.image_size
    first = policy.action_tokenizer.first_id
    return StepBatch(
        images=rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
        instructions=[tiny.INSTRUCTION] * rows,
        tokens=rng.integers(first, first + 256, (rows, 7)),
        num_chosen=rows,
        center_crop=False,
        label="rows",
    )


def really_kept(policy: OpenVLAPolicy, config: Any, rows: int) -> int:
    """Bytes behind the tensors that autograd keeps in a real pass: by address, weights left out."""
    scorer, batch = StepScorer(policy, config), step_batch(policy, rows)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*policy.model.parameters(), *policy.model.buffers())}
    kept: list[Tensor] = []  # holds them, so that no address comes twice
    with (
        training_attention(CPU),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
    ):
        scorer.score(batch, slice(0, rows))
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for address, size in sizes.items() if address not in weights)


def measured(config: Any, dtype: torch.dtype = torch.float32, **changes: Any) -> StepCost:
    arguments: dict[str, Any] = {"device": CPU, "instruction": tiny.INSTRUCTION, "recompute": False}
    return measure_step(config, dtype=dtype, **arguments | changes)


@pytest.mark.parametrize(
    ("preset", "changes", "recompute"),
    [
        ("test", {"lora_targets": "llm", "include_end_token": True}, False),
        ("test", {"attn_implementation": "eager", "lora_dropout": 0.2}, False),
        ("test", {"lora_dropout": 0.2}, True),
        ("nano", {"dtype": "bfloat16"}, False),
        ("nano", {}, True),
    ],
    ids=str,
)
def test_counts_what_real_passes_keep(
    folders: dict[str, Path], tmp_path: Path, preset: str, changes: dict[str, Any], recompute: bool
) -> None:
    config = tiny.tiny_config(folders[preset], tmp_path, **changes)
    policy = adapted(config)
    if recompute:
        recompute_blocks(policy.network, replay_dropout=config.lora_dropout > 0)
    cost = measured(config, policy.dtype, recompute=recompute)
    assert cost.activations.per_row > 0 and cost.logits.per_row > 0
    for rows in (2, 5, 6):  # 5 and 6 were not measured: the count is a line
        planned = cost.activations.at(rows) + cost.logits.at(rows)
        # Layer norms keep their statistics in the pictures' type on a CPU, in float32 on a GPU and on the meta device.
        tolerance = 1e-3 if policy.dtype == torch.bfloat16 else 0
        assert planned == pytest.approx(really_kept(policy, config, rows), rel=tolerance, abs=0)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_peak_is_that_of_a_real_pass(folders: dict[str, Path], tmp_path: Path, recompute: bool) -> None:
    config = tiny.tiny_config(folders["nano"], tmp_path)
    policy, rows = adapted(config), 4
    if recompute:
        recompute_blocks(policy.network)
    scorer, batch = StepScorer(policy, config), step_batch(policy, rows)
    with training_attention(CPU):
        scorer.score(batch, slice(0, rows)).sum().backward()  # gradients are there, as where the peak is counted
        with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
            scorer.score(batch, slice(0, rows)).sum().backward()
    held, most = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    # The real kernels' own buffers (packed matrices) and the pictures before they are a tensor come on top.
    assert measured(config, recompute=recompute).peak.at(rows) == pytest.approx(most, rel=0.05)


def test_a_long_trajectory_takes_no_more_than_a_short_one(folders: dict[str, Path], tmp_path: Path) -> None:
    config = tiny.tiny_config(folders["test"], tmp_path, micro_batch_size=4)
    policy = adapted(config)
    scorer = StepScorer(policy, config)

    def peak(num_steps: int) -> int:
        batch = dataclasses.replace(step_batch(policy, num_steps), num_chosen=num_steps // 2)
        reference = scorer.score_reference(batch)
        with AliveBytes(policy.model) as alive:
            backward_example(scorer, batch, reference, weight=1.0)
        return alive.peak

    peak(8)  # the gradients are there from now on
    short, long = peak(8), peak(80)
    assert short > 500_000  # pictures, activations and logits of one micro-batch
    assert abs(long - short) < 72 * 8 * 10  # a few float64 per step, and no picture of 28 · 28 · 6 float32


def test_gradient_checkpointing_keeps_less(folders: dict[str, Path], tmp_path: Path) -> None:
    config = tiny.tiny_config(folders["nano"], tmp_path)
    without, with_it = measured(config), measured(config, recompute=True)
    assert with_it.activations.per_row < 0.2 * without.activations.per_row
    assert with_it.peak.per_row < 0.5 * without.peak.per_row
    assert with_it.logits == without.logits


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_attention_on_a_gpu_keeps_no_pairs_of_tokens(dtype: torch.dtype, itemsize: int) -> None:
    batch, heads, tokens, width = 2, 3, 64, 16
    inputs = [
        torch.empty(batch, heads, tokens, width, dtype=dtype, device="meta", requires_grad=True) for _ in range(3)
    ]
    kept = KeptBytes(torch.nn.Module())
    with OnMeta(GPU), kept:
        mixed = F.scaled_dot_product_attention(*inputs, is_causal=True)
    assert mixed.shape == inputs[0].shape
    by_hand = 4 * batch * heads * tokens * width * itemsize + batch * heads * tokens * 4  # q, k, v, out; log-sum-exp
    assert by_hand <= kept.total <= by_hand + 32  # and the state of a random generator, a few words
    assert kept.total < by_hand + batch * heads * tokens * tokens


@pytest.fixture(scope="module")
def hollow_7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """openvla-7b's folder with names, shapes and types, and a hole on the disk where the numbers would be."""
    folder = tmp_path_factory.mktemp("hollow") / "openvla-7b"
    folder.mkdir()
    config, assets = lay_out("openvla-7b")
    for name, content in assets.items():
        (folder / name).write_bytes(content)
    shapes = {name: tuple(tensor.shape) for name, tensor in build_on_meta(config).state_dict().items()}
    header = shard_header(shapes, "bfloat16")
    (folder / "model.safetensors").write_bytes(header)
    os.truncate(folder / "model.safetensors", len(header) + 2 * sum(map(math.prod, shapes.values())))
    return folder


def test_openvla_7b_is_planned_without_its_bytes(
    hollow_7b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.tiny_config(hollow_7b, tmp_path, lora_rank=32, lora_targets="llm", gradient_checkpointing="on")
    policy = meta_policy(config, torch.bfloat16)
    monkeypatch.setattr(memory, "usable_bytes", lambda *_: 40_000_000_000)  # there is no GPU to ask
    [plan] = memory.make_plans(config, policy, GPU, tiny.INSTRUCTION)
    assert plan.weights == pytest.approx(2 * 7_541_237_184, rel=1e-6)  # published; the rotary frequencies come on top
    per_layer = 4 * 32 * (4096 + 4096) + 3 * 32 * (4096 + 11008)
    assert plan.adapter == 4 * 4 * 32 * per_layer
    cost, tokens, width, layers = plan.step, 256 + num_text_tokens(policy), 4096, 32
    assert cost.activations.fixed < 1e6
    # Each layer keeps its input in bfloat16. Beside them: the final norm's and the cosines, below a tenth.
    inputs = layers * tokens * width * 2
    assert inputs <= cost.activations.per_row <= 1.1 * inputs
    # What one layer needs while it runs again comes on top, and is far from what all 32 need (2.6 GB).
    assert cost.activations.per_row < cost.peak.per_row < 4 * cost.activations.per_row
    assert plan.most_rows > 64
    assert f"{_gb(plan.weights)}  base weights" in dataclasses.replace(plan, rows=64).describe(GPU)


def num_text_tokens(policy: OpenVLAPolicy) -> int:
    return len(policy.prompts.action_prefix_ids(tiny.INSTRUCTION)) + 7


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f}"
