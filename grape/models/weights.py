"""Safetensors files of a checkpoint: finding, reading, writing, hashing.

The content hash covers names, types, shapes and bytes of all tensors, not how they are cut into shards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from grape.errors import CheckpointError
from grape.files import cache_folder

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000


def find_shards(directory: Path) -> list[Path]:
    """All weight files of a checkpoint folder, from the index where there is one.

    Raises:
        CheckpointError: Weights or a shard are missing.
    """
    index = directory / INDEX_FILE
    if index.is_file():
        try:
            names = sorted({os.fspath(name) for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error!r}") from error
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{directory}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}"
            )
        return [directory / name for name in names]
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    raise CheckpointError(
        f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}; wanted a folder in openvla-7b's layout"
    )


def read_tensors(shards: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) shard by shard, without holding a whole file."""
    for path in shards:
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 (no dict, no iterator)
                yield name, file.get_tensor(name)


def read_shapes(shards: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, from the files' headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in shards:
        with _open(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read (truncated download?): {error}; fetch it again") from error


def write_tensors(tensors: Mapping[str, Tensor], directory: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write one file, or shards with an index, as ``save_pretrained`` does."""
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and used + size > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    if len(shards) == 1:
        _write_shard(shards[0], directory / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(shard, directory / file_name)
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _write_shard(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over tensors in the order of their names."""
    digests = {}
    for name, tensor in tensors:
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        digests[name] = digest.hexdigest()
    return hashlib.sha256("\n".join(f"{name} {digests[name]}" for name in sorted(digests)).encode()).hexdigest()


def hash_files(paths: list[Path]) -> str:
    """``hash_tensors`` of files, remembered by size and time of change: 15 GB are read once per machine."""
    found = [(path.resolve(), path.stat()) for path in sorted(paths)]
    stamp = repr([(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in found])
    folder = cache_folder()
    remembered = folder / "hashes" / hashlib.sha256(stamp.encode()).hexdigest()
    try:
        return remembered.read_text().strip()
    except OSError:
        pass
    value = hash_tensors(read_tensors(paths))
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        temporary = remembered.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(value)
        temporary.replace(remembered)
    except OSError:  # a read-only home only costs the next run some time
        pass
    return value
