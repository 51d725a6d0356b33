"""Checkpoint folders in the published layout: reading and writing.

config.json, ``model.safetensors`` or shards with an index, tokenizer, preprocessor_config.json, optional
dataset_statistics.json. Everything small that a folder holds is kept and written back, so that the original code
loads what is written here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from grape.errors import CheckpointError, ConfigError, MissingDependencyError, did_you_mean
from grape.files import replace_folder
from grape.models import adapter as adapters
from grape.models import quantization
from grape.models.architecture import read_architecture
from grape.models.folder import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    STATISTICS_FILE,
    read_assets,
    read_json,
    read_statistics,
    resolve_folder,
)
from grape.models.image_transform import ImageTransform
from grape.models.openvla import OpenVLA, OpenVLAConfig
from grape.models.policy import OpenVLAPolicy
from grape.models.prompt import load_prompt_encoder
from grape.models.weights import find_shards, hash_files, read_shapes, read_tensors, write_tensors

logger = logging.getLogger(__name__)

ATTENTION = ("sdpa", "eager", "flash_attention_2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PREFIX_KEY = "action_prefix_token_id"
"""Key of config.json, ours: token between prompt and actions, where the tokenizer's own space token is not it."""


def load_policy(
    path_or_hub_id: str | Path,
    *,
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str = "sdpa",
    stay_on_host: bool = False,
    quantize: bool = False,
) -> OpenVLAPolicy:
    """Load a checkpoint of any size.

    Args:
        path_or_hub_id: Folder in the published layout, or hub id (downloaded through huggingface_hub).
        adapter: LoRA folder or hub id, ours or the original code's. Action statistics in its dataset_statistics.json
            join the checkpoint's; where both have an entry of one name, the adapter's wins. One that says it was
            trained on other weights is loaded with a warning.
        device: ``"auto"`` (a GPU where there is one) or torch's name for it.
        dtype: ``"auto"`` (bfloat16 on a GPU, float32 on a CPU), ``"stored"``, or a torch type's name.
        attn_implementation: ``"sdpa"``, ``"eager"``, or ``"flash_attention_2"`` where flash-attn is installed.
        stay_on_host: Leave the weights in the host's memory, in the type that ``device`` asks for; the caller moves
            them.
        quantize: Keep the language model's linear layers in 4 bits (``grape.models.quantization``).

    Raises:
        CheckpointError: The folder is missing, damaged or no OpenVLA.
        ConfigError: A setting cannot be honoured.
    """
    torch_device = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, torch_device)
    check_attention(attn_implementation, torch_device, torch_dtype)
    directory = resolve_folder(path_or_hub_id)
    shards = find_shards(directory)
    source_config = read_json(directory / CONFIG_FILE)
    config = read_architecture(source_config, read_shapes(shards))
    network = build_on_meta(config, attn_implementation)
    if quantize:
        quantization.replace_layers(network, torch_dtype)
    load_weights(network, shards, torch.device("cpu") if stay_on_host else torch_device, torch_dtype)
    prompts = load_prompt_encoder(
        directory, prefix_id=source_config.get(PREFIX_KEY), pad_id=int(source_config.get("pad_token_id", 32000))
    )
    policy = OpenVLAPolicy(
        network=network,
        prompts=prompts,
        image_transform=ImageTransform.from_preprocessor_config(
            read_json(directory / PREPROCESSOR_FILE), config.image_size
        ),
        norm_stats=read_statistics(directory, source_config),
        source_config=source_config,
        assets=read_assets(directory),
        name=str(path_or_hub_id),
        content_hash=functools.partial(_hash_of_files, shards, None),
    )
    policy.quantization = quantization.SCHEME if quantize else None
    if adapter is not None:
        adapter_directory = resolve_folder(adapter)
        adapters.take_over_training_record(policy, adapter_directory)
        policy.model = adapters.load_adapter(policy, adapter_directory).eval()
        own_statistics = read_statistics(adapter_directory, {})
        policy.norm_stats, policy.adapter_keys = {**policy.norm_stats, **own_statistics}, frozenset(own_statistics)
        policy.set_content_hash(functools.partial(_hash_of_files, shards, adapter_directory / adapters.ADAPTER_WEIGHTS))
    return policy


