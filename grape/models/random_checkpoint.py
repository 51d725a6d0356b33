"""Checkpoints with random weights, of any size up to the published one, written tensor by tensor.

Speed and memory depend on shapes and types alone, so such a checkpoint measures them without the hub. Files are laid
out as safetensors says (https://github.com/huggingface/safetensors, "Format"): a header, then the tensors' bytes; so
one tensor is in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from grape.errors import CheckpointError, ConfigError, did_you_mean
from grape.models.checkpoint import DTYPES, build_on_meta, check_target, folder_in_making
from grape.models.folder import CONFIG_FILE
from grape.models.nano import INIT_STD, build_tokenizer, checkpoint_assets
from grape.models.openvla import OpenVLAConfig
from grape.models.presets import OPENVLA_7B, PRESETS, PUBLISHED_VOCAB, openvla_7b_config, preset_config
from grape.models.weights import INDEX_FILE, SHARD_BYTES, SINGLE_FILE

IDENTITY_STATISTICS = {
    "identity": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}},
}
"""Actions are what the tokens decode to, in [-1, 1]."""
NOTE = "made by grape init-checkpoint: nothing in it was trained, the tokenizer is grape's own, statistics are identity"
SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

Shapes = Mapping[str, tuple[int, ...]]


def write_random_checkpoint(
    preset: str,
    directory: Path,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    instructions: Iterable[str] = (),
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write a checkpoint folder in the published layout; it appears whole or not at all.

    Args:
        preset: A name in ``PRESETS``, or ``openvla-7b``.
        directory: Folder to create.
        dtype: Type of the stored weights.
        seed: Each tensor is a function of it and of the tensor's name, on one release of torch.
        instructions: Their words become tokens, beside LIBERO's.
        shard_bytes: Largest weight file.

    Returns:
        Bytes of the weights.

    Raises:
        ConfigError: No such preset or type.
        CheckpointError: The folder exists, or the disk has no room.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown.{did_you_mean(dtype, DTYPES)}")
    config, assets = lay_out(preset, instructions)
    shapes = {name: tuple(tensor.shape) for name, tensor in build_on_meta(config).state_dict().items()}
    num_bytes = sum(map(math.prod, shapes.values())) * DTYPES[dtype].itemsize
    check_target(directory, overwrite=False)
    check_room(directory, num_bytes)
    model_config = json.loads(assets[CONFIG_FILE]) | {
        "torch_dtype": dtype,
        "norm_stats": IDENTITY_STATISTICS,
        "random_weights": {"preset": preset, "seed": seed, "note": NOTE},
    }
    assets = assets | {CONFIG_FILE: (json.dumps(model_config, indent=2) + "\n").encode()}
    with folder_in_making(directory, overwrite=False) as folder:
        for name, content in assets.items():
            (folder / name).write_bytes(content)
        with tqdm(total=num_bytes, desc=preset, unit="B", unit_scale=True) as progress:
            write_shards(folder, shapes, dtype=dtype, seed=seed, shard_bytes=shard_bytes, progress=progress)
    return num_bytes


def lay_out(preset: str, instructions: Iterable[str] = ()) -> tuple[OpenVLAConfig, dict[str, bytes]]:
    """Sizes and small files of a preset; openvla-7b's tokenizer is ours, filled up to 32,000 words."""
    names = [*PRESETS, OPENVLA_7B]
    if preset not in names:
        raise ConfigError(f"preset {preset!r} is unknown.{did_you_mean(preset, names)}")
    if preset == OPENVLA_7B:
        config, tokenizer = openvla_7b_config(), build_tokenizer(instructions, vocab_size=PUBLISHED_VOCAB)
    else:
        tokenizer = build_tokenizer(instructions)
        config = preset_config(PRESETS[preset], real_vocab_size=tokenizer.get_vocab_size() - 1)
    return config, checkpoint_assets(config, tokenizer)


def check_room(directory: Path, num_bytes: int) -> None:
    """Refuse what the disk cannot hold.

    Raises:
        CheckpointError: With both numbers.
    """
    existing = next(parent for parent in directory.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise CheckpointError(
            f"{directory} needs {num_bytes / 1e9:.1f} GB, and {existing} has {free / 1e9:.1f} GB free; name another "
            "place, or take a smaller preset"
        )


def write_shards(folder: Path, shapes: Shapes, *, dtype: str, seed: int, shard_bytes: int, progress: tqdm[Any]) -> None:
    """Write one file, or shards with an index, as ``save_pretrained`` names them."""
    shards = split(shapes, itemsize=DTYPES[dtype].itemsize, shard_bytes=shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SINGLE_FILE
        write_shard(folder / file_name, {name: shapes[name] for name in names}, dtype, seed, progress)
        weight_map |= dict.fromkeys(names, file_name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": progress.total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def split(shapes: Shapes, *, itemsize: int, shard_bytes: int) -> list[list[str]]:
    """Names of each shard, in order; a shard is at most ``shard_bytes`` long unless one tensor alone is longer."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def write_shard(path: Path, shapes: Shapes, dtype: str, seed: int, progress: tqdm[Any]) -> None:
    """Write one safetensors file, making each tensor when its turn comes."""
    with path.open("wb") as file:
        file.write(shard_header(shapes, dtype))
        for name, shape in shapes.items():
            data = random_tensor(name, shape, DTYPES[dtype], seed).flatten().view(torch.uint8).numpy().data
            file.write(data)
            progress.update(len(data))


def shard_header(shapes: Shapes, dtype: str) -> bytes:
    """The first bytes of a safetensors file: a length, and where each tensor lies in what follows."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin at a multiple of eight bytes
    return len(encoded).to_bytes(8, "little") + encoded


def random_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """A weight as ``new_policy`` would begin with it, in distribution: scales 1, biases 0, the rest normal.

    Standard deviations are 0.02, and Xavier's in the projector; so activations and logits stay near 1 at every size.
    """
    if name.endswith(".bias"):
        return torch.zeros(shape, dtype=dtype)
    if len(shape) == 1:  # scales of layer norms, and LayerScale's
        return torch.ones(shape, dtype=dtype)
    std = math.sqrt(2 / sum(shape)) if name.startswith("projector.") else INIT_STD
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.empty(shape, dtype=dtype).normal_(std=std, generator=generator)
