"""``grape init-checkpoint``: a checkpoint with random weights in the published layout."""

from __future__ import annotations

import time

from grape.cli.arguments import parse_config
from grape.config.init_checkpoint import InitCheckpointConfig


def main(argv: list[str] | None = None) -> int:
    """Write the folder, and say how large it is."""
    config = parse_config(InitCheckpointConfig, "init-checkpoint", argv)
    from grape.models.random_checkpoint import write_random_checkpoint

    started = time.perf_counter()
    num_bytes = write_random_checkpoint(config.preset, config.out, dtype=config.dtype, seed=config.seed)
    print(f"wrote {config.out}: {num_bytes / 1e9:.2f} GB of random weights in {time.perf_counter() - started:.0f} s")
    return 0
