"""LoRA: names as in the original code, no adapter where nothing runs, merging and switching off."""

from __future__ import annotations

import json
import re

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from grape.cli.merge import main as merge_main
from grape.config.inputs import CROP_KEY
from grape.errors import CheckpointError, ConfigError
from grape.models import load_policy, new_policy
from grape.models.adapter import ADAPTER_WEIGHTS, save_adapter
from grape.models.openvla import is_unused, lora_target_pattern
from tests.models.tiny_policy import INSTRUCTIONS, make_policy

TOKENS = np.full((3, 7), 400)
TOLERANCE = 1e-4
"""Nats, float32: merging adds the adapter's product to the weights before, not after, the matrix product."""


def log_prob(policy, images) -> torch.Tensor:
    with torch.no_grad():
        return policy.log_prob(images, INSTRUCTIONS, TOKENS)


def adapted(seed: int = 0):
    """A policy whose adapter does something: fresh adapters are zero."""
    torch.manual_seed(seed)
    policy = make_policy().with_adapter(4)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return policy


def test_targets_are_all_linear_layers_that_run() -> None:
    policy = new_policy("nano")
    pattern = lora_target_pattern(policy.config)
    linear = {name for name, module in policy.network.named_modules() if isinstance(module, nn.Linear)}
    wanted = {name for name in linear if not is_unused(name, policy.config) and not name.endswith("lm_head")}
    assert {name for name, _ in policy.network.named_modules() if re.fullmatch(pattern, name)} == wanted
    # Nano: 3 running blocks of 4 layers in 2 towers, 3 projector layers, 4 Llama layers of 7.
    assert len(wanted) == 3 * 4 * 2 + 3 + 4 * 7
    assert "vision_backbone.featurizer.blocks.0.attn.qkv" in wanted


def test_llm_targets_leave_the_towers_alone() -> None:
    policy = make_policy().with_adapter(2, targets="llm")
    names = [name for name, value in policy.model.named_parameters() if value.requires_grad]
    assert names and all("language_model" in name for name in names)


def test_default_alpha_is_the_release_s() -> None:
    assert make_policy().with_adapter(4).model.peft_config["default"].lora_alpha == 4
    assert make_policy().with_adapter(64).model.peft_config["default"].lora_alpha == 32


def test_a_fresh_adapter_changes_nothing_and_reference_is_the_base(images) -> None:
    base = log_prob(make_policy(), images)
    assert torch.equal(log_prob(make_policy().with_adapter(4), images), base)
    policy = adapted()
    assert (log_prob(policy, images) - base).abs().max() > 0.01
    with policy.reference():
        assert torch.equal(log_prob(policy, images), base)
    assert (log_prob(policy, images) - base).abs().max() > 0.01


def test_without_an_adapter_the_reference_is_the_policy(policy, images) -> None:
    with policy.reference():
        inside = log_prob(policy, images)
    assert torch.equal(inside, log_prob(policy, images))


def test_acting_uses_the_adapter(images) -> None:
    policy = adapted()
    batch = policy.act(images, INSTRUCTIONS, unnorm_key="bridge_orig")
    with torch.no_grad():
        scored = policy.log_prob(images, INSTRUCTIONS, batch.tokens).numpy()
    np.testing.assert_allclose(batch.token_logps, scored, atol=TOLERANCE)


def test_stored_adapters_load_with_names_as_in_the_original_code(folder, images, tmp_path) -> None:
    policy = adapted()
    save_adapter(policy, tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS).keys()
    assert "base_model.model.vision_backbone.featurizer.blocks.0.attn.qkv.lora_A.weight" in names
    assert "base_model.model.language_model.model.layers.1.mlp.down_proj.lora_B.weight" in names
    loaded = load_policy(folder, adapter=tmp_path / "adapter")
    assert torch.equal(log_prob(loaded, images), log_prob(policy, images))
    assert loaded.checkpoint_hash != load_policy(folder).checkpoint_hash


def test_an_adapter_s_statistics_join_the_checkpoint_s_and_win(folder, tmp_path) -> None:
    base = load_policy(folder).norm_stats
    save_adapter(adapted(), tmp_path / "adapter")
    assert load_policy(folder, adapter=tmp_path / "adapter").adapter_keys == set()
    changed = json.loads(json.dumps(base["bridge_orig"]))
    changed["action"]["q99"][0] = 3.0
    (tmp_path / "adapter" / "dataset_statistics.json").write_text(
        json.dumps({"mine": base["bridge_orig"], "bridge_orig": changed})
    )
    loaded = load_policy(folder, adapter=tmp_path / "adapter")
    assert loaded.adapter_keys == {"mine", "bridge_orig"}
    assert set(loaded.norm_stats) == {"libero_spatial_no_noops", "bridge_orig", "mine"}
    # The last of 255 bins has its centre at 1 - 1/255 in [-1, 1], hence at -2 + 5 (2 - 1/255) / 2 in [-2, 3].
    actions = loaded.decode_actions(loaded.action_tokenizer.encode(np.ones((1, 7))), "bridge_orig")
    assert actions[0, 0] == pytest.approx(-2 + 5 * (2 - 1 / 255) / 2)


