"""A checkpoint folder's small files, and where folders come from."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grape.errors import CheckpointError
from grape.models.weights import INDEX_FILE

CONFIG_FILE, PREPROCESSOR_FILE, STATISTICS_FILE = "config.json", "preprocessor_config.json", "dataset_statistics.json"
ASSET_NAMES = (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    STATISTICS_FILE,
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "configuration_prismatic.py",  # the published remote code: kept and written back, never run
    "modeling_prismatic.py",
    "processing_prismatic.py",
)
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TRAINING_FILE = "training.json"
"""Beside an adapter that was trained here: on which base, with which settings."""
NUM_NAMES_SHOWN = 5
HUB_PATTERNS = [*ASSET_NAMES, ADAPTER_CONFIG, TRAINING_FILE, "*.safetensors", INDEX_FILE]


def resolve_folder(path_or_hub_id: str | Path) -> Path:
    """A local folder as it is, or a hub repository's snapshot.

    Raises:
        CheckpointError: There is no such folder and no such repository.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    name = str(path_or_hub_id)
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        problem = "is a file; wanted a folder." if path.exists() else "does not exist; wanted a folder."
        raise CheckpointError(f"{name} {problem}{_neighbours(path)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    missing = f"{name} is no folder here, and"
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS))
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{missing} the hub has no repository of that name (a private one needs a token: hf auth login)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{missing} the hub cannot be reached ({error.__cause__ or error}); check the network, or name a folder"
        ) from error
    except (HFValidationError, OSError) as error:  # every other error of the hub is an OSError, too
        raise CheckpointError(f"{missing} it cannot be fetched from the hub: {error}") from error


def _neighbours(path: Path) -> str:
    """Hint at the folders beside a path: the nearest name, or the first few."""
    if not path.parent.is_dir():
        return f" {path.parent} does not exist, either."
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    more = f" and {len(names) - NUM_NAMES_SHOWN} more" if len(names) > NUM_NAMES_SHOWN else ""
    return f" Folders beside it: {', '.join(names[:NUM_NAMES_SHOWN]) or '(none)'}{more}."


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the folder's JSON files.

    Raises:
        CheckpointError: It is missing or damaged, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; wanted a folder in openvla-7b's layout") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds a {type(content).__name__}, wanted a JSON object")
    return content


def read_statistics(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Action statistics; dataset_statistics.json wins over config.json, as in the original evaluation."""
    path = directory / STATISTICS_FILE
    return {**(config.get("norm_stats") or {}), **(read_json(path) if path.is_file() else {})}


def read_assets(directory: Path) -> dict[str, bytes]:
    """The folder's small files, to write back."""
    return {name: (directory / name).read_bytes() for name in ASSET_NAMES if (directory / name).is_file()}
