"""An OpenVLA that acts, scores actions and carries adapters.

Axis legend: B batch, L text tokens, N patch tokens, D width, A the 7 action tokens, P scored positions (A, or A + 1
with the end token), V vocabulary. Log-probabilities are in nats, over the full vocabulary at temperature 1, unless
said.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grape.config.inputs import PromptStyle
from grape.errors import CheckpointError, ConfigError
from grape.models import adapter as adapters
from grape.models import sampling, statistics
from grape.models.action_tokenizer import ActionTokenizer
from grape.models.batches import ActionBatch, ForwardInputs
from grape.models.decoding import Decoder
from grape.models.fitting import FittingBatches
from grape.models.image_transform import ImageTransform
from grape.models.openvla import OpenVLA, OpenVLAConfig
from grape.models.prompt import PromptEncoder
from grape.models.weights import hash_tensors
from grape.trajectory import ACTION_DIM


class OpenVLAPolicy:
    """Network, tokenizer, statistics and image transform of one checkpoint.

    Attributes:
        model: The network; a ``PeftModel`` around it once there is an adapter.
        config: Sizes.
        source_config: config.json as read, written back by ``save_policy``.
        norm_stats: Action statistics by dataset.
        name: Path or hub id it came from.
        assets: Small files of the source folder, written back by ``save_policy``.
        quantization: How base weights are packed, ``None`` where they are not.
    """

    def __init__(
        self,
        *,
        network: OpenVLA,
        prompts: PromptEncoder,
        image_transform: ImageTransform,
        norm_stats: dict[str, Any],
        source_config: dict[str, Any],
        assets: dict[str, bytes],
        name: str,
        content_hash: Callable[[OpenVLAPolicy], str],
    ) -> None:
        self.model: nn.Module = network.eval()
        network.name_or_path = name
        self.prompts = prompts
        self.image_transform = image_transform
        self.norm_stats = norm_stats
        self.adapter_keys: frozenset[str] = frozenset()  # entries of norm_stats that came with the adapter
        self.source_config = source_config
        self.assets = assets
        self.name = name
        self.quantization: str | None = None
        self._network = network
        self._decoder = Decoder(network)
        self._fitting = FittingBatches()
        self._content_hash = content_hash
        self._cached_hash: str | None = None
        self.action_tokenizer = ActionTokenizer(
            vocab_size=network.openvla_config.real_vocab_size, num_bins=network.openvla_config.num_action_bins
        )

    @property
    def network(self) -> OpenVLA:
        """The bare network; its linear layers hold the adapter where there is one."""
        return self._network

    @property
    def config(self) -> OpenVLAConfig:
        """Sizes of the network."""
        return self._network.openvla_config

    @property
    def image_size(self) -> int:
        """Side of the policy image, pixels."""
        return self.config.image_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._network.projector.fc3.bias.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the base weights."""
        return self._network.projector.fc3.bias.dtype

    @property
    def checkpoint_hash(self) -> str:
        """Content hash of the weights that were loaded (and the adapter's); computed on first use."""
        if self._cached_hash is None:
            self._cached_hash = self._content_hash(self)
        return self._cached_hash

    def use_prompt_style(self, style: PromptStyle) -> None:
        """Word prompts this way from now on; checkpoints do not say which way they were trained."""
        self.prompts = dataclasses.replace(self.prompts, style=style)

    def prompt_ids(self, instruction: str) -> list[int]:
        """Token ids of the prompt for one instruction."""
        return self.prompts.prompt_ids(instruction)

    def decode_actions(self, tokens: np.ndarray, unnorm_key: str | None) -> np.ndarray:
        """(..., 7) token ids to actions in the robot's units, float64."""
        return statistics.unnormalize(self.action_tokenizer.decode(tokens), self.norm_stats, unnorm_key)

    def encode_actions(self, actions: np.ndarray, unnorm_key: str | None) -> np.ndarray:
        """(..., 7) actions in the robot's units to token ids."""
        return self.action_tokenizer.encode(statistics.normalize(actions, self.norm_stats, unnorm_key))

    def forward_inputs(
        self,
        images: Sequence[np.ndarray],
        instructions: Sequence[str],
        tokens: np.ndarray | Tensor | None = None,
        *,
        center_crop: bool = False,
        image_features: Float[Tensor, "B N D"] | None = None,
    ) -> ForwardInputs:
        """Build padded inputs; shared by acting, scoring and supervised training.

        Args:
            images: B policy images, (H, W, 3) uint8, after ``prepare_image``.
            instructions: B instructions.
            tokens: (B, 7) action tokens to append, or ``None``.
            center_crop: Keep the central 90 % of each picture's area.
            image_features: What ``image_features`` gave for these pictures, which are then not read.
        """
        check_rows(images, instructions, tokens)
        prompts = [self.prompts.action_prefix_ids(instruction) for instruction in instructions]
        tails = [[]] * len(prompts) if tokens is None else tokens.tolist()
        rows = [prompt + tail for prompt, tail in zip(prompts, tails, strict=True)]
        width = max(len(row) for row in rows)
        padded = [row + [self.prompts.pad_id] * (width - len(row)) for row in rows]
        return ForwardInputs(
            pixel_values=None if image_features is not None else self._pixel_values(images, center_crop),
            image_features=image_features,
            input_ids=torch.tensor(padded, device=self.device),
            num_prompt_ids=torch.tensor([len(prompt) for prompt in prompts], device=self.device),
        )

    def _pixel_values(self, images: Sequence[np.ndarray], center_crop: bool) -> Float[Tensor, "B 6 H W"]:
        return self.image_transform(images, center_crop=center_crop, device=self.device).to(self.dtype)

    @torch.no_grad()
    def image_features(self, images: Sequence[np.ndarray], *, center_crop: bool = False) -> Float[Tensor, "B N D"]:
        """Towers and projector alone, for ``log_prob``; constant while nothing in them is trained."""
        return self.network.encode_images(self._pixel_values(images, center_crop))

    def action_logits(self, inputs: ForwardInputs, *, include_end_token: bool = False) -> Float[Tensor, "B P V"]:
        """Logits of the 7 action tokens (and the end token) of inputs that were built with ``tokens``."""
        positions = torch.arange(ACTION_DIM + int(include_end_token), device=self.device)
        # The logits of the token at text position p come from position p - 1.
        positions = inputs.num_prompt_ids[:, None] - 1 + positions
        return self.model(inputs.pixel_values, inputs.input_ids, positions, inputs.image_features)

    def log_prob(
        self,
        images: Sequence[np.ndarray],
        instructions: Sequence[str],
        tokens: np.ndarray | Tensor,
        *,
        center_crop: bool = False,
        include_end_token: bool = False,
        image_features: Float[Tensor, "B N D"] | None = None,
    ) -> Float[Tensor, "B P"]:
        """Log-probability of given action tokens; differentiable where gradients are on.

        Args:
            images: B policy images, (H, W, 3) uint8.
            instructions: B instructions.
            tokens: (B, 7) vocabulary ids.
            center_crop: As in ``act``.
            include_end_token: Append the log-probability of ``</s>`` as an 8th column, as GRAPE's release did.
            image_features: As in ``forward_inputs``.
        """
        inputs = self.forward_inputs(
            images, instructions, tokens, center_crop=center_crop, image_features=image_features
        )
        logits = self.action_logits(inputs, include_end_token=include_end_token)
        return sampling.token_log_prob(logits, self.target_tokens(tokens, include_end_token))

    def target_tokens(self, tokens: np.ndarray | Tensor, include_end_token: bool = False) -> Int[Tensor, "B P"]:
        """Action tokens as a tensor on the policy's device, with ``</s>`` appended where asked."""
        targets = torch.as_tensor(tokens, dtype=torch.long, device=self.device)
        if include_end_token:
            targets = torch.cat([targets, torch.full_like(targets[:, :1], self.prompts.end_id)], dim=1)
        return targets

    @torch.inference_mode()
    def act(
        self,
        images: Sequence[np.ndarray],
        instructions: Sequence[str],
        *,
        unnorm_key: str | None,
        temperature: float = 0.0,
        top_p: float | None = None,
        uniforms: np.ndarray | None = None,
        restrict_to_actions: bool = True,
        center_crop: bool = False,
    ) -> ActionBatch:
        """Choose one action per observation.

        Args:
            images: B policy images, (H, W, 3) uint8, after ``prepare_image``.
            instructions: B instructions, of any lengths.
            unnorm_key: Which statistics unnormalise the actions.
            temperature: 0 decodes greedily.
            top_p: Nucleus sampling; ``None`` or 1 is off.
            uniforms: (B, 7) numbers in [0, 1) that decide the samples; needed when temperature is above 0.
            restrict_to_actions: Choose among the action tokens alone (the published code does not).
            center_crop: Keep the central 90 % of each picture's area.

        Raises:
            ConfigError: Settings that cannot be honoured.
            CheckpointError: No such statistics, or the network's output is not finite.
            SamplingError: The device has no memory for even one observation; larger batches that do not fit are halved.
        """
        sampling.check_settings(temperature, top_p, uniforms, num_rows=len(images))
        statistics.action_range(self.norm_stats, unnorm_key)  # before the work, not after
        check_rows(images, instructions, None)
        columns = None if uniforms is None or temperature == 0 else torch.as_tensor(uniforms).to(self.device)
        tokenizer = self.action_tokenizer

        def choose_rows(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
            pick = sampling.TokenPicker(
                first_id=tokenizer.first_id if restrict_to_actions else 0,
                end_id=tokenizer.vocab_size if restrict_to_actions else None,
                temperature=temperature,
                top_p=top_p,
                uniforms=None if columns is None else columns[rows],
            )
            inputs = self.forward_inputs(images[rows], instructions[rows], center_crop=center_crop)
            return self._decoder.decode(inputs, ACTION_DIM, pick)

        with sampling.evaluation_mode(self.model):
            parts = self._fitting.run(choose_rows, len(images), release=self.release_memory)
        chosen, logps, sampler = (torch.cat(part) for part in zip(*parts, strict=True))
        token_logps = logps.cpu().numpy()
        if not np.isfinite(token_logps).all():
            raise CheckpointError(f"{self.name}: the network's output is not finite; its weights are damaged")
        tokens = chosen.cpu().numpy()
        return ActionBatch(
            tokens=tokens.astype(np.int32),
            token_logps=token_logps.astype(np.float32),
            sampler_logps=sampler.cpu().numpy().astype(np.float32),
            actions=self.decode_actions(tokens, unnorm_key).astype(np.float32),
        )

    def release_memory(self) -> None:
        """Give back what ``act`` keeps on the device for its next call: the key-value cache and CUDA graphs."""
        self._decoder.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def with_adapter(
        self,
        lora_rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: str = "all-linear",
        init: str = "gaussian",
    ) -> OpenVLAPolicy:
        """Add a trainable LoRA adapter in place and return this policy.

        Args:
            lora_rank: Rank of each adapter.
            alpha: Scale numerator; ``None`` is GRAPE's min(rank, 32).
            dropout: Probability on the adapter's input.
            targets: ``"all-linear"`` (every linear layer that runs, without the output layer) or ``"llm"``.
            init: peft's ``init_lora_weights``.
        """
        self.model = adapters.add_adapter(self, lora_rank, alpha, dropout, targets, init)
        return self

    def merge_adapter(self) -> OpenVLAPolicy:
        """Fold the adapter into the weights, in place, and return this policy."""
        adapters.merge(self)
        self.set_content_hash(hash_in_memory)
        return self

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """The base policy: the adapter is off inside the context."""
        with adapters.adapter_off(self.model):
            yield

    def set_content_hash(self, content_hash: Callable[[OpenVLAPolicy], str]) -> None:
        """Say how ``checkpoint_hash`` is computed from now on (for loaders)."""
        self._content_hash, self._cached_hash = content_hash, None


def hash_in_memory(policy: OpenVLAPolicy) -> str:
    """Content hash of the weights as they are now; equals that of the files ``save_policy`` writes from them."""
    return hash_tensors(policy.network.state_dict().items())


def check_rows(images: Sequence[np.ndarray], instructions: Sequence[str], tokens: np.ndarray | Tensor | None) -> None:
    """Refuse batches whose parts do not belong together."""
    if len(images) != len(instructions) or len(images) == 0:
        raise ConfigError(f"got {len(images)} images and {len(instructions)} instructions; wanted one of each per row")
    if tokens is not None and tuple(tokens.shape) != (len(images), ACTION_DIM):
        wanted = (len(images), ACTION_DIM)
        raise ConfigError(f"got action tokens of shape {tuple(tokens.shape)}; wanted one row per image, {wanted}")
