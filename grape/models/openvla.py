"""The OpenVLA network (arXiv 2406.09246): fused towers, projector, Llama; names as in the published checkpoint.

Axis legend: B batch, L text tokens, N patch tokens, S = L + N, P positions asked for, V vocabulary, D width.
The multimodal sequence is the first text token, the N patches, then the rest of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from grape.models.vision import FusedVisionBackbone, TowerConfig

PROJECTOR_EXPANSION = 4  # fc1 is four times as wide as the joined features


@dataclass(frozen=True, kw_only=True)
class OpenVLAConfig:
    """Sizes of an OpenVLA of any size."""

    dino: TowerConfig
    """First tower, ``vision_backbone.featurizer``."""
    siglip: TowerConfig
    """Second tower, ``vision_backbone.fused_featurizer``."""
    text: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``LlamaConfig``; what is absent has Llama-2-7B's default, as in the published config.json."""
    num_action_bins: int = 256
    """Number of action tokens: the last ones of the real vocabulary."""
    vocab_padding: int = 64
    """Rows of the embedding beyond the real vocabulary (``pad_to_multiple_of`` in config.json)."""

    @property
    def image_size(self) -> int:
        """Side of the square policy image, pixels."""
        return self.dino.image_size

    @property
    def num_patches(self) -> int:
        """Patch tokens of one picture."""
        return self.dino.num_patches

    @property
    def real_vocab_size(self) -> int:
        """Vocabulary without padding: 32,000 when published. Action ids end just below it."""
        return int(self.text["vocab_size"]) - self.vocab_padding


class Projector(nn.Module):
    """Vision features to word embeddings: three linear layers with exact GELU."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        hidden = PROJECTOR_EXPANSION * vision_width
        self.fc1 = nn.Linear(vision_width, hidden)
        self.fc2 = nn.Linear(hidden, text_width)
        self.fc3 = nn.Linear(text_width, text_width)

    def forward(self, features: Float[Tensor, "B N D"]) -> Float[Tensor, "B N E"]:
        """Project each patch."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class OpenVLA(nn.Module):
    """The network; ``OpenVLAPolicy`` wraps it with tokenizer, statistics and pictures."""

    def __init__(self, config: OpenVLAConfig, *, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.openvla_config = config
        self.name_or_path: Any = None  # peft looks here for the base model's name
        # The original code, too, applies the setting to Llama alone; flash in the towers is torch's own kernel choice.
        eager = attn_implementation == "eager"
        self.vision_backbone = FusedVisionBackbone(config.dino, config.siglip, eager=eager)
        llama_config = LlamaConfig(**config.text)
        llama_config._attn_implementation = attn_implementation
        self.projector = Projector(config.dino.width + config.siglip.width, llama_config.hidden_size)
        self.language_model = LlamaForCausalLM(llama_config)
        for name, parameter in self.named_parameters():
            if is_unused(name, config):
                parameter.requires_grad_(False)

    def encode_images(self, pixel_values: Float[Tensor, "B 6 H W"]) -> Float[Tensor, "B N D"]:
        """What the language model sees of the pictures: towers, then projector."""
        return self.projector(self.vision_backbone(pixel_values))

    def embed(
        self,
        pixel_values: Float[Tensor, "B 6 H W"] | None,
        input_ids: Int[Tensor, "B L"],
        image_features: Float[Tensor, "B N D"] | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Build the multimodal sequence, from pixels or from what ``encode_images`` made of them."""
        if image_features is None:
            assert pixel_values is not None, "either pixels or features"
            image_features = self.encode_images(pixel_values)
        words = self.language_model.model.embed_tokens(input_ids)
        return torch.cat([words[:, :1], image_features, words[:, 1:]], dim=1)

    def forward(
        self,
        pixel_values: Float[Tensor, "B 6 H W"] | None,
        input_ids: Int[Tensor, "B L"],
        logit_positions: Int[Tensor, "B P"],
        image_features: Float[Tensor, "B N D"] | None = None,
    ) -> Float[Tensor, "B P V"]:
        """Logits of the tokens that follow the given text positions (all of them at least 1).

        Rows are padded on the right; attention is causal, so padding is never seen and needs no mask.
        """
        embeddings = self.embed(pixel_values, input_ids, image_features)
        hidden = self.language_model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None]
        return self.language_model.lm_head(hidden[rows, logit_positions + self.openvla_config.num_patches])


def is_unused(name: str, config: OpenVLAConfig) -> bool:
    """Whether a weight or module is in the checkpoint but never runs: each tower's last block, norm and pooling."""
    for tower, sizes in (("featurizer", config.dino), ("fused_featurizer", config.siglip)):
        prefix = f"vision_backbone.{tower}."
        if name.startswith((f"{prefix}blocks.{sizes.num_blocks - 1}.", f"{prefix}norm.", f"{prefix}attn_pool.")):
            return True
    return False


def lora_target_pattern(config: OpenVLAConfig, targets: str = "all-linear") -> str:
    """Regular expression for peft's ``target_modules``: all linear layers that run, or those of Llama alone.

    Like peft's own ``all-linear``, it leaves the output layer out. A pattern instead of a list of names, so that the
    adapter also loads in the original code without adapters on weights that never run.
    """
    language = r"language_model\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    if targets == "llm":
        return language
    if targets != "all-linear":
        raise ValueError(f"targets is {targets!r}; known: 'all-linear', 'llm'")
    towers = []
    for tower, sizes in (("featurizer", config.dino), ("fused_featurizer", config.siglip)):
        numbers = "|".join(str(number) for number in range(sizes.num_blocks - 1))
        towers.append(rf"vision_backbone\.{re.escape(tower)}\.blocks\.({numbers})\.(attn\.(qkv|proj)|mlp\.fc[12])")
    return "|".join(f"({part})" for part in (*towers, r"projector\.fc[123]", language))
