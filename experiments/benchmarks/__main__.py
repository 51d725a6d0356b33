"""Training step and sampling of one checkpoint, each against its plain way: both tables, both JSON files.

    python -m experiments.benchmarks --preset openvla-7b --out_dir results      # on a GPU
    python -m experiments.benchmarks --preset nano --num_threads 1 --out_dir results

The checkpoint is made once, with random weights, unless --vla_path names one. Settings beyond these are those of
``tpo_step`` and ``sampling``, which also run alone.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grape.cli.arguments import parse_config
from grape.errors import GrapeError
from grape.models.checkpoint import resolve_device
from grape.models.random_checkpoint import write_random_checkpoint


@dataclass(frozen=True, kw_only=True)
class Benchmarks:
    """What is measured, and where the results go."""

    out_dir: Path
    """Folder for tpo_step.json and sampling.json."""
    vla_path: str | None = None
    """Checkpoint to measure; ``None`` makes one with random weights from ``preset``."""
    preset: str = "openvla-7b"
    """Size of the random checkpoint."""
    max_memory_gb: float | None = None
    """Cap of a training step, 1e9 bytes."""
    num_steps: int = 120
    """Time steps of each trajectory that is timed."""
    device: str = "auto"
    """Where to run."""
    num_threads: int | None = None
    """Threads of torch on a CPU; with 1 the clock is the process's own."""


def main() -> int:
    config = parse_config(Benchmarks, "benchmarks", None)
    on_gpu = resolve_device(config.device).type == "cuda"
    config.out_dir.mkdir(parents=True, exist_ok=True)
    with checkpoint(config, "bfloat16" if on_gpu else "float32") as path:
        shared = ["--vla_path", path, "--device", config.device, "--num_threads", str(config.num_threads)]
        step = ["--num_steps", str(config.num_steps), "--max_memory_gb", str(config.max_memory_gb)]
        sampling = ["--matmul_size", "8192" if on_gpu else "1024"]
        codes = [
            run("tpo_step", [*shared, *step, "--out", str(config.out_dir.absolute() / "tpo_step.json")]),
            run("sampling", [*shared, *sampling, "--out", str(config.out_dir.absolute() / "sampling.json")]),
        ]
    return max(codes)


@contextlib.contextmanager
def checkpoint(config: Benchmarks, dtype: str) -> Iterator[str]:
    """The checkpoint to measure, made for the time of the context where none is named."""
    if config.vla_path is not None:
        yield config.vla_path
        return
    with tempfile.TemporaryDirectory(dir=config.out_dir.absolute()) as folder:
        path = Path(folder) / config.preset
        write_random_checkpoint(config.preset, path, dtype=dtype)
        yield str(path)


def run(name: str, flags: list[str]) -> int:
    """One benchmark in a process of its own, so that it finds the memory free; returns its exit code."""
    command = [sys.executable, "-m", f"experiments.benchmarks.{name}", *flags]
    print(f"\n[{name}] {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=Path(__file__).resolve().parents[2]).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GrapeError as error:
        sys.exit(str(error))