def test_an_adapter_of_the_original_code_loads(folder, images, tmp_path) -> None:
    # peft's "all-linear" stores last names only, so it also adapts unused weights and, through "proj", a convolution.
    network = make_policy().network
    short = {name.rsplit(".", 1)[-1] for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=sorted(short - {"lm_head"}), init_lora_weights=False)
    torch.manual_seed(0)
    original = peft.get_peft_model(network, config)
    original.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    names = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS).keys()
    assert any("attn_pool" in name for name in names) and any("patch_embed.proj" in name for name in names)
    loaded = load_policy(folder, adapter=tmp_path / "adapter")
    inputs = loaded.forward_inputs(images, INSTRUCTIONS, TOKENS)
    with torch.no_grad():
        positions = inputs.num_prompt_ids[:, None] - 1 + torch.arange(7)
        expected = original(inputs.pixel_values, inputs.input_ids, positions)
    torch.testing.assert_close(loaded.action_logits(inputs).detach(), expected, atol=TOLERANCE, rtol=0)


def test_merge_command_writes_a_checkpoint_that_acts_alike(folder, images, tmp_path, capsys) -> None:
    policy = adapted()
    save_adapter(policy, tmp_path / "adapter")
    (tmp_path / "adapter" / "training.json").write_text(json.dumps({CROP_KEY: True}))
    flags = ["--vla_path", str(folder), "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]
    assert merge_main(flags) == 0
    merged = load_policy(tmp_path / "merged")
    assert merged.source_config[CROP_KEY] is True, "the adapter's word goes with its weights"
    torch.testing.assert_close(log_prob(merged, images), log_prob(policy, images), atol=TOLERANCE, rtol=0)
    base, written = load_file(folder / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert base.keys() == written.keys()
    changed = {name for name in base if not torch.equal(base[name], written[name])}
    assert "projector.fc1.weight" in changed
    assert not any(is_unused(name, merged.config) for name in changed)
    assert merged.checkpoint_hash in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="exists"):
        merge_main(flags)


@pytest.mark.parametrize("out", ["checkpoint", "adapter", "."])
def test_merging_never_replaces_what_it_reads(folder, tmp_path, out) -> None:
    save_adapter(adapted(), tmp_path / "adapter")
    before = sorted(tmp_path.rglob("*"))
    flags = ["--vla_path", str(folder), "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "x/.." / out)]
    with pytest.raises(ConfigError, match="which is read; choose another folder"):
        merge_main([*flags, "--overwrite", "True"])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_merged_policy_trains_again(images) -> None:
    policy = adapted().merge_adapter()
    assert {name for name, value in policy.network.named_parameters() if not value.requires_grad} == {
        name for name, _ in policy.network.named_parameters() if is_unused(name, policy.config)
    }
    assert len(policy.checkpoint_hash) == 64


def test_an_adapter_for_another_model_is_refused(folder, tmp_path) -> None:
    other = new_policy("test", text_layers=3).with_adapter(4)
    save_adapter(other, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"does not fit.*layers\.2"):
        load_policy(folder, adapter=tmp_path / "adapter")
    wider = new_policy("test", text_width=48).with_adapter(4)
    save_adapter(wider, tmp_path / "wider")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_policy(folder, adapter=tmp_path / "wider")


def test_damaged_adapters_are_named(folder, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        load_policy(folder, adapter=folder)
    save_adapter(adapted(), tmp_path / "adapter")
    weights = tmp_path / "adapter" / ADAPTER_WEIGHTS
    complete = load_file(weights)
    save_file({name: value for name, value in complete.items() if "fc1.lora_B" not in name}, weights)
    with pytest.raises(CheckpointError, match=r"places have no tensor"):
        load_policy(folder, adapter=tmp_path / "adapter")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_policy(folder, adapter=tmp_path / "adapter")


def test_wrong_use_is_refused(policy, tmp_path) -> None:
    from grape.models import save_policy

    with pytest.raises(ConfigError, match="lora_rank is 0"):
        policy.with_adapter(0)
    with pytest.raises(ConfigError, match="no adapter"):
        policy.merge_adapter()
    policy.with_adapter(2)
    with pytest.raises(ConfigError, match="already has an adapter"):
        policy.with_adapter(2)
    with pytest.raises(ConfigError, match="merge_adapter"):
        save_policy(policy, tmp_path / "x")
