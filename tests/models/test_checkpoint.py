"""Folders in the published layout: what is written comes back, and damage is named."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from grape.errors import CheckpointError, ConfigError, MissingDependencyError
from grape.files import write_bytes_atomic
from grape.models import load_policy, save_policy
from grape.models.adapter import save_adapter
from grape.models.weights import INDEX_FILE, SINGLE_FILE
from tests.models.tiny_policy import INSTRUCTIONS, make_policy

KEY = "bridge_orig"


def tokens_of(policy, images) -> np.ndarray:
    return policy.act(images, INSTRUCTIONS, unnorm_key=KEY).tokens


def test_round_trip(folder, policy, images) -> None:
    loaded = load_policy(folder)
    np.testing.assert_array_equal(tokens_of(loaded, images), tokens_of(policy, images))
    assert loaded.norm_stats == policy.norm_stats
    assert loaded.config == policy.config
    assert loaded.checkpoint_hash == policy.checkpoint_hash
    for name, tensor in policy.network.state_dict().items():
        assert torch.equal(tensor, loaded.network.state_dict()[name]), name


def test_shards_have_an_index_and_the_same_hash(folder, policy, images, tmp_path) -> None:
    save_policy(policy, tmp_path / "shards", shard_bytes=100_000)
    index = json.loads((tmp_path / "shards" / INDEX_FILE).read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert index["weight_map"].keys() == policy.network.state_dict().keys()
    assert index["metadata"]["total_size"] == sum(value.numel() * 4 for value in policy.network.state_dict().values())
    loaded = load_policy(tmp_path / "shards")
    np.testing.assert_array_equal(tokens_of(loaded, images), tokens_of(policy, images))
    assert loaded.checkpoint_hash == load_policy(folder).checkpoint_hash


def test_a_source_config_is_written_back_with_its_own_keys(folder, tmp_path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_prismatic.py").write_text("raise SystemExit('never run')\n")
    (folder / "dataset_statistics.json").write_text(json.dumps({"mine": config["norm_stats"][KEY]}))
    loaded = load_policy(folder)
    assert set(loaded.norm_stats) == {"libero_spatial_no_noops", KEY, "mine"}
    save_policy(loaded, tmp_path / "copy", dtype="bfloat16")
    written = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert written["auto_map"] == config["auto_map"]
    assert written["torch_dtype"] == "bfloat16"
    assert (tmp_path / "copy" / "modeling_prismatic.py").is_file()
    assert set(json.loads((tmp_path / "copy" / "dataset_statistics.json").read_text())) == set(loaded.norm_stats)
    stored = load_file(tmp_path / "copy" / SINGLE_FILE)
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert load_policy(tmp_path / "copy").dtype == torch.float32  # the default on a CPU
    assert load_policy(tmp_path / "copy", dtype="stored").dtype == torch.bfloat16


def test_the_hash_follows_the_weights_only(folder, policy, tmp_path) -> None:
    first = load_policy(folder).checkpoint_hash
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert load_policy(folder).checkpoint_hash == first
    with torch.no_grad():
        policy.network.projector.fc1.bias[0] += 1e-3
    save_policy(policy, folder, overwrite=True)
    assert load_policy(folder).checkpoint_hash != first


def test_a_truncated_file_is_named(folder) -> None:
    content = (folder / SINGLE_FILE).read_bytes()
    (folder / SINGLE_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=rf"{SINGLE_FILE}.*truncated"):
        load_policy(folder)


def test_missing_and_truncated_shards_are_named(policy, tmp_path) -> None:
    save_policy(policy, tmp_path / "shards", shard_bytes=100_000)
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-10])
    with pytest.raises(CheckpointError, match=shards[1].name):
        load_policy(tmp_path / "shards")
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"1 of {len(shards)} shards are missing: {shards[1].name}"):
        load_policy(tmp_path / "shards")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json", SINGLE_FILE])
def test_a_missing_file_is_named(folder, name) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_policy(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_a_damaged_file_is_named(folder, name) -> None:
    (folder / name).write_text("{ no json")
    with pytest.raises(CheckpointError, match=name):
        load_policy(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "dataset_statistics.json", INDEX_FILE])
@pytest.mark.parametrize("content", ["[1]", "7", "null"])
def test_json_of_another_kind_is_named(folder, name, content) -> None:
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        load_policy(folder)


@pytest.mark.parametrize("weight_map", [{"a": 1}, {"a": ["x"]}, ["model.safetensors"]])
def test_an_index_of_another_kind_is_named(folder, weight_map) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=INDEX_FILE):
        load_policy(folder)


@pytest.mark.parametrize("change", [{"text_config": [1]}, {"n_action_bins": "many"}, {"vision_num_heads": 4}])
def test_config_values_of_another_type_are_told(folder, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=r"config\.json has a value of the wrong type"):
        load_policy(folder)


def test_weights_that_do_not_fit_are_counted(folder) -> None:
    weights = load_file(folder / SINGLE_FILE)
    del weights["projector.fc2.bias"]
    weights["projector.fc9.bias"] = torch.zeros(1)
    weights["projector.fc1.bias"] = torch.zeros(3)
    save_file(weights, folder / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=r"1 missing, 1 unknown, 1 of another shape; first: projector\.fc2\.bias"):
        load_policy(folder)


def test_no_such_folder_suggests_the_nearest(folder) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; wanted a folder\. Did you mean 'checkpoint'"):
        load_policy(folder.parent / "checkpiont")


def test_no_such_folder_lists_few_names(folder) -> None:
    for number in range(8):
        (folder.parent / f"other_{number}").mkdir()
    (folder.parent / "a_file").touch()
    with pytest.raises(CheckpointError) as caught:
        load_policy(folder.parent / "zzz")
    shown = str(caught.value)
    assert shown.endswith("Folders beside it: checkpoint, other_0, other_1, other_2, other_3 and 4 more.")
    with pytest.raises(CheckpointError, match=f"{folder.parent / 'zzz'} does not exist, either"):
        load_policy(folder.parent / "zzz" / "deeper")
    with pytest.raises(CheckpointError, match=r"a_file is a file; wanted a folder\. Folders beside it"):
        load_policy(folder.parent / "a_file")


def test_who_may_read_what_is_written_is_the_umask_s_to_say(policy, tmp_path) -> None:
    before = os.umask(0o027)
    try:
        save_policy(policy, tmp_path / "single")
        save_policy(policy, tmp_path / "shards", shard_bytes=100_000)
        save_adapter(policy.with_adapter(2), tmp_path / "adapter")
        write_bytes_atomic(tmp_path / "run.json", b"{}")
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    folders = {Path("single"), Path("shards"), Path("adapter")}
    assert {Path("single/model.safetensors"), Path("adapter/adapter_model.safetensors")} < modes.keys()
    assert modes == {path: 0o750 if path in folders else 0o640 for path in modes}


def test_no_statistics_are_said_at_first_use(folder, images) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "norm_stats": None}))
    with pytest.raises(CheckpointError, match=r"no action statistics"):
        load_policy(folder).act(images, INSTRUCTIONS, unnorm_key=KEY)


def test_an_existing_folder_is_not_written_over(folder, policy) -> None:
    with pytest.raises(CheckpointError, match="exists"):
        save_policy(policy, folder)


def test_overwriting_replaces_the_whole_folder(folder, policy) -> None:
    (folder / "old.txt").write_text("old")
    save_policy(make_policy(seed=5), folder, overwrite=True)
    assert not (folder / "old.txt").exists()
    assert load_policy(folder).checkpoint_hash != policy.checkpoint_hash
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(folder, policy) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the weights are larger
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            save_policy(make_policy(seed=5), folder, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "bfloat"}, "Did you mean 'bfloat16'"),
        ({"attn_implementation": "spda"}, "Did you mean 'sdpa'"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused_before_a_download(tmp_path, settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load_policy(tmp_path / "absent", **settings)


def test_flash_attention_without_flash_attn_names_the_extra(folder: Path) -> None:
    from transformers.utils import is_flash_attn_2_available

    if is_flash_attn_2_available():
        pytest.skip("flash-attn is installed")
    with pytest.raises(MissingDependencyError, match=r"grape-vla\[flash-attn\]"):
        load_policy(folder, attn_implementation="flash_attention_2")
