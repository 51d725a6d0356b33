"""The two vision towers of OpenVLA in plain torch, with timm's module names.

timm's names and its fused ``qkv`` are kept because LoRA adapters store module names: adapters made by the original
code load here, and ours load there. Axis legend: B batch, C channels, H height, W width, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-6  # both towers, as in timm's ViT


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Sizes of one vision transformer."""

    image_size: int
    """Side of the square input, pixels."""
    patch_size: int
    """Side of a patch, pixels."""
    width: int
    """Channels of a token."""
    num_blocks: int
    """Blocks in the checkpoint; the last one never runs."""
    num_heads: int
    """Attention heads; not visible in the weights."""
    mlp_width: int
    """Hidden channels of each block's MLP."""
    num_registers: int = 0
    """Register tokens after the class token (4 in OpenVLA's DINOv2, 0 in SigLIP)."""
    has_class_token: bool = False
    """DINOv2 has one, SigLIP has none."""
    has_layer_scale: bool = False
    """DINOv2's blocks scale their residuals; stored as ``scale_factor``."""
    has_pooling_head: bool = False
    """SigLIP's attention pooling; kept for the checkpoint, never run."""

    @property
    def num_patches(self) -> int:
        """Patch tokens of one picture."""
        return (self.image_size // self.patch_size) ** 2


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Embed patches row by row."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with one fused projection for queries, keys and values."""

    def __init__(self, config: TowerConfig, *, eager: bool) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.eager = eager
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Attend over all tokens of the picture."""
        batch, num_tokens, width = tokens.shape
        heads = self.qkv(tokens).reshape(batch, num_tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        if self.eager:
            weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            mixed = weights.softmax(dim=-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, num_tokens, width))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Scale the residual branch."""
        return tokens * self.scale_factor


class Mlp(nn.Module):
    """Two linear layers with exact GELU between them."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, tokens: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Apply the MLP to each token."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TowerConfig, *, eager: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.attn = Attention(config, eager=eager)
        self.norm2 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(config.width, config.mlp_width)
        # Assigned only where they exist: timm's identity has no entry in the state dict, and neither has None.
        self.ls1 = LayerScale(config.width) if config.has_layer_scale else None
        self.ls2 = LayerScale(config.width) if config.has_layer_scale else None

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Attention, then MLP, each on its residual."""
        attended = self.attn(self.norm1(tokens))
        tokens = tokens + (attended if self.ls1 is None else self.ls1(attended))
        mixed = self.mlp(self.norm2(tokens))
        return tokens + (mixed if self.ls2 is None else self.ls2(mixed))


class UnusedPoolingHead(nn.Module):
    """SigLIP's attention pooling: in the checkpoint, never run by OpenVLA."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, config.width))
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(config.width, config.mlp_width)


class VisionTower(nn.Module):
    """One vision transformer; gives the patch tokens that leave its second-to-last block."""

    def __init__(self, config: TowerConfig, *, eager: bool = False) -> None:
        super().__init__()
        self.config = config
        self.num_prefix_tokens = config.num_registers + int(config.has_class_token)
        if config.has_class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.num_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, config.width))
        self.pos_embed = nn.Parameter(torch.randn(1, config.num_patches, config.width) * 0.02)
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config, eager=eager) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        if config.has_pooling_head:
            self.attn_pool = UnusedPoolingHead(config)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Encode pictures; class and register tokens are dropped."""
        tokens = self.patch_embed(pixels) + self.pos_embed
        batch = tokens.shape[0]
        prefix = []
        if self.config.has_class_token:
            prefix.append(self.cls_token.expand(batch, -1, -1))
        if self.config.num_registers:
            prefix.append(self.reg_token.expand(batch, -1, -1))
        if prefix:
            tokens = torch.cat([*prefix, tokens], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        return tokens[:, self.num_prefix_tokens :]


class FusedVisionBackbone(nn.Module):
    """DINOv2 and SigLIP side by side, their features joined on channels."""

    def __init__(self, dino: TowerConfig, siglip: TowerConfig, *, eager: bool = False) -> None:
        super().__init__()
        self.featurizer = VisionTower(dino, eager=eager)
        self.fused_featurizer = VisionTower(siglip, eager=eager)

    def forward(self, pixel_values: Float[Tensor, "B 6 H W"]) -> Float[Tensor, "B N D"]:
        """Encode pictures that were normalised for each tower."""
        dino_pixels, siglip_pixels = pixel_values.split(3, dim=1)
        return torch.cat([self.featurizer(dino_pixels), self.fused_featurizer(siglip_pixels)], dim=2)
