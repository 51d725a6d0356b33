"""What the benchmarks of the network share: a clock, a yardstick, and where they ran."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from grape.optional import installed_versions


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, by ``clock``."""
    read = getattr(time, clock(device))
    synchronize(device)
    started = read()
    run()
    synchronize(device)
    return read() - started


def clock(device: torch.device) -> str:
    """Wall time; on a CPU with one thread its own time, without what other processes took."""
    return "process_time" if device.type == "cpu" and torch.get_num_threads() == 1 else "perf_counter"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations per second of a large square matrix product, the best of ten, on this device in this run."""
    size = size or (8192 if device.type == "cuda" else 2048)
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return max(2.0 * size**3 / timed(lambda: first @ second, device) for _ in range(10))


def machine(device: torch.device) -> dict[str, Any]:
    """Device, clock and versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "clock": clock(device),
        "python": sys.version.split()[0],
        **installed_versions(("torch", "transformers", "peft")),
    }
