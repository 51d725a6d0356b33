"""Acting and scoring: one definition of log π, and no row that depends on its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grape.errors import CheckpointError, ConfigError
from grape.models import OpenVLAPolicy, load_policy
from tests.models.tiny_policy import INSTRUCTIONS

TOLERANCE = 1e-4
"""Nats, float32: with a cache, or in another batch, matrix products add up in another order; measured 9e-6."""
KEY = "bridge_orig"


def sample(policy: OpenVLAPolicy, images, instructions, uniforms, **settings):
    return policy.act(images, instructions, unnorm_key=KEY, temperature=1.0, uniforms=uniforms, **settings)


@pytest.fixture
def uniforms() -> np.ndarray:
    return np.random.default_rng(1).random((len(INSTRUCTIONS), 7))


def test_output_depends_on_picture_words_and_earlier_tokens(policy, images) -> None:
    tokens = np.full((1, 7), policy.action_tokenizer.first_id)
    base = policy.log_prob(images[:1], INSTRUCTIONS[:1], tokens)
    other_first = tokens.copy()
    other_first[0, 0] += 9
    assert (policy.log_prob(images[1:2], INSTRUCTIONS[:1], tokens) - base).abs().max() > 0.1
    assert (policy.log_prob(images[:1], INSTRUCTIONS[1:2], tokens) - base).abs().max() > 0.1
    assert (policy.log_prob(images[:1], INSTRUCTIONS[:1], other_first) - base)[:, 1:].abs().max() > 0.1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_batch_equals_its_rows_alone(folder, images, uniforms, attention) -> None:
    policy = load_policy(folder, attn_implementation=attention)
    together = sample(policy, images, INSTRUCTIONS, uniforms)
    assert len({len(policy.prompt_ids(text)) for text in INSTRUCTIONS}) == 3
    for row, image in enumerate(images):
        alone = sample(policy, [image], INSTRUCTIONS[row : row + 1], uniforms[row : row + 1])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.token_logps[0], together.token_logps[row], atol=TOLERANCE)
        np.testing.assert_allclose(alone.sampler_logps[0], together.sampler_logps[row], atol=TOLERANCE)
        scored = policy.log_prob([image], INSTRUCTIONS[row : row + 1], alone.tokens)
        batch_scored = policy.log_prob(images, INSTRUCTIONS, together.tokens)[row]
        np.testing.assert_allclose(scored[0].detach(), batch_scored.detach(), atol=TOLERANCE)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("restrict", [True, False])
def test_acting_and_scoring_agree(policy, images, uniforms, temperature, restrict) -> None:
    batch = policy.act(
        images, INSTRUCTIONS, unnorm_key=KEY, temperature=temperature, uniforms=uniforms, restrict_to_actions=restrict
    )
    with torch.no_grad():
        scored = policy.log_prob(images, INSTRUCTIONS, batch.tokens).numpy()
    np.testing.assert_allclose(batch.token_logps, scored, atol=TOLERANCE)


def test_acting_and_scoring_agree_in_bfloat16(folder, images, uniforms) -> None:
    policy = load_policy(folder, dtype="bfloat16")
    batch = sample(policy, images, INSTRUCTIONS, uniforms)
    with torch.no_grad():
        scored = policy.log_prob(images, INSTRUCTIONS, batch.tokens).numpy()
    assert policy.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits, and rounding falls elsewhere with a cache; measured 0.05 nats, 0.004 on average.
    np.testing.assert_allclose(batch.token_logps, scored, atol=0.2)
    assert np.abs(batch.token_logps - scored).mean() < 0.02


def test_restricted_decoding_gives_action_tokens_only(policy, images, uniforms) -> None:
    first, end = policy.action_tokenizer.first_id, policy.action_tokenizer.vocab_size
    free = sample(policy, images, INSTRUCTIONS, uniforms, restrict_to_actions=False)
    assert ((free.tokens < first) | (free.tokens >= end)).any()
    for temperature in (0.0, 1.0):
        batch = policy.act(images, INSTRUCTIONS, unnorm_key=KEY, temperature=temperature, uniforms=uniforms)
        assert ((batch.tokens >= first) & (batch.tokens < end)).all()


def test_sampler_logps_are_of_the_restricted_tempered_distribution(policy, images, uniforms) -> None:
    batch = policy.act(images, INSTRUCTIONS, unnorm_key=KEY, temperature=0.5, uniforms=uniforms)
    first, end = policy.action_tokenizer.first_id, policy.action_tokenizer.vocab_size
    with torch.no_grad():
        logits = policy.action_logits(policy.forward_inputs(images, INSTRUCTIONS, batch.tokens))
    by_hand = (logits[..., first:end] * 2).log_softmax(-1)
    picked = by_hand.gather(-1, torch.from_numpy(batch.tokens).long()[..., None] - first)[..., 0]
    np.testing.assert_allclose(batch.sampler_logps, picked, atol=2 * TOLERANCE)


def test_greedy_is_the_first_choice_of_the_logits(policy, images) -> None:
    batch = policy.act(images, INSTRUCTIONS, unnorm_key=KEY)
    first, end = policy.action_tokenizer.first_id, policy.action_tokenizer.vocab_size
    with torch.no_grad():
        logits = policy.action_logits(policy.forward_inputs(images, INSTRUCTIONS, batch.tokens))
    np.testing.assert_array_equal(batch.tokens, logits[..., first:end].argmax(-1) + first)
    assert (batch.sampler_logps == 0).all()


def test_actions_are_unnormalised_centers(policy, images) -> None:
    batch = policy.act(images, INSTRUCTIONS, unnorm_key="libero_spatial")
    centers = policy.action_tokenizer.decode(batch.tokens)
    np.testing.assert_allclose(batch.actions[:, :6], centers[:, :6] / 2, atol=1e-6)
    np.testing.assert_allclose(batch.actions[:, 6], centers[:, 6], atol=1e-6)
    again = policy.encode_actions(policy.decode_actions(batch.tokens, "libero_spatial"), "libero_spatial")
    # The two lowest ids share a centre.
    assert (np.maximum(batch.tokens, policy.action_tokenizer.first_id + 1) == again).all()


def test_end_token_is_an_eighth_column(policy, images) -> None:
    tokens = np.full((3, 7), policy.action_tokenizer.first_id)
    seven = policy.log_prob(images, INSTRUCTIONS, tokens)
    eight = policy.log_prob(images, INSTRUCTIONS, tokens, include_end_token=True)
    assert eight.shape == (3, 8)
    torch.testing.assert_close(eight[:, :7], seven, atol=TOLERANCE, rtol=0)


def test_log_prob_is_differentiable_and_unused_weights_stay_out(policy, images) -> None:
    policy.log_prob(images, INSTRUCTIONS, np.full((3, 7), policy.action_tokenizer.first_id)).sum().backward()
    with_gradient = {name for name, value in policy.network.named_parameters() if value.grad is not None}
    trainable = {name for name, value in policy.network.named_parameters() if value.requires_grad}
    assert with_gradient == trainable
    unused = {name for name, _ in policy.network.named_parameters()} - trainable
    assert any("attn_pool" in name for name in unused)
    # The test preset has two blocks a tower: block 0 runs, block 1 is the last.
    assert all(".blocks.1." in name or ".norm." in name or "attn_pool" in name for name in unused)


def test_center_crop_changes_the_picture_and_is_the_same_everywhere(policy, images, uniforms) -> None:
    cropped = sample(policy, images, INSTRUCTIONS, uniforms, center_crop=True)
    with torch.no_grad():
        scored = policy.log_prob(images, INSTRUCTIONS, cropped.tokens, center_crop=True).numpy()
        uncropped = policy.log_prob(images, INSTRUCTIONS, cropped.tokens).numpy()
    np.testing.assert_allclose(cropped.token_logps, scored, atol=TOLERANCE)
    assert np.abs(uncropped - scored).max() > 0.1


@pytest.mark.parametrize(("num_images", "num_instructions", "num_tokens"), [(2, 3, 3), (3, 2, 3), (3, 3, 2), (0, 0, 0)])
def test_rows_must_match(policy, images, num_images, num_instructions, num_tokens) -> None:
    with pytest.raises(ConfigError, match="one row per image|one of each"):
        policy.log_prob(images[:num_images], INSTRUCTIONS[:num_instructions], np.full((num_tokens, 7), 400))


def test_pictures_must_be_uint8(policy) -> None:
    with pytest.raises(ConfigError, match="float64"):
        policy.act([np.zeros((28, 28, 3))], ["lift"], unnorm_key=KEY)


def test_damaged_weights_do_not_act(policy, images) -> None:
    with torch.no_grad():
        policy.network.projector.fc3.bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        policy.act(images, INSTRUCTIONS, unnorm_key=KEY)


def test_unknown_statistics_are_refused_before_the_work(policy, images) -> None:
    with pytest.raises(CheckpointError, match="Did you mean 'bridge_orig'"):
        policy.act(images, INSTRUCTIONS, unnorm_key="bridge")


def test_acting_leaves_training_mode_as_it_was(policy, images) -> None:
    policy.model.train()
    policy.act(images, INSTRUCTIONS, unnorm_key=KEY)
    assert policy.model.training
