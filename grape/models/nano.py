"""New policies from scratch, with a small tokenizer of their own.

The result is an ordinary checkpoint in memory: ``save_policy`` writes the published layout, ``load_policy`` reads it.
"""

from __future__ import annotations

import json
import re
import string
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from grape.errors import ConfigError, did_you_mean
from grape.models.folder import CONFIG_FILE, PREPROCESSOR_FILE
from grape.models.image_transform import HALF, IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from grape.models.openvla import OpenVLA, OpenVLAConfig
from grape.models.policy import OpenVLAPolicy, hash_in_memory
from grape.models.presets import NUM_ACTION_BINS, OPENVLA_7B, PRESETS, VOCAB_MULTIPLE, preset_config
from grape.models.prompt import PROMPT, SPACE_PIECE, TOKENIZER_FILE, load_prompt_encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNKNOWN, BEGIN, END, PAD = "<unk>", "<s>", "</s>", "<PAD>"
CONTINUATION = "##"  # WordPiece's mark of a piece inside a word
INIT_STD = 0.02

LIBERO_TEXT = """
the and it place pick in on basket put plate bowl black of akita stove sauce cream cheese top drawer to cabinet soup
alphabet box mug white both tomato pudding chocolate butter bottle wine ramekin open bbq next up ketchup salad orange
milk layer juice dressing turn right close yellow wooden moka rack inside front from cookies push middle lift left into
grab bottom between table pot microwave compartment center caddy back pots book set cookie a
"""
"""Words of LIBERO's instructions (four suites and LIBERO-90)."""


def new_policy(
    preset: str = "nano",
    *,
    instructions: Iterable[str] = (),
    norm_stats: dict[str, Any] | None = None,
    seed: int = 0,
    **sizes: int,
) -> OpenVLAPolicy:
    """A policy with random weights, in float32 on the CPU.

    Args:
        preset: A name in ``PRESETS``; ``grape init-checkpoint`` writes openvla-7b, which is too large for this.
        instructions: Their words become tokens, beside LIBERO's.
        norm_stats: Action statistics by dataset, as in config.json.
        seed: Of the weights.
        sizes: Replace single numbers of the preset, e.g. ``image_size=56``.
    """
    if preset == OPENVLA_7B:
        raise ConfigError(f"preset {preset!r} is too large to make in memory; write it with grape init-checkpoint")
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} is unknown.{did_you_mean(preset, PRESETS)}")
    unknown = sizes.keys() - PRESETS[preset].keys()
    if unknown:
        raise ConfigError(f"size {min(unknown)!r} is unknown.{did_you_mean(min(unknown), PRESETS[preset])}")
    tokenizer = build_tokenizer(instructions)
    config = preset_config({**PRESETS[preset], **sizes}, real_vocab_size=tokenizer.get_vocab_size() - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = OpenVLA(config)
        initialize(network)
    assets = checkpoint_assets(config, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / TOKENIZER_FILE).write_bytes(assets[TOKENIZER_FILE])
        prompts = load_prompt_encoder(Path(folder), prefix_id=None, pad_id=config.real_vocab_size)
    return OpenVLAPolicy(
        network=network,
        prompts=prompts,
        image_transform=ImageTransform(config.image_size),
        norm_stats=dict(norm_stats or {}),
        source_config=json.loads(assets[CONFIG_FILE]),
        assets=assets,
        name=f"new:{preset}",
        content_hash=hash_in_memory,
    )


def build_tokenizer(instructions: Iterable[str] = (), *, vocab_size: int | None = None) -> Tokenizer:
    """Whole words of LIBERO, of the prompt and of ``instructions``; other words fall back to characters.

    The order is as in openvla-7b's: special tokens, text, the action slots at the end of the real vocabulary, and
    the padding token after it. Reserved words fill the vocabulary up to ``vocab_size`` without the padding token;
    ``None``: to the next multiple of 64.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    template = re.findall(r"\w+|[^\w\s]", PROMPT.format(instruction=""))
    words = {word for text in instructions for word in re.findall(r"\w+", text.lower())} | set(LIBERO_TEXT.split())
    characters = string.ascii_letters + string.digits + string.punctuation
    pieces = [UNKNOWN, BEGIN, END, SPACE_PIECE, *characters, *(CONTINUATION + character for character in characters)]
    vocabulary = list(dict.fromkeys([*pieces, *template, *sorted(words)]))
    filler = -len(vocabulary) % VOCAB_MULTIPLE
    if vocab_size is not None:
        filler = vocab_size - NUM_ACTION_BINS - len(vocabulary)
    vocabulary += [f"<reserved_{number}>" for number in range(filler)]
    vocabulary += [f"<action_{number}>" for number in range(NUM_ACTION_BINS)]
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUATION))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, ids[BEGIN])])  # type: ignore[assignment]
    tokenizer.add_special_tokens([UNKNOWN, BEGIN, END, PAD])
    return tokenizer


def checkpoint_assets(config: OpenVLAConfig, tokenizer: Tokenizer) -> dict[str, bytes]:
    """The small files of a checkpoint folder."""
    size = config.image_size
    model_config = {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [size, size],
        "n_action_bins": config.num_action_bins,
        "pad_to_multiple_of": config.vocab_padding,
        "pad_token_id": config.real_vocab_size,
        "text_config": config.text,
        "use_fused_vision_backbone": True,
        "vision_num_heads": [config.dino.num_heads, config.siglip.num_heads],
        "norm_stats": {},
    }
    preprocessor = {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, size, size], [3, size, size]],
        "interpolations": ["bicubic", "bicubic"],
        "means": [IMAGENET_MEAN, HALF],
        "stds": [IMAGENET_STD, HALF],
        "use_fused_vision_backbone": True,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    files = {CONFIG_FILE: model_config, PREPROCESSOR_FILE: preprocessor, "tokenizer_config.json": tokenizer_config}
    encoded = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in files.items()}
    return {**encoded, TOKENIZER_FILE: tokenizer.to_str(pretty=True).encode()}


def initialize(network: OpenVLA) -> None:
    """Weights for training from scratch: N(0, 0.02), zero biases, LayerScale at 1 (1e-5 is for fine-tuning)."""
    for module in network.vision_backbone.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in network.vision_backbone.named_parameters():
        if name.endswith("scale_factor"):
            nn.init.ones_(parameter)
        elif name.endswith(("cls_token", "reg_token", "latent")):
            nn.init.normal_(parameter, std=INIT_STD)
    for module in network.projector.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
