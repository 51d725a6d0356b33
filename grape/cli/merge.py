"""``grape merge``: fold an adapter into its base and write a full checkpoint in the published layout."""

from __future__ import annotations

from pathlib import Path

from grape.cli.arguments import parse_config
from grape.config.model import MergeConfig
from grape.errors import ConfigError


def main(argv: list[str] | None = None) -> int:
    """Load, merge, write; the folder appears whole or not at all."""
    config = parse_config(MergeConfig, "merge", argv)
    for source in (config.vla_path, config.adapter):
        if Path(source).exists() and Path(source).resolve().is_relative_to(config.out.resolve()):
            raise ConfigError(f"--out {config.out} would replace {source}, which is read; choose another folder")
    from grape.models import load_policy, save_policy
    from grape.models.checkpoint import check_target
    from grape.models.folder import resolve_folder
    from grape.models.quantization import was_quantized

    check_target(config.out, overwrite=config.overwrite)  # before minutes of loading, not after
    policy = load_policy(config.vla_path, adapter=config.adapter, device=config.device, dtype=config.dtype)
    save_policy(policy.merge_adapter(), config.out, overwrite=config.overwrite)
    print(f"merged {config.adapter} into {config.vla_path}; wrote {config.out}")
    if was_quantized(resolve_folder(config.adapter)):
        print("note: it was trained on a 4-bit base; the merged policy differs a little from what was trained")
    print(f"checkpoint hash {policy.checkpoint_hash}")
    return 0
