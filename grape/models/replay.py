"""Decoding steps that are recorded once and replayed: CUDA graphs, which spare the launch of each kernel.

Axis legend: B rows of a call, R rows of a captured step, V vocabulary.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Step = Callable[[Tensor, Tensor], Tensor]
"""(tokens (R,), positions (R,)) to logits (R, V)."""
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Takes a step on fixed memory; returns what runs it again and gives its output, each time in the same memory."""

MAX_CAPTURED = 16
"""Captured steps that are kept, the last used; the batch sizes up to 128 need 12 (``captured_rows``)."""


class CapturedSteps:
    """The captured steps of one model: one for each number of rows and columns."""

    def __init__(self, model: nn.Module, capture: Capture | None) -> None:
        self._model = model
        self._capture = capture
        self._steps: OrderedDict[tuple[int, int], StepRunner] = OrderedDict()
        self._state: Hashable = None
        self._has_failed = False

    def __len__(self) -> int:
        return len(self._steps)

    def possible(self, device: torch.device) -> bool:
        """Whether steps are captured on this kind of device."""
        return not self._has_failed and (self._capture is not None or device.type == "cuda")

    def clear(self) -> None:
        """Forget all steps, because the memory that they use is about to go."""
        self._steps.clear()

    def get(self, step: Step, *, rows: int, num_columns: int, device: torch.device) -> Step:
        """The runner that replays ``step``; captured at its first call, or when the model has changed since."""
        state = model_state(self._model)
        if state != self._state:
            self._steps.clear()
            self._state = state
        key = (rows, num_columns)
        if key not in self._steps:
            self._steps[key] = StepRunner(step, rows, device, self._try_capture)
        self._steps.move_to_end(key)
        if len(self._steps) > MAX_CAPTURED:
            self._steps.popitem(last=False)
        return self._steps[key]

    def _try_capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        try:
            return (self._capture or capture_cuda_graph)(step)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a layer does what cannot be captured; some quantised ones do
            self._has_failed = True
            self._steps.clear()
            logger.warning("decoding goes on without CUDA graphs, more slowly: %s", str(error).split("\n")[0])
            return step


class StepRunner:
    """One step on fixed memory: inputs are copied in, the captured step runs again, logits are read."""

    def __init__(self, step: Step, rows: int, device: torch.device, capture: Capture) -> None:
        # Rows beyond the call's stay at position 0, in rows of the cache that nobody reads.
        self._tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self._positions = torch.zeros(rows, dtype=torch.long, device=device)
        # Nothing here refers to the runner: memory has to go when it is forgotten, not when cycles are collected.
        self._run = functools.partial(step, self._tokens, self._positions)
        self._capture = capture
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, tokens: Int[Tensor, " B"], positions: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Logits after the tokens, in memory that the next call overwrites."""
        batch = len(tokens)
        self._tokens[:batch] = tokens
        self._positions[:batch] = positions
        self._positions[batch:] = 0
        if self._replay is None:
            with torch.cuda.device_of(self._tokens):  # graphs are recorded on the current GPU
                self._replay = self._capture(self._run)
        return self._replay()[:batch]


def capture_cuda_graph(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture ``step``. It runs twice before, so that libraries are set up; a step may be repeated without harm."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on
        logits = step()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def model_state(model: nn.Module) -> Hashable:
    """What a captured step depends on beyond its inputs: where the weights lie, and which adapters are on.

    Weights that change in place need no new capture: a replay reads them where they lie.
    """
    state: list[Hashable] = [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
    for module in model.modules():
        state.append((id(module), type(module)))
        if hasattr(module, "merged_adapters"):
            layer: Any = module  # of peft's
            state.append((layer.disable_adapters, *layer.active_adapters, *layer.merged_adapters))
            state.append(tuple(layer.scaling.items()))
    return tuple(state)


def captured_rows(batch: int) -> int:
    """Rows of the captured step that serves ``batch`` rows: a power of two up to 8, then a multiple of 16.

    Rollouts ask for any number from 1 to ``num_workers``. A row too many costs a step its part of the cache,
    0.15 GB at 7 B beside 13 GB of weights.
    """
    return 1 << (batch - 1).bit_length() if batch <= 8 else round_up(batch, 16)


def round_up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple
