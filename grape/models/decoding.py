"""Prefill in chunks, then one token per step, over a key-value cache that is allocated once.

Every row keeps its keys and values in the columns that it would use alone: the token at position p lies in column p.
So a step needs two numbers a row, token and position, and a mask hides what lies beyond a row's position.

Axis legend: B rows of a call, R rows of the cache (B, or more where steps are captured), C columns of the cache,
L text tokens, S sequence, D width, V vocabulary, A action tokens.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grape.models.batches import ForwardInputs
from grape.models.openvla import OpenVLA
from grape.models.replay import Capture, CapturedSteps, Step, captured_rows, round_up

Pick = Callable[[int, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(column, logits of shape (B, V)) to (tokens, log-probabilities, sampler's log-probabilities), each of shape (B,)."""

COLUMN_MULTIPLE = 64
"""The cache's columns are rounded up to this: 256 patches, up to 58 text tokens and 6 action tokens make 320."""
PREFILL_ROWS = {"cpu": 8}
"""Rows of one prefill pass by kind of device; larger passes of nano leave a CPU's caches (docs/sampling.md)."""
DEFAULT_PREFILL_ROWS = 32
"""Elsewhere: at 7 B these are 9,000 tokens, enough to keep matrix products busy, with about 1 GB of activations."""


class Decoder:
    """Decodes for one network; keeps the memory of the largest call so far, and the captured steps.

    What a call returns does not depend on the calls before it.
    """

    def __init__(self, network: OpenVLA, capture: Capture | None = None) -> None:
        """``capture``: ``None`` captures CUDA graphs on a GPU and runs plainly elsewhere; tests give their own."""
        self._network = network
        self._captured = CapturedSteps(network.language_model, capture)
        self._memory: Tensor | None = None

    @property
    def num_captured(self) -> int:
        """Steps that are captured and ready to be replayed."""
        return len(self._captured)

    def release(self) -> None:
        """Give back the cache and all captured steps."""
        self._captured.clear()
        self._memory = None

    def decode(
        self, inputs: ForwardInputs, num_tokens: int, pick: Pick
    ) -> tuple[Int[Tensor, "B A"], Float[Tensor, "B A"], Float[Tensor, "B A"]]:
        """Decode ``num_tokens`` tokens after each row's prompt, in ``torch.inference_mode``.

        Args:
            inputs: ``ForwardInputs`` without action tokens.
            num_tokens: Tokens to decode.
            pick: Chooses a token per row.
        """
        lengths = inputs.num_prompt_ids + self._network.openvla_config.num_patches
        batch, width = len(lengths), inputs.input_ids.shape[1] + self._network.openvla_config.num_patches
        captures = self._captured.possible(lengths.device)
        rows = captured_rows(batch) if captures else batch
        cache = self._reserve(rows, round_up(width + num_tokens - 1, COLUMN_MULTIPLE))
        # What is hidden has weight 0, and 0 times what an earlier call left must not be NaN.
        cache[:, :, :batch, :, width:] = 0
        columns = [pick(0, prefill(self._network, cache, inputs, lengths))]
        step: Step = functools.partial(decode_step, self._network, cache)
        if captures:  # looked up while a GPU is busy with the prefill
            step = self._captured.get(step, rows=rows, num_columns=cache.shape[4], device=lengths.device)
        for number in range(1, num_tokens):
            columns.append(pick(number, step(columns[-1][0], lengths + number - 1)))
        tokens, logps, sampler_logps = (torch.stack(parts, dim=1) for parts in zip(*columns, strict=True))
        return tokens, logps, sampler_logps

    def _reserve(self, rows: int, num_columns: int) -> Float[Tensor, "layers 2 R heads C width"]:
        """A view of the memory; where a call needs more rows or columns, larger memory replaces it."""
        llama = self._network.language_model.model
        weight, config, old = llama.norm.weight, llama.config, self._memory
        fits = old is not None and (old.device, old.dtype) == (weight.device, weight.dtype)
        have_rows, have_columns = (old.shape[2], old.shape[4]) if old is not None and fits else (0, 0)
        if rows > have_rows or num_columns > have_columns:
            old = None
            self.release()
            rows_columns = (max(rows, have_rows), config.num_key_value_heads, max(num_columns, have_columns))
            head_width = config.hidden_size // config.num_attention_heads
            shape = (config.num_hidden_layers, 2, *rows_columns, head_width)
            self._memory = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        assert self._memory is not None
        return self._memory[:, :, :rows, :, :num_columns]


