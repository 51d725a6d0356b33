"""Prefill once, then one token per step with a key-value cache.

Axis legend: B batch, L text tokens, N patch tokens, A action tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from grape.models.batches import ForwardInputs
from grape.models.openvla import OpenVLA

Pick = Callable[[int, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(column, logits of shape (B, V)) to (tokens, log-probabilities, sampler's log-probabilities), each of shape (B,)."""


def decode_action_tokens(
    network: OpenVLA, inputs: ForwardInputs, num_tokens: int, pick: Pick
) -> tuple[Int[Tensor, "B A"], Float[Tensor, "B A"], Float[Tensor, "B A"]]:
    """Decode ``num_tokens`` tokens after each row's prompt.

    Rows are padded on the right. In the prefill, causality alone hides the padding; afterwards a mask over the cache
    does, and each row's new tokens keep the positions that they would have had alone. With equal lengths there is no
    mask at all.

    Args:
        network: The bare network.
        inputs: ``ForwardInputs`` without action tokens.
        num_tokens: Tokens to decode.
        pick: Chooses a token per row.
    """
    llama, head = network.language_model.model, network.language_model.lm_head
    cache = DynamicCache(config=network.language_model.config)
    embeddings = network.embed(inputs.pixel_values, inputs.input_ids)
    hidden = llama(inputs_embeds=embeddings, past_key_values=cache, use_cache=True).last_hidden_state
    lengths = inputs.num_prompt_ids + network.openvla_config.num_patches
    batch, width = hidden.shape[:2]
    rows = torch.arange(batch, device=hidden.device)
    mask = None
    if inputs.is_padded:
        seen = torch.arange(width + num_tokens - 1, device=hidden.device)[None]
        mask = ((seen < lengths[:, None]) | (seen >= width)).long()
    columns = [pick(0, head(hidden[rows, lengths - 1]))]
    for step in range(1, num_tokens):
        hidden = llama(
            inputs_embeds=llama.embed_tokens(columns[-1][0])[:, None],
            position_ids=(lengths + step - 1)[:, None],
            attention_mask=None if mask is None else mask[:, : width + step],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        columns.append(pick(step, head(hidden[:, 0])))
    tokens, logps, sampler_logps = (torch.stack(parts, dim=1) for parts in zip(*columns, strict=True))
    return tokens, logps, sampler_logps
