"""Which settings of the preference loss go together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from grape.errors import ConfigError

if TYPE_CHECKING:
    from grape.config.train import TrainConfig

REFUSED: tuple[tuple[tuple[str, ...], Callable[[TrainConfig], bool], str], ...] = (
    (
        ("loss", "label_smoothing"),
        lambda config: config.loss == "robust" and not config.label_smoothing,
        "rDPO corrects for a known rate of wrong labels; set --label_smoothing to that rate, or take --loss sigmoid, "
        "which is the same at 0",
    ),
    (
        ("loss", "label_smoothing"),
        lambda config: config.loss in ("ipo", "hinge") and config.label_smoothing > 0,
        "this loss has no smoothed form; take --loss sigmoid (conservative) or robust (unbiased), or "
        "--label_smoothing 0",
    ),
    (
        ("loss", "reference_free"),
        lambda config: config.loss == "ipo" and config.reference_free,
        "1 / (2 beta) is how far IPO lets the policy go from the reference; take --loss sigmoid or hinge, or keep the "
        "reference",
    ),
    (
        ("reference_free", "length_normalised"),
        lambda config: config.reference_free and config.objective != "step" and not config.length_normalised,
        "without a reference the longer trajectory has the smaller sum whatever it does; add --length_normalised True",
    ),
    (
        ("simpo_gamma", "reference_free"),
        lambda config: config.simpo_gamma > 0 and not config.reference_free,
        "the target margin is SimPO's; add --reference_free True, or take --simpo_gamma 0",
    ),
    (
        ("simpo_gamma", "loss"),
        lambda config: config.simpo_gamma > 0 and config.loss == "hinge",
        "the hinge has its margin already, 1 / beta nats; take --simpo_gamma 0 and choose --beta",
    ),
    (
        ("length_normalised", "objective"),
        lambda config: config.length_normalised and config.objective == "step",
        "a single step has no length; leave --length_normalised out",
    ),
)
"""(Settings that are named, where they do not go together, why and what to do)."""


def check_loss(config: TrainConfig) -> None:
    """Refuse combinations that make no sense.

    Raises:
        ConfigError: With the settings, the reason and the next step.
    """
    for names, clashes, reason in REFUSED:
        if clashes(config):
            values = " with ".join(f"{name}={getattr(config, name)!r}" for name in names)
            raise ConfigError(f"{values}: {reason}")
