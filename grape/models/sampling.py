"""Choosing action tokens from logits.

Axis legend: B batch, V vocabulary, A action tokens (or all tokens when unrestricted). Log-probabilities are in nats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grape.errors import ConfigError
from grape.trajectory import ACTION_DIM


def token_log_prob(logits: Float[Tensor, "*B V"], tokens: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """log π: over the full vocabulary at temperature 1, in float32. The one definition used everywhere."""
    logits = logits.float()
    picked = logits.gather(-1, tokens[..., None]).squeeze(-1)
    return picked - logits.logsumexp(dim=-1)


def choose(
    scores: Float[Tensor, "B A"],
    *,
    temperature: float,
    top_p: float | None = None,
    uniforms: Float[Tensor, " B"] | None = None,
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Pick one column per row: the largest, or by inverse CDF on given numbers.

    A row's choice depends on that row's scores and uniform alone, never on the rest of the batch.

    Args:
        scores: Logits of the tokens that may be chosen.
        temperature: 0 is greedy.
        top_p: Keep the smallest set of most likely columns whose probability reaches this.
        uniforms: Numbers in [0, 1), needed when temperature is above 0.

    Returns:
        Column indices, and their log-probability under the distribution sampled from (0 when greedy).
    """
    if temperature == 0:
        best = scores.argmax(dim=-1)
        return best, torch.zeros_like(best, dtype=torch.float32)
    assert uniforms is not None
    # float64: the CDF's rounding must not decide which token a uniform falls on.
    log_probs = (scores.double() / temperature).log_softmax(dim=-1)
    if top_p is not None and top_p < 1:
        log_probs = _keep_top_p(log_probs, top_p)
    cdf = log_probs.exp().cumsum(dim=-1)
    target = uniforms.double()[:, None] * cdf[:, -1:]
    chosen = (cdf <= target).sum(dim=-1).clamp(max=scores.shape[-1] - 1)
    return chosen, log_probs.gather(-1, chosen[:, None]).squeeze(-1).float()


@dataclass(frozen=True, kw_only=True)
class TokenPicker:
    """Picks the next token of each row, and scores it."""

    first_id: int
    """First token that may be chosen."""
    end_id: int | None
    """One past the last; ``None``: the vocabulary's end, padding included."""
    temperature: float
    top_p: float | None
    uniforms: Float[Tensor, "B columns"] | None
    """What decides each choice; ``None`` when greedy."""

    def __call__(
        self, column: int, logits: Float[Tensor, "B V"]
    ) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Tokens, their log π, and their log-probability under the distribution sampled from."""
        chosen, sampler_logp = choose(
            logits[:, self.first_id : self.end_id].float(),
            temperature=self.temperature,
            top_p=self.top_p,
            uniforms=None if self.uniforms is None else self.uniforms[:, column],
        )
        chosen = chosen + self.first_id
        return chosen, token_log_prob(logits, chosen), sampler_logp


def _keep_top_p(log_probs: Float[Tensor, "B A"], top_p: float) -> Float[Tensor, "B A"]:
    ordered, order = log_probs.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(dim=-1) - ordered.exp()
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.full_like(log_probs, float("-inf")).scatter(-1, order, ordered).log_softmax(dim=-1)


def check_settings(temperature: float, top_p: float | None, uniforms: np.ndarray | None, *, num_rows: int) -> None:
    """Refuse sampling settings that cannot be honoured."""
    if not temperature >= 0 or not np.isfinite(temperature):
        raise ConfigError(f"temperature is {temperature}; wanted 0 (greedy) or a positive number")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p is {top_p}; wanted a number in (0, 1]")
    if temperature == 0:
        return
    if uniforms is None:
        raise ConfigError("sampling at a temperature above 0 needs uniforms: an array of (batch, 7) numbers in [0, 1)")
    if uniforms.shape != (num_rows, ACTION_DIM) or uniforms.min() < 0 or uniforms.max() >= 1:
        raise ConfigError(f"uniforms have shape {uniforms.shape}; wanted ({num_rows}, {ACTION_DIM}), all in [0, 1)")


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside the context."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
