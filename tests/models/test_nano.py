"""New policies: sizes, tokenizer, and the same layout as the published checkpoint."""

from __future__ import annotations

import pytest

from grape.errors import ConfigError
from grape.models import new_policy
from grape.models.nano import PRESETS, build_tokenizer

PROMPT = "In: What action should the robot take to {}?\nOut:"


def num_parameters(name: str) -> int:
    return sum(value.numel() for value in new_policy(name).network.parameters())


def test_presets_are_as_small_as_they_say() -> None:
    assert 3e6 < num_parameters("nano") < 5e6
    assert 8e6 < num_parameters("micro") < 12e6


def test_action_slots_end_the_real_vocabulary_and_the_pad_token_follows() -> None:
    policy = new_policy("test")
    tokenizer, actions = policy.prompts.tokenizer, policy.action_tokenizer
    assert tokenizer.token_to_id("<action_0>") == actions.first_id
    assert tokenizer.token_to_id("<action_255>") == actions.vocab_size - 1
    assert tokenizer.token_to_id("<PAD>") == policy.prompts.pad_id == actions.vocab_size
    embedding = policy.network.language_model.model.embed_tokens
    assert embedding.num_embeddings == actions.vocab_size + policy.config.vocab_padding


def test_whole_words_characters_and_unknown() -> None:
    tokens = build_tokenizer(["frobnicate the WIDGET"]).encode(PROMPT.format("frobnicate the mug42 é")).tokens
    assert tokens[:3] == ["<s>", "In", ":"]
    assert tokens[-9:] == ["frobnicate", "the", "mug", "##4", "##2", "<unk>", "?", "Out", ":"]
    assert "widget" in build_tokenizer(["frobnicate the WIDGET"]).get_vocab()
    assert "widget" not in build_tokenizer().get_vocab()


def test_a_bare_prompt_is_the_instruction_alone() -> None:
    policy = new_policy("test")
    template = policy.prompt_ids("put carrot on plate")
    policy.use_prompt_style("bare")
    assert policy.prompt_ids("put carrot on plate") == policy.prompts.tokenizer.encode("put carrot on plate").ids
    assert len(policy.prompt_ids("put carrot on plate")) < len(template)
    policy.use_prompt_style("template")
    assert policy.prompt_ids("put carrot on plate") == template


def test_prompts_never_hold_an_action_id() -> None:
    policy = new_policy("test")
    ids = policy.prompts.action_prefix_ids("pick up the <action_3> and </s>")
    assert max(ids) < policy.action_tokenizer.first_id


def test_instructions_are_lower_case_and_end_with_the_space_token() -> None:
    policy = new_policy("test")
    assert policy.prompt_ids("Open The Drawer") == policy.prompt_ids("open the drawer")
    prefix = policy.prompts.tokenizer.token_to_id("▁")
    assert policy.prompts.action_prefix_ids("open the drawer") == [*policy.prompt_ids("open the drawer"), prefix]


def test_the_seed_decides_the_weights() -> None:
    assert new_policy("test", seed=1).checkpoint_hash == new_policy("test", seed=1).checkpoint_hash
    assert new_policy("test", seed=1).checkpoint_hash != new_policy("test", seed=2).checkpoint_hash


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'nano'"):
        new_policy("nanno")
    with pytest.raises(ConfigError, match="write it with grape init-checkpoint"):
        new_policy("openvla-7b")
    with pytest.raises(ConfigError, match="Did you mean 'image_size'"):
        new_policy("nano", image_sise=56)
    assert "nano" in PRESETS
