"""What makes steps faster must not change them: cached features and pictures that are prepared ahead, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grape.config.train import TrainConfig
from grape.errors import DatasetError
from grape.models import OpenVLAPolicy
from grape.models.openvla import OpenVLA
from grape.trainer import loop
from grape.trainer.features import FeatureStore
from grape.trainer.gradient import StepScorer, backward_example
from grape.trainer.loop import train
from grape.trainer.metrics import read_metrics
from grape.trainer.prefetch import cropped
from tests.trainer import tiny
from tests.trainer.test_gradient import add_moved_adapter, gradients, make_batch
from tests.trainer.test_interruptions import adapter_tensors
from tests.trainer.test_prepare import CROPPED

LENGTHS = [(3, 9), (6, 5), (4, 4)]


def rows_of(config: TrainConfig) -> list[dict[str, Any]]:
    return [row | {"step_time_s": None} for row in read_metrics(config.run_dir)]


def equal_runs(first: TrainConfig, second: TrainConfig) -> bool:
    one, two = adapter_tensors(first.run_dir / "adapter"), adapter_tensors(second.run_dir / "adapter")
    return rows_of(first) == rows_of(second) and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes that went through the towers."""
    sizes: list[int] = []
    original = OpenVLA.encode_images

    def counted(self: OpenVLA, pixel_values: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixel_values))
        return original(self, pixel_values)

    monkeypatch.setattr(OpenVLA, "encode_images", counted)
    return sizes


def test_features_are_made_once_and_change_nothing(
    policy: OpenVLAPolicy, checkpoint: Path, tmp_path: Path, encodings: list[int]
) -> None:
    config = tiny.tiny_config(checkpoint, tmp_path, lora_targets="llm", lora_dropout=0.1)
    parameters = add_moved_adapter(policy, config)
    batch = make_batch(policy, config)  # 19 steps in micro-batches of 4

    def step(scorer: StepScorer) -> tuple[Any, dict[str, torch.Tensor]]:
        for parameter in parameters.values():
            parameter.grad = None
        return backward_example(scorer, batch, scorer.score_reference(batch), weight=1.0), gradients(parameters)

    without = StepScorer(policy, config)
    without._features = None
    wanted, wanted_gradients = step(without)
    assert sum(encodings) == 3 * 19  # the reference, the pass without gradients, the pass with them
    encodings.clear()
    got, got_gradients = step(StepScorer(policy, config))
    assert sum(encodings) == 19
    assert got == wanted and got_gradients.keys() == wanted_gradients.keys()
    assert all(torch.equal(got_gradients[name], value) for name, value in wanted_gradients.items())


@pytest.mark.parametrize("changes", [{}, {"image_aug": True}, {"objective": "window", "window_size": 4}], ids=str)
def test_whole_runs_are_equal_with_every_size_of_cache(
    checkpoint: Path, first_action_id: int, tmp_path: Path, encodings: list[int], changes: dict[str, Any]
) -> None:
    pairs = tiny.make_pairs(LENGTHS[:2], first_action_id)
    configs, counts = [], []
    for size in (0.0, 1.0):
        root = tmp_path / str(size)
        config = tiny.tiny_config(checkpoint, root, lora_targets="llm", epoch=2, feature_cache_gb=size, **changes)
        encodings.clear()
        train(config, pairs)
        configs.append(config)
        counts.append(sum(encodings))
    assert equal_runs(*configs)
    if changes.get("image_aug"):
        assert counts[1] == counts[0], "other pictures in each epoch"
    else:
        assert counts[1] < counts[0], "the second epoch's are the first's"
    if not changes:
        assert counts == [2 * 23, 23]