def prefill(
    network: OpenVLA,
    cache: Float[Tensor, "layers 2 R heads C width"],
    inputs: ForwardInputs,
    lengths: Int[Tensor, " B"],
) -> Float[Tensor, "B V"]:
    """Run pictures and prompts, some rows at a time; fill the cache and return the logits of each first token.

    Rows are padded on the right, so causality hides the padding.
    """
    num_rows = PREFILL_ROWS.get(cache.device.type, DEFAULT_PREFILL_ROWS)
    last = []
    for first in range(0, len(lengths), num_rows):
        rows = slice(first, first + num_rows)
        assert inputs.pixel_values is not None, "acting starts from pictures"
        embeddings = network.embed(inputs.pixel_values[rows], inputs.input_ids[rows])
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        mask = causal_mask(embeddings) if network.language_model.config._attn_implementation == "eager" else None
        hidden = run_layers(network, embeddings, positions, mask, PromptWriter(cache[:, :, rows]))
        last.append(hidden[torch.arange(len(hidden), device=hidden.device), lengths[rows] - 1])
    return network.language_model.lm_head(torch.cat(last))


def decode_step(
    network: OpenVLA,
    cache: Float[Tensor, "layers 2 R heads C width"],
    tokens: Int[Tensor, " R"],
    positions: Int[Tensor, " R"],
) -> Float[Tensor, "R V"]:
    """Logits after one more token per row, whose keys and values go into column ``positions``.

    Reads and writes fixed memory and never waits for the device, so it can be captured.
    """
    embeddings = network.language_model.model.embed_tokens(tokens)[:, None]
    is_hidden = torch.arange(cache.shape[4], device=cache.device) > positions[:, None, None, None]
    with attention_with_mask(network):
        mask = additive_mask(is_hidden, embeddings.dtype)
        hidden = run_layers(network, embeddings, positions[:, None], mask, StepWriter(cache, positions))
    return network.language_model.lm_head(hidden[:, 0])


def run_layers(
    network: OpenVLA,
    hidden: Float[Tensor, "B S D"],
    positions: Int[Tensor, "_ S"],
    mask: Float[Tensor, "_ 1 S C"] | None,
    writer: PromptWriter | StepWriter,
) -> Float[Tensor, "B S D"]:
    """Llama's layers and norm, as ``LlamaModel.forward`` runs them, with our mask and our cache.

    How that function builds masks and asks caches changes between releases of transformers; its layers do not.
    """
    llama = network.language_model.model
    rotary = llama.rotary_emb(hidden, position_ids=positions)
    for layer in llama.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, past_key_values=writer, use_cache=True)
    return llama.norm(hidden)


def causal_mask(embeddings: Float[Tensor, "B S D"]) -> Float[Tensor, "1 1 S S"]:
    """For eager attention; the other kinds are causal by themselves where there is no mask."""
    width = embeddings.shape[1]
    is_later = torch.ones(1, 1, width, width, dtype=torch.bool, device=embeddings.device).triu(1)
    return additive_mask(is_later, embeddings.dtype)


def additive_mask(is_hidden: Bool[Tensor, "B 1 S C"], dtype: torch.dtype) -> Float[Tensor, "B 1 S C"]:
    """0 where a column is seen; else a finite number, for kernels differ in what they make of infinities."""
    return torch.zeros(is_hidden.shape, dtype=dtype, device=is_hidden.device).masked_fill_(
        is_hidden, torch.finfo(dtype).min
    )


class PromptWriter:
    """A layer's cache in a prefill: prompts go to the left columns, attention stays among them."""

    def __init__(self, cache: Float[Tensor, "layers 2 R heads C width"]) -> None:
        self._cache = cache

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store, and attend over what was given."""
        batch, _heads, width, _size = keys.shape
        self._cache[layer, 0, :batch, :, :width] = keys
        self._cache[layer, 1, :batch, :, :width] = values
        return keys, values


class StepWriter:
    """A layer's cache in a step: one column a row is written, attention is over all columns."""

    def __init__(self, cache: Float[Tensor, "layers 2 R heads C width"], positions: Int[Tensor, " R"]) -> None:
        self._cache = cache
        self._positions = positions
        self._rows = torch.arange(len(positions), device=positions.device)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store, and attend over the whole cache."""
        all_keys, all_values = self._cache[layer, 0], self._cache[layer, 1]
        all_keys[self._rows, :, self._positions] = keys[:, :, 0]
        all_values[self._rows, :, self._positions] = values[:, :, 0]
        return all_keys, all_values


@contextlib.contextmanager
def attention_with_mask(network: OpenVLA) -> Iterator[None]:
    """flash-attn takes no mask of this kind, so steps go through torch's attention; reading weights binds them."""
    config = network.language_model.config
    chosen = config._attn_implementation
    config._attn_implementation = "sdpa" if chosen == "flash_attention_2" else chosen
    try:
        yield
    finally:
        config._attn_implementation = chosen
