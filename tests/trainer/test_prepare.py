"""From stored pairs to inputs: tokens, pictures, origin; and the reference's cache."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
import torch

from grape.errors import CheckpointError, ConfigError, DatasetError, PairingError
from grape.models import OpenVLAPolicy, load_policy, prepare_image, save_policy
from grape.rlds import PairDataset, PreferencePair
from grape.trainer.loop import train
from grape.trainer.metrics import read_metrics
from grape.trainer.prepare import PairPreparer, StepBatch, check_tokens
from grape.trainer.reference import Fingerprint, ReferenceCache
from grape.trajectory import encode_png
from tests.trainer import tiny

CROPPED = {"metadata": {"policy_settings": {"center_crop": True, "unnorm_key": "tiny"}}}


def prepare(policy: OpenVLAPolicy, root: Path, pair: PreferencePair, *, epoch: int = 0, **settings: Any) -> StepBatch:
    config = tiny.tiny_config(Path(policy.name), root, **settings)
    preparer = PairPreparer(policy, config, base_hash=policy.checkpoint_hash)
    steps = range(len(pair.chosen)), range(len(pair.rejected))
    return preparer.batch(pair, epoch=epoch, chosen_steps=steps[0], rejected_steps=steps[1])


def one_pair(first_action_id: int, **changes: Any) -> PreferencePair:
    return tiny.make_pairs([(3, 5)], first_action_id, **changes).pairs[0]


def test_tokens_are_the_sampled_ones_chosen_first(policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path) -> None:
    pair = one_pair(first_action_id)
    batch = prepare(policy, tmp_path, pair)
    assert batch.num_chosen == 3 and len(batch) == 8
    assert np.array_equal(batch.tokens, np.concatenate([pair.chosen.action_tokens, pair.rejected.action_tokens]))  # type: ignore[arg-type]
    assert np.array_equal(batch.images[3:], pair.rejected.decode_images(range(5)))
    assert set(batch.instructions) == {tiny.INSTRUCTION}


def test_missing_tokens_come_from_the_checkpoints_statistics(
    policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = one_pair(first_action_id, action_tokens=None)
    batch = prepare(policy, tmp_path, pair)
    actions = pair.chosen.policy_actions
    assert actions is not None
    # q01 = -1 and q99 = 1 leave actions as they are; 256 edges on [-1, 1], the token is the vocabulary's end - bin
    bins = np.digitize(actions, np.linspace(-1, 1, 256))
    assert np.array_equal(batch.tokens[:3], policy.config.real_vocab_size - bins)
    assert "tokenised with the checkpoint's own statistics" in caplog.text


def test_an_unknown_unnorm_key_is_refused_also_where_tokens_make_it_needless(
    checkpoint: Path, first_action_id: int, tmp_path: Path
) -> None:
    pairs = tiny.make_pairs([(3, 4)], first_action_id)
    with pytest.raises(CheckpointError, match=r"unnorm_key 'tinny' .* Did you mean 'tiny'\? Known: tiny\."):
        train(tiny.tiny_config(checkpoint, tmp_path, unnorm_key="tinny"), pairs)
    train(tiny.tiny_config(checkpoint, tmp_path, unnorm_key="tiny", max_steps=1), pairs)


def test_neither_tokens_nor_policy_actions(policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="memory#0 has neither sampled tokens nor actions"):
        prepare(policy, tmp_path, one_pair(first_action_id, action_tokens=None, policy_actions=None))


def test_tokens_of_another_vocabulary(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    batch = prepare(policy, tmp_path, one_pair(first_action_id=31744))
    with pytest.raises(ConfigError, match="pair 000000--tiny.*the size of --vla_path's vocabulary"):
        check_tokens(batch, policy.config.real_vocab_size)


def test_center_crop_is_as_recorded_unless_said(policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path) -> None:
    plain, cropped = one_pair(first_action_id), one_pair(first_action_id, **CROPPED)
    assert not prepare(policy, tmp_path, plain).center_crop
    assert prepare(policy, tmp_path, cropped).center_crop
    assert not prepare(policy, tmp_path, cropped, center_crop=False).center_crop
    assert not prepare(policy, tmp_path, cropped, image_aug=True).center_crop  # the random crop is in its place
    mixed = dataclasses.replace(plain, chosen=cropped.chosen)
    with pytest.raises(PairingError, match="chosen was made with center_crop=True, rejected with False"):
        prepare(policy, tmp_path, mixed)
    assert prepare(policy, tmp_path, mixed, center_crop=True).center_crop


def test_raw_pictures_are_prepared(policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    pair = one_pair(first_action_id, encoded_images=tuple(encode_png(frame) for frame in [*raw, *raw[:2]]))
    batch = prepare(policy, tmp_path, pair)
    assert np.array_equal(batch.images[1], prepare_image(raw[1], policy.image_size))


def test_rollouts_of_other_inputs_are_refused(policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path) -> None:
    bare = one_pair(first_action_id, metadata={"policy_settings": {"prompt_style": "bare"}})
    with pytest.raises(ConfigError, match="made with prompt_style 'bare', not 'template'.*--prompt_style bare"):
        prepare(policy, tmp_path, bare)
    prepare(policy, tmp_path, bare, prompt_style="bare")
    older = one_pair(first_action_id, metadata={"policy_settings": {"temperature": 1.0}})
    prepare(policy, tmp_path, older)
    with pytest.raises(ConfigError, match="made with image_resize 'lanczos', not 'area'"):
        prepare(policy, tmp_path, older, image_resize="area")
    prepare(policy, tmp_path, one_pair(first_action_id, metadata={}), image_resize="area")  # made elsewhere


def test_augmentation_depends_on_pair_side_step_and_epoch(
    policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path
) -> None:
    same = one_pair(first_action_id).chosen
    pair = PreferencePair(pair_id="x", chosen=same, rejected=same)
    first = prepare(policy, tmp_path, pair, image_aug=True).images
    assert np.array_equal(first, prepare(policy, tmp_path, pair, image_aug=True).images)
    assert not np.array_equal(first[:3], first[3:])
    assert not np.array_equal(first, prepare(policy, tmp_path, pair, image_aug=True, epoch=1).images)
    assert not np.array_equal(first, prepare(policy, tmp_path, pair, image_aug=True, seed=8).images)
    config = tiny.tiny_config(Path(policy.name), tmp_path, image_aug=True)
    preparer = PairPreparer(policy, config, base_hash=policy.checkpoint_hash)
    window = preparer.batch(pair, epoch=0, chosen_steps=range(1, 3), rejected_steps=range(0, 1))
    assert np.array_equal(window.images, first[[1, 2, 3]])  # a window sees the same pictures as the whole


def test_warns_once_when_another_policy_made_the_rollouts(
    policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(policy, tmp_path, one_pair(first_action_id, metadata={"checkpoint_hash": policy.checkpoint_hash}))
    assert caplog.text == ""
    pair = one_pair(first_action_id, metadata={"checkpoint_hash": "feed" * 16})
    prepare(policy, tmp_path, pair)
    assert len(caplog.records) == 1
    assert "hash feedfeedfeed, but --vla_path has " + policy.checkpoint_hash[:12] in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"image_aug": True},
        {"center_crop": True},
        {"include_end_token": True},
        {"micro_batch_size": 3},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_fingerprint_covers_settings(
    policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path, settings: dict[str, Any]
) -> None:
    pair = one_pair(first_action_id)
    config = tiny.tiny_config(Path(policy.name), tmp_path)
    changed = dataclasses.replace(config, **settings)
    plain = PairPreparer(policy, config, base_hash="a").fingerprint(pair, epoch=0)
    assert plain == PairPreparer(policy, config, base_hash="a").fingerprint(pair, epoch=3)
    assert plain != PairPreparer(policy, changed, base_hash="a").fingerprint(pair, epoch=0)


def test_fingerprint_covers_type_device_and_release_of_torch(
    checkpoint: Path, first_action_id: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, config = one_pair(first_action_id), tiny.tiny_config(checkpoint, tmp_path)

    def fingerprint(policy: OpenVLAPolicy) -> Fingerprint:
        return PairPreparer(policy, config, base_hash="a").fingerprint(pair, epoch=0)

    policy = load_policy(checkpoint, device="cpu")
    prints = [fingerprint(policy), fingerprint(load_policy(checkpoint, device="cpu", dtype="bfloat16"))]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.0.0")
        prints.append(fingerprint(policy))
    policy.model.to("meta")  # a device that every machine has
    prints.append(fingerprint(policy))
    assert len(set(prints)) == len(prints)


def test_fingerprint_covers_weights_data_seed_and_epoch(
    policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path
) -> None:
    pair, config = one_pair(first_action_id), tiny.tiny_config(Path(policy.name), tmp_path, image_aug=True)
    preparer = PairPreparer(policy, config, base_hash="a")
    reseeded = PairPreparer(policy, dataclasses.replace(config, seed=9), base_hash="a")
    other_picture = dataclasses.replace(pair.chosen, encoded_images=pair.chosen.encoded_images[::-1])
    other_token = dataclasses.replace(pair.chosen, action_tokens=pair.chosen.action_tokens + 1)  # type: ignore[operator]
    prints = [
        preparer.fingerprint(pair, epoch=0),
        preparer.fingerprint(pair, epoch=1),
        reseeded.fingerprint(pair, epoch=0),
        PairPreparer(policy, config, base_hash="b").fingerprint(pair, epoch=0),
        preparer.fingerprint(dataclasses.replace(pair, chosen=other_picture), epoch=0),
        preparer.fingerprint(dataclasses.replace(pair, chosen=other_token), epoch=0),
        preparer.fingerprint(dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen), epoch=0),
    ]
    assert len(set(prints)) == len(prints)


def fingerprint_of(data: str, **settings: Any) -> Fingerprint:
    return Fingerprint.of(data, {"dtype": "torch.float32", "center_crop": False} | settings)


def test_reference_survives_on_the_disk_and_damage_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values, stored = torch.tensor([-1.5, -2.25]), fingerprint_of("ab12")
    ReferenceCache(tmp_path).store(0, 0, stored, values)
    cache = ReferenceCache(tmp_path)
    assert cache.recall(0, 0) is None and cache.load(0, 0, fingerprint_of("cd34"), num_steps=2) is None
    loaded = cache.load(0, 0, stored, num_steps=2)
    assert loaded is not None and torch.equal(loaded, values) and cache.recall(0, 0) is loaded
    assert caplog.text == "", "another pair is no other setting"
    [path] = tmp_path.rglob("*.npz")
    path.write_bytes(path.read_bytes()[:-40])
    assert ReferenceCache(tmp_path).load(0, 0, stored, num_steps=2) is None
    assert "is damaged" in caplog.text


def test_other_settings_are_named_once_and_the_nearest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = torch.tensor([-1.5])
    for pair in ("ab1", "ab2"):
        ReferenceCache(tmp_path).store(0, 0, fingerprint_of(pair, dtype="torch.bfloat16", center_crop=True), values)
        ReferenceCache(tmp_path).store(0, 0, fingerprint_of(pair, dtype="torch.bfloat16"), values)
    cache = ReferenceCache(tmp_path)
    assert [cache.load(0, 0, fingerprint_of(pair), num_steps=1) for pair in ("ab1", "ab2")] == [None, None]
    [record] = caplog.records
    assert "have other settings (dtype: torch.bfloat16 then, torch.float32 now) and" in record.getMessage()
    caplog.clear()
    ReferenceCache(tmp_path).load(0, 0, fingerprint_of("ab1", dtype="torch.bfloat16", epoch=3), num_steps=1)
    assert caplog.records == [], "the next epoch of augmented pictures is no other setting"


def test_the_reference_of_one_epoch_is_in_memory_at_a_time(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path)
    for pair_index, epoch in ((0, 0), (1, 0), (0, 1)):  # pictures that change with the epoch have other fingerprints
        value = torch.tensor([float(10 * pair_index + epoch)])
        cache.store(pair_index, epoch, fingerprint_of(f"ab{pair_index}{epoch}"), value)
    assert cache.recall(0, 1) == 1 and cache.recall(0, 0) is None and cache.recall(1, 0) is None
    assert cache.recall(1, 1) is None  # never an earlier epoch's
    assert cache.load(1, 0, fingerprint_of("ab10"), num_steps=1) == 10


def test_changed_settings_are_said_and_computed_again(
    checkpoint: Path, first_action_id: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = tiny.make_pairs([(3, 4), (4, 3)], first_action_id)
    config = tiny.tiny_config(checkpoint, tmp_path)
    train(config, pairs)
    other = load_policy(checkpoint, device="cpu")
    with torch.no_grad():
        other.network.projector.fc3.bias.add_(1)
    save_policy(other, tmp_path / "other")
    changes = {
        "dtype: torch.float32 then, torch.bfloat16 now": {"dtype": "bfloat16"},
        "center_crop: False then, True now": {"center_crop": True},
        "checkpoint: [0-9a-f]{24} then, [0-9a-f]{24} now": {"vla_path": str(tmp_path / "other")},
    }
    caplog.set_level("INFO", logger="grape")
    for message, change in changes.items():
        for run_name, wanted in ((f"{message[:5]} new", "0 pairs from cache, 2 computed"), ("again", "2 pairs from")):
            caplog.clear()
            train(dataclasses.replace(config, run_name=f"{message[:5]} {run_name}", **change), pairs)
            assert f"Reference: {wanted}" in caplog.text
            said = [one.getMessage() for one in caplog.records if "have other settings" in one.getMessage()]
            assert len(said) == (run_name != "again")
            assert not said or re.search(rf"\({message}\)", said[0])


def test_runs_share_the_reference(checkpoint: Path, first_action_id: int, tmp_path: Path) -> None:
    pairs = tiny.make_pairs([(3, 4), (4, 3)], first_action_id)
    config = tiny.tiny_config(checkpoint, tmp_path)
    train(config, pairs)
    files = {path: path.stat().st_mtime_ns for path in (config.run_root_dir / "reference_cache").rglob("*.npz")}
    train(dataclasses.replace(config, run_name="other", beta=0.5, epoch=2), pairs)
    again = {path: path.stat().st_mtime_ns for path in (config.run_root_dir / "reference_cache").rglob("*.npz")}
    assert len(files) == 2 and again == files


def test_window_objective_scores_the_windows_alone(
    policy: OpenVLAPolicy, checkpoint: Path, first_action_id: int, tmp_path: Path
) -> None:
    pairs = tiny.make_pairs([(4, 6)], first_action_id)
    config = tiny.tiny_config(checkpoint, tmp_path, objective="window", window_size=3, learning_rate=1e-9)
    train(config, pairs)
    rows = read_metrics(config.run_dir)
    assert len(rows) == 2  # windows at 0 and 1

    def window_sums(episode: tiny.EpisodeData) -> list[float]:
        assert episode.action_tokens is not None
        with torch.no_grad():
            logps = policy.log_prob(
                list(episode.decode_images(range(len(episode)))),
                [episode.instruction] * len(episode),
                episode.action_tokens,
            ).sum(dim=-1)
        return [logps[start : start + 3].sum().item() for start in range(2)]

    chosen, rejected = window_sums(pairs.pairs[0].chosen), window_sums(pairs.pairs[0].rejected)
    # the weights hardly move, so the log shows the base policy's own numbers, windows in either order
    got = sorted((row["logps/chosen"], row["logps/rejected"]) for row in rows)
    assert np.allclose(got, sorted(zip(chosen, rejected, strict=True)), rtol=1e-5)
    assert all(abs(row["rewards/margins"]) < 1e-4 for row in rows)


def test_trains_from_rlds(checkpoint: Path, policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path) -> None:
    tiny.write_pairs(tmp_path, [(3, 5), (4, 2)], first_action_id, policy.checkpoint_hash)
    assert tfds.builder_from_directory(tmp_path / "chosen" / "tiny" / "1.0.0").info.splits["train"].num_examples == 2
    config = tiny.tiny_config(checkpoint, tmp_path, shuffle_buffer_size=1)
    adapter = train(config)
    assert (adapter / "adapter_model.safetensors").exists()
    pair = next(PairDataset(config.chosen_traj_dir, config.rejected_traj_dir, "tiny").iterate())
    batch = prepare(policy, tmp_path, pair)
    with torch.no_grad():
        logps = policy.log_prob(list(batch.images), batch.instructions, batch.tokens).sum(dim=-1)
    first = read_metrics(config.run_dir)[0]
    assert first["logps/chosen"] == pytest.approx(logps[:3].sum().item(), rel=1e-5)
    assert first["logps/rejected"] == pytest.approx(logps[3:].sum().item(), rel=1e-5)
