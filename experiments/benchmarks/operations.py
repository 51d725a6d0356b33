"""Floating-point operations of an OpenVLA, counted by hand from its sizes.

A multiplication with its addition counts as two operations. Counted are matrix products alone, and attention over all
pairs of tokens (causal kernels skip half of it: 1 % of the whole in openvla-7b). ``tests/benchmarks`` compares with the
count that torch makes of a real pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from grape.models.openvla import OpenVLAConfig
from grape.models.vision import TowerConfig
from grape.trajectory import ACTION_DIM

Layers = list[tuple[int, int]]
"""(inputs, outputs) of linear layers."""


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Of one row (the sequence of one time step), in floating-point operations."""

    towers: float
    """Patch embedding, linear layers and attention of both."""
    projector: float
    language_model: float
    head: float
    """Output layer, at the action tokens alone."""
    lora: float
    """The adapter's two small products beside each linear layer."""
    backward: float
    """Gradients of inputs through all of it, and of the adapter; recomputation is not counted."""

    @property
    def forward(self) -> float:
        """One pass, the adapter included."""
        return self.towers + self.projector + self.language_model + self.head + self.lora

    @property
    def training_step(self) -> float:
        """A row of a whole-trajectory step whose reference is cached: a pass without gradients, one with, one back."""
        return 2 * self.forward + self.backward


def count(config: OpenVLAConfig, *, num_text_tokens: int, lora_rank: int = 0) -> Operations:
    """Count by hand.

    Args:
        config: Sizes.
        num_text_tokens: Prompt and action tokens, beside the picture's.
        lora_rank: Of an adapter on all linear layers that run; 0 is none.
    """
    text = config.text
    width, num_layers = text.get("hidden_size", 4096), text.get("num_hidden_layers", 32)
    mlp, vocabulary = text.get("intermediate_size", 11008), text.get("vocab_size", 32064)
    patches, sequence = config.dino.num_patches, config.dino.num_patches + num_text_tokens
    joined = config.dino.width + config.siglip.width

    towers = (config.dino, config.siglip)
    embedding = patches * sum(_dense([(3 * tower.patch_size**2, tower.width)]) for tower in towers)
    in_towers = [_blocks(tower, lora_rank) for tower in towers]
    projector: Layers = [(joined, 4 * joined), (4 * joined, width), (width, width)]
    block: Layers = [(width, width)] * 4 + [(width, mlp)] * 2 + [(mlp, width)]
    attention = num_layers * 4 * sequence * sequence * width + sum(part.attention for part in in_towers)
    lora = (
        sum(part.lora for part in in_towers)
        + patches * _low_rank(projector, lora_rank)
        + num_layers * sequence * _low_rank(block, lora_rank)
    )
    dense = {
        "towers": sum(part.dense for part in in_towers),
        "projector": patches * _dense(projector),
        "language_model": num_layers * sequence * _dense(block),
        "head": ACTION_DIM * _dense([(width, vocabulary)]),
    }
    # Attention is two products forward and four backward; each adapter matrix has a gradient of its own beside that of
    # its input; before the towers' first layers there is nothing to train.
    backward = sum(dense.values()) + 2 * attention + 2 * lora - sum(part.first_inputs for part in in_towers)
    in_language_model = num_layers * 4 * sequence * sequence * width
    return Operations(
        towers=embedding + dense["towers"] + attention - in_language_model,
        projector=dense["projector"],
        language_model=dense["language_model"] + in_language_model,
        head=dense["head"],
        lora=lora,
        backward=backward,
    )


@dataclass(frozen=True, kw_only=True)
class DecisionOperations:
    """Of one action, decoded over a key-value cache; attention over the columns that are seen."""

    vision: float
    """Towers and projector."""
    prefill: float
    """The language model over picture and prompt, the output layer at one position."""
    decode: float
    """Six more tokens."""


def count_decision(config: OpenVLAConfig, num_text_tokens: int) -> DecisionOperations:
    """Count by hand; ``num_text_tokens`` is the prompt's length."""
    whole = count(config, num_text_tokens=num_text_tokens)
    width, num_layers = config.text.get("hidden_size", 4096), config.text.get("num_hidden_layers", 32)
    sequence = config.dino.num_patches + num_text_tokens
    head = whole.head / ACTION_DIM
    per_token = (whole.language_model - num_layers * 4.0 * sequence * sequence * width) / sequence
    seen = sum(range(sequence + 1, sequence + ACTION_DIM))
    return DecisionOperations(
        vision=whole.towers + whole.projector,
        prefill=whole.language_model - num_layers * 2.0 * sequence * sequence * width + head,
        decode=(ACTION_DIM - 1) * (per_token + head) + num_layers * 4.0 * seen * width,
    )


@dataclass(frozen=True, kw_only=True)
class _TowerOperations:
    dense: float
    attention: float
    lora: float
    first_inputs: float
    """Gradients of the first layer's inputs, which nobody asks for."""


def _blocks(tower: TowerConfig, lora_rank: int) -> _TowerOperations:
    tokens = tower.num_patches + tower.num_registers + int(tower.has_class_token)
    width, num_blocks = tower.width, tower.num_blocks - 1  # the last block never runs
    block: Layers = [(width, 3 * width), (width, width), (width, tower.mlp_width), (tower.mlp_width, width)]
    return _TowerOperations(
        dense=num_blocks * tokens * _dense(block),
        attention=num_blocks * 4.0 * tokens * tokens * width,
        lora=num_blocks * tokens * _low_rank(block, lora_rank),
        first_inputs=tokens * (_dense(block[:1]) + 2.0 * lora_rank * width),
    )


def _dense(layers: Layers) -> float:
    return sum(2.0 * inputs * outputs for inputs, outputs in layers)


def _low_rank(layers: Layers, rank: int) -> float:
    return sum(2.0 * rank * (inputs + outputs) for inputs, outputs in layers)