def save_policy(
    policy: OpenVLAPolicy,
    directory: str | Path,
    *,
    dtype: str | None = None,
    shard_bytes: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a full checkpoint in the published layout; the folder appears whole or not at all.

    Args:
        policy: Without an adapter (merge it first).
        directory: Folder to create.
        dtype: Type to store; ``None`` keeps the weights' own.
        shard_bytes: Largest weight file; ``None`` is 5 GB.
        overwrite: Replace an existing folder.

    Raises:
        CheckpointError: The folder exists, or cannot be written (full disk); nothing is left behind.
        ConfigError: The policy carries an adapter, or is quantised.
    """
    if policy.model is not policy.network:
        raise ConfigError("the policy carries an adapter; call merge_adapter first, or save the adapter alone")
    quantization.refuse_quantized(policy.network)
    with folder_in_making(Path(directory), overwrite=overwrite) as folder:
        state = policy.network.state_dict()
        if dtype is not None:
            state = {name: tensor.to(DTYPES[dtype]) for name, tensor in state.items()}
        for name, content in checkpoint_files(policy, next(iter(state.values())).dtype).items():
            (folder / name).write_bytes(content)
        write_tensors(state, folder, **({} if shard_bytes is None else {"shard_bytes": shard_bytes}))


@contextlib.contextmanager
def folder_in_making(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write a checkpoint into; it takes the place of ``target`` when the context ends well.

    Raises:
        CheckpointError: ``target`` exists, or cannot be written (full disk); nothing is left behind.
    """
    check_target(target, overwrite=overwrite)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()  # not mkdtemp's private one: the umask decides who may read the checkpoint
        yield temporary
        for path in temporary.glob("*.safetensors"):
            shutil.copymode(temporary / CONFIG_FILE, path)  # safetensors makes files that their owner alone can read
        replace_folder(temporary, target)
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in its own error
        raise CheckpointError(f"{target} cannot be written: {error}; nothing was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse to write over something, unless asked.

    Raises:
        CheckpointError: There is a file, or a folder with content.
    """
    if target.exists() and (not target.is_dir() or (not overwrite and any(target.iterdir()))):
        raise CheckpointError(f"{target} exists; choose another folder, or ask for overwrite")


def checkpoint_files(policy: OpenVLAPolicy, dtype: torch.dtype) -> dict[str, bytes]:
    """All small files of the folder: the source's own, with config.json and statistics brought up to date."""
    config = dict(policy.source_config)
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    if policy.norm_stats:
        config["norm_stats"] = policy.norm_stats
    files = dict(policy.assets)
    files[CONFIG_FILE] = _json_bytes(config)
    if STATISTICS_FILE in files:
        files[STATISTICS_FILE] = _json_bytes(policy.norm_stats)
    return files


def resolve_device(device: str) -> torch.device:
    """``"auto"`` is a GPU where there is one.

    Raises:
        ConfigError: No such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is unknown; wanted auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r} is not here; torch sees {torch.cuda.device_count()} CUDA devices")
    return chosen


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | None:
    """``"auto"`` is bfloat16 on a GPU and float32 on a CPU; ``"stored"`` (``None``) leaves weights as they are."""
    if dtype == "stored":
        return None
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown.{did_you_mean(dtype, [*DTYPES, 'auto', 'stored'])}")
    return DTYPES[dtype]


def check_attention(name: str, device: torch.device, dtype: torch.dtype | None) -> None:
    """Refuse attention implementations that cannot run here."""
    if name not in ATTENTION:
        raise ConfigError(f"attn_implementation {name!r} is unknown.{did_you_mean(name, ATTENTION)}")
    if name != "flash_attention_2":
        return
    from transformers.utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        raise MissingDependencyError(
            'flash_attention_2 needs flash-attn and a CUDA GPU; install it with: pip install "grape-vla[flash-attn]", '
            "or take --attn_implementation sdpa"
        )
    if device.type != "cuda" or dtype == torch.float32:
        raise ConfigError(f"flash_attention_2 runs on a GPU in bfloat16 or float16, not on {device} in {dtype}")


def build_on_meta(config: OpenVLAConfig, attn_implementation: str = "sdpa") -> OpenVLA:
    """The network without storage: names, shapes and types only."""
    with torch.device("meta"):
        return OpenVLA(config, attn_implementation=attn_implementation)


def load_weights(network: OpenVLA, shards: list[Path], device: torch.device, dtype: torch.dtype | None) -> None:
    """Fill a network that was built on the meta device.

    Raises:
        CheckpointError: Tensors are missing, left over, or of the wrong shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = read_shapes(shards)
    # Some exports store Llama's constant rotary frequencies; they are computed here.
    extra = sorted(name for name in found.keys() - wanted.keys() if not name.endswith("rotary_emb.inv_freq"))
    missing = sorted(wanted.keys() - found.keys())
    wrong = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    if missing or extra or wrong:
        first = (missing or extra or wrong)[0]
        detail = f" (stored {found[first]}, wanted {wanted[first]})" if first in wrong else ""
        raise CheckpointError(
            f"the weights in {shards[0].parent} do not fit config.json: {len(missing)} missing, {len(extra)} unknown, "
            f"{len(wrong)} of another shape; first: {first}{detail}"
        )
    packed, state = quantization.replaced_layers(network), {}
    for name, tensor in read_tensors(shards):
        if name in packed:  # one by one, so that the device never holds the whole in its stored type
            quantization.pack(packed[name], tensor if dtype is None else tensor.to(dtype), device)
        elif name in wanted:
            state[name] = tensor.to(device, dtype)
    _assign(network, state)
    llama = network.language_model.model
    llama.rotary_emb = LlamaRotaryEmbedding(config=network.language_model.config).to(device)


def _assign(network: nn.Module, state: dict[str, Tensor]) -> None:
    requires_grad = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    network.load_state_dict(state, assign=True, strict=False)  # names were compared; packed weights are in place
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(requires_grad[name])


def _hash_of_files(shards: list[Path], adapter_weights: Path | None, policy: OpenVLAPolicy) -> str:
    base = hash_files(shards)
    if adapter_weights is None:
        return base
    settings = policy.model.peft_config["default"]  # type: ignore[union-attr, index]
    parts = [base, hash_files([adapter_weights]), f"{settings.r} {settings.lora_alpha}"]  # type: ignore[union-attr]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
