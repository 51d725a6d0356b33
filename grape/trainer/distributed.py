"""The processes of a run: one without torchrun, one per GPU (or several on the CPU) with it."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from grape.errors import ConfigError, TrainingError, shorten

RANK_TIMEOUT_S = 1800.0
"""A process that waits longer than this for the others gives up, where the settings do not say."""
_HOST_BACKEND = "gloo"
_GPU_BACKENDS = f"cpu:{_HOST_BACKEND},cuda:nccl"
"""What is small goes over the host on GPUs, too: there a process that is gone is found at once, and nothing waits for
the GPU."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among the processes of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def sum_values(self, values: Tensor) -> Tensor:
        """Sum a tensor on the CPU over the processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any_of(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.sum_values(torch.tensor([float(flag)])).item() > 0

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients over the processes, in one collective; a process without one adds zero."""
        if self.world_size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def gather_texts(self, text: str) -> list[str]:
        """One text of each process, in every process."""
        if self.world_size == 1:
            return [text]
        texts: list[str | None] = [None] * self.world_size
        dist.all_gather_object(texts, text)
        return [entry or "" for entry in texts]

    def wait(self) -> None:
        """Wait until every process is here."""
        self.any_of(False)  # over the host: torch's own barrier would go over the GPUs


@contextlib.contextmanager
def join_ranks(device: str, timeout_s: float = RANK_TIMEOUT_S) -> Iterator[Ranks]:
    """Read torchrun's variables and, where there are several processes, connect them: nccl on GPUs, gloo on CPUs.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; with several processes each takes the GPU of its local rank.
        timeout_s: Longest wait for the other processes, at the start and later.

    Raises:
        ConfigError: The device is unknown or not there.
        TrainingError: The other processes did not come.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    place = _device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    if world_size == 1:
        yield Ranks(rank=0, world_size=1, device=place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    try:
        backend = _GPU_BACKENDS if place.type == "cuda" else _HOST_BACKEND
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    except dist.DistError as error:
        raise TrainingError(
            f"process {rank} of {world_size} cannot reach the others ({_first_line(error)}); start them all with one "
            f"--rdzv-endpoint, within {timeout_s:g} s of each other"
        ) from error
    try:
        yield Ranks(rank=rank, world_size=world_size, device=place)
    except RankLostError:
        raise  # nothing is tidied up: that would wait for the process that is gone
    except BaseException:
        dist.destroy_process_group()
        raise
    else:
        dist.destroy_process_group()


class RankLostError(TrainingError):
    """Another process of the run has gone, or does not answer."""


def lost_rank(error: RuntimeError, *, limit: str) -> str | None:
    """What happened to another process, where that is what an error of torch is about, else ``None``.

    ``limit`` is the longest wait, in words.

    gloo's errors have no type of their own (torch 2.13); they name the file that they come from.
    """
    text = str(error)
    if not isinstance(error, dist.DistError) and "gloo" not in text.lower():
        return None
    if "timed out" in text.lower() or "timeout" in text.lower():
        return f"another process of this run has not answered for {limit}"
    return f"another process of this run has gone ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return shorten(re.sub(r"^\[[^]]*\] ", "", str(error).strip().split("\n")[0]))  # without torch's file and line


def _device(name: str, *, local_rank: int) -> torch.device:
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        place = torch.device(kind)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} is not one that torch knows; want auto, cpu or cuda") from error
    if place.type != "cuda":
        return place
    if not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: torch sees no GPU here; use --device cpu, or install torch with CUDA")
    return torch.device("cuda", place.index if place.index is not None else local_rank)


@dataclass
class StopRequest:
    """Becomes ``asked`` at the first Ctrl-C or SIGTERM; the second one ends the process at once."""

    asked: bool = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping: finishing this step, then saving a checkpoint (once more ends at once)", flush=True)


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Inside the context Ctrl-C and SIGTERM ask for a stop instead of ending the process."""
    request = StopRequest()
    previous = {number: signal.signal(number, request.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