def test_adapters_on_the_towers_turn_the_cache_off(policy: OpenVLAPolicy, checkpoint: Path, tmp_path: Path) -> None:
    config = tiny.tiny_config(checkpoint, tmp_path)
    add_moved_adapter(policy, config)
    batch = make_batch(policy, config)
    scorer = StepScorer(policy, config)
    # Were the features of the reference's pass used again, gradients of the towers' adapters would be missing.
    backward_example(scorer, batch, scorer.score_reference(batch), weight=1.0)
    missing = [name for name, value in policy.model.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []


def test_the_least_recently_used_leave_and_the_one_in_hand_stays(
    policy: OpenVLAPolicy, checkpoint: Path, tmp_path: Path
) -> None:
    config = tiny.tiny_config(checkpoint, tmp_path)
    batches = [make_batch(policy, config, (1, length)) for length in (2, 3, 4, 5)]
    # The same pictures begin each rejected trajectory of one seed, so make them differ.
    batches = [dataclasses.replace(one, images=one.images ^ np.uint8(i)) for i, one in enumerate(batches)]
    one_picture = policy.image_features(list(batches[0].images[:1])).nbytes
    store = FeatureStore(7 * one_picture)

    def use(index: int) -> bool:
        before = store.num_computed
        store.of(policy, batches[index], slice(0, len(batches[index])))
        return store.num_computed > before

    assert [use(0), use(1), use(0)] == [True, True, False]  # 3 + 4 pictures: just within the bound
    assert use(2) and store.num_bytes == 5 * one_picture  # 5 more: the second, then the first had to go
    assert use(1) and use(3) and store.num_bytes == 6 * one_picture
    small = FeatureStore(0)
    features = small.of(policy, batches[3], slice(0, 6))
    assert small.num_bytes == features.nbytes and torch.equal(small.of(policy, batches[3], slice(0, 6)), features)


@pytest.mark.parametrize("changes", [{"image_aug": True}, {"objective": "window", "window_size": 4}], ids=str)
def test_preparing_ahead_changes_nothing_and_resumes(
    checkpoint: Path, first_action_id: int, tmp_path: Path, changes: dict[str, Any]
) -> None:
    pairs = tiny.make_pairs(LENGTHS, first_action_id, **CROPPED)
    settings: dict[str, Any] = {"batch_size": 2, "epoch": 2, "shuffle_buffer_size": 2, **changes}
    plain = tiny.tiny_config(checkpoint, tmp_path / "plain", prefetch=False, **settings)
    ahead = tiny.tiny_config(checkpoint, tmp_path / "ahead", **settings, max_steps=2)
    train(plain, pairs)
    train(ahead, pairs)
    train(dataclasses.replace(ahead, resume=True, max_steps=None), pairs)
    assert equal_runs(plain, ahead)


def test_cropping_once_equals_cropping_in_each_pass(policy: OpenVLAPolicy, checkpoint: Path, tmp_path: Path) -> None:
    batch = dataclasses.replace(make_batch(policy, tiny.tiny_config(checkpoint, tmp_path)), center_crop=True)
    once = cropped(batch)
    assert not once.center_crop and not np.array_equal(once.images, batch.images)
    in_each_pass = policy.image_transform(list(batch.images), center_crop=True)
    assert torch.equal(policy.image_transform(list(once.images)), in_each_pass)


class FailingEpisode(tiny.MemoryEpisode):
    def decode_images(self, steps: Sequence[int]) -> np.ndarray:
        raise DatasetError(f"{self.source} cannot be decoded")


def preparing_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("grape-prefetch")]


def test_an_error_comes_up_at_its_example_and_the_thread_ends(
    checkpoint: Path, first_action_id: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tiny.make_pairs(LENGTHS, first_action_id)
    broken = FailingEpisode(**vars(pairs.pairs[2].chosen))
    pairs.pairs[2] = dataclasses.replace(pairs.pairs[2], chosen=broken)
    config = tiny.tiny_config(checkpoint, tmp_path, shuffle_buffer_size=1)
    seen: list[list[str]] = []
    real_step = loop.train_step

    def watched(*arguments: Any) -> dict[str, float]:
        seen.append(preparing_threads())
        return real_step(*arguments)

    monkeypatch.setattr(loop, "train_step", watched)
    with pytest.raises(DatasetError, match="memory#4 cannot be decoded"):
        train(config, pairs)
    assert [row["step"] for row in read_metrics(config.run_dir)] == [1, 2], "the two before it are trained on"
    assert seen[0], "there was a thread"
    assert preparing_threads() == []


def test_trains_over_a_4_bit_base(checkpoint: Path, first_action_id: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pairs = tiny.make_pairs([(3, 4)], first_action_id)
    config = tiny.tiny_config(checkpoint, tmp_path, use_quantization=True, lora_targets="llm", epoch=8)
    adapter = train(config, pairs)
    losses = [row["loss"] for row in read_metrics(config.run_dir)]
    assert losses[0] == pytest.approx(np.log(2)) and losses[-1] < 0.9 * losses[0]
    record = json.loads((adapter / "training.json").read_text())
    assert record["config"]["use_quantization"] is True and record["quantization"].startswith("nf4")
    assert "bitsandbytes" in record["versions"]
    whole = tiny.tiny_config(checkpoint, tmp_path, lora_targets="llm", epoch=1, run_name="whole")
    train(whole, pairs)
    values = {str(np.load(path)["settings"]): np.load(path)["step_logps"] for path in tmp_path.rglob("*.npz")}
    assert sorted("nf4" in settings for settings in values) == [False, True]
    assert not np.array_equal(*values.values()), "the reference is the quantised base"
