"""The memory plan: what fits, what will be used, and what to change where it does not fit.

Sizes are in bytes, printed in GB of 1e9 bytes. Time steps of a micro-batch are its rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grape.config.train import TrainConfig
from grape.errors import ConfigError, TrainingError
from grape.models.quantization import quantized_bytes
from grape.trainer.gradient import CPU_MICRO_BATCH
from grape.trainer.sharding import layers
from grape.trainer.step_cost import StepCost, measure_step

if TYPE_CHECKING:
    from grape.models import OpenVLAPolicy
    from grape.trainer.distributed import Ranks
    from grape.trainer.examples import PairSurvey

_LOG = logging.getLogger(__name__)
MOST_ROWS = 64
"""Bound of the automatic size: 64 time steps of openvla-7b are already some 19,000 tokens in each matrix product."""
FEW_ROWS = 4
"""Gradient checkpointing is off wherever as many rows fit without it."""
WORKSPACE_BYTES = 1_000_000_000
"""Allowance on a GPU for what operators' results do not show: workspaces of cuBLAS, and blocks too small to reuse."""
WORKSPACE_SHARE = 0.05
"""The same as a share of a micro-batch's peak: accumulators inside kernels (flash attention's in float32), rounding."""
FREE_MARGIN = 0.05
"""Share of the free GPU memory that is left alone where ``max_memory_gb`` is not given."""
GB = 1e9
ADVICE = "Try what is not on yet of --gradient_checkpointing on, --lora_targets llm and --use_quantization True"
"""What takes less memory, most effective first."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of an optimiser step with micro-batches of ``rows`` time steps."""

    weights: int
    """Base weights and buffers."""
    adapter: int
    """Adapter weights in their own type, with gradient and both moments of AdamW."""
    others: int
    """On a GPU ``WORKSPACE_BYTES``; on a CPU the rest of the process."""
    step: StepCost
    rows: int
    recompute: bool
    """Gradient checkpointing."""
    limit: int
    """What the run may take."""

    @property
    def workspace(self) -> int:
        """Allowance that grows with the micro-batch."""
        return math.ceil(WORKSPACE_SHARE * self.step.peak.at(self.rows))

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapter + self.others + self.step.peak.at(self.rows) + self.workspace

    @property
    def fits(self) -> bool:
        """Whether the total is within the limit."""
        return self.total <= self.limit

    @property
    def most_rows(self) -> int:
        """The largest micro-batch within the limit; 0 where there is none."""
        constant = dataclasses.replace(self, rows=0).total
        return max(0, math.floor((self.limit - constant) / (self.step.peak.per_row * (1 + WORKSPACE_SHARE))))

    def describe(self, device: torch.device) -> str:
        """The plan as lines for a terminal."""
        step, rows = self.step, self.rows
        kept = step.activations.at(rows) + step.logits.at(rows)
        each = _gb(step.activations.per_row)
        others = "allowance for workspaces" if device.type == "cuda" else "the rest of the process, and an allowance"
        lines = [
            (self.weights, "base weights"),
            (self.adapter, "adapter: weights, gradients, two moments of AdamW"),
            (step.activations.at(rows), f"kept for the backward pass: {rows} time steps, {each} each"),
            (step.logits.at(rows), "kept for the logits"),
            (step.peak.at(rows) - kept, "alive for a moment, forward or backward"),
            (self.others + self.workspace, others),
            (self.total, f"planned, of {_gb(self.limit)} that may be used"),
        ]
        switch = "on" if self.recompute else "off"
        head = f"Memory plan for {device}, GB: micro_batch_size {rows}, of {self.most_rows} that fit with gradient "
        head += f"checkpointing {switch}"
        return "\n".join([head, *(f"  {_gb(size):>8}  {name}" for size, name in lines)])

    def to_json(self) -> dict[str, Any]:
        """Every number, in bytes."""
        return dataclasses.asdict(self) | {"workspace": self.workspace, "total": self.total}


def settle_memory(
    config: TrainConfig, policy: OpenVLAPolicy, ranks: Ranks, survey: PairSurvey, state: dict[str, Any] | None
) -> tuple[TrainConfig, MemoryPlan | None]:
    """Decide micro-batch size and gradient checkpointing, and print the plan.

    Args:
        config: Settings as given.
        policy: With its adapter, on its device.
        ranks: Processes of the run; they agree on the smallest size.
        survey: Of the pairs.
        state: The checkpoint that is resumed; its run's choice stands.

    Returns:
        The settings with both decided, and the plan; ``None`` on a CPU without ``max_memory_gb``, where memory
        decides nothing.

    Raises:
        ConfigError: Not even one time step fits.
    """
    if state is not None:
        config = as_in_checkpoint(config, state)
    if ranks.device.type != "cuda" and config.max_memory_gb is None:
        switch = "on" if config.gradient_checkpointing == "on" else "off"
        size = config.micro_batch_size or CPU_MICRO_BATCH
        return dataclasses.replace(config, micro_batch_size=size, gradient_checkpointing=switch), None  # type: ignore[arg-type]
    plans = make_plans(config, policy, ranks.device, survey.longest_instruction, num_processes=ranks.world_size)
    plan = choose(plans, asked_rows=config.micro_batch_size, longest=max(map(sum, survey.lengths)))
    rows, recompute = agree(ranks, plan)
    if rows == 0:
        raise ConfigError(
            does_not_fit(plan, ranks.device) if plan.rows == 0 else "another process has too little memory"
        )
    switch = "on" if recompute else "off"
    config = dataclasses.replace(config, micro_batch_size=rows, gradient_checkpointing=switch)  # type: ignore[arg-type]
    plan = next(plan for plan in plans if plan.recompute == recompute)  # another process may need it
    plan = dataclasses.replace(plan, rows=rows)
    if ranks.first:
        _LOG.info("%s", plan.describe(ranks.device))
        for other in plans:
            if other.recompute != recompute:
                _LOG.info("  with gradient checkpointing %s %d fit", "off" if recompute else "on", other.most_rows)
        if not plan.fits:
            _LOG.warning("%d may not fit; where memory runs out it is halved. %d would fit", rows, plan.most_rows)
    return config, plan


def as_in_checkpoint(config: TrainConfig, state: dict[str, Any]) -> TrainConfig:
    """What is left open is as in the run that wrote the checkpoint, so that its numbers come out bit for bit."""
    if config.micro_batch_size is None:
        config = dataclasses.replace(config, micro_batch_size=state["settings"]["micro_batch_size"])
    if config.gradient_checkpointing == "auto":  # checkpoints of earlier versions do not say, and did without
        config = dataclasses.replace(config, gradient_checkpointing=state.get("gradient_checkpointing", "off"))
    return config


def make_plans(
    config: TrainConfig, policy: OpenVLAPolicy, device: torch.device, instruction: str, *, num_processes: int = 1
) -> list[MemoryPlan]:
    """Plans of one row each: without gradient checkpointing, with it, or both, as the settings allow."""
    trained = sum(p.nbytes for p in policy.model.parameters() if p.requires_grad)
    frozen = [*(p for p in policy.model.parameters() if not p.requires_grad), *policy.model.buffers()]
    weights = sum(tensor.nbytes for tensor in frozen) + quantized_bytes(policy.network)
    if config.shard_base:  # a share of each layer, and two whole ones: the one that runs and the one that is fetched
        largest = max(sum(p.nbytes for p in layer.parameters()) for layer in layers(policy.network))
        weights = math.ceil(weights / num_processes) + 2 * largest
    others = WORKSPACE_BYTES if device.type == "cuda" else max(0, resident_bytes() - weights - trained)
    return [
        MemoryPlan(
            weights=weights,
            adapter=4 * trained,
            others=others,
            step=measure_step(config, device=device, dtype=policy.dtype, instruction=instruction, recompute=recompute),
            rows=1,
            recompute=recompute,
            limit=usable_bytes(config, device),
        )
        for recompute in {"auto": (False, True), "on": (True,), "off": (False,)}[config.gradient_checkpointing]
    ]


def choose(plans: Sequence[MemoryPlan], *, asked_rows: int | None, longest: int) -> MemoryPlan:
    """The plan to follow, with its rows; 0 rows where not even one fits.

    Args:
        plans: One or more, in the order of preference.
        asked_rows: Micro-batch size that the user gave; it stands wherever one row fits.
        longest: Rows of the longest pair: more are never needed.
    """
    wanted = asked_rows or min(FEW_ROWS, longest)
    for plan in plans:
        if plan.most_rows >= wanted:
            break
    if plan.most_rows == 0:
        return dataclasses.replace(plan, rows=0)
    return dataclasses.replace(plan, rows=asked_rows or min(plan.most_rows, MOST_ROWS, longest))


def agree(ranks: Ranks, plan: MemoryPlan) -> tuple[int, bool]:
    """Rows and gradient checkpointing of all processes: the fewest rows; checkpointing where one needs it."""
    told = [tuple(map(int, text.split())) for text in ranks.gather_texts(f"{plan.rows} {plan.recompute:d}")]
    return min(rows for rows, _ in told), any(recompute for _, recompute in told)


def does_not_fit(plan: MemoryPlan, device: torch.device) -> str:
    """Why, with the numbers, and what to change."""
    plan = dataclasses.replace(plan, rows=1)
    return (
        f"one time step per pass needs {_gb(plan.total)} GB, and {_gb(plan.limit)} GB may be used. {ADVICE}, or allow "
        f"more (--max_memory_gb, a larger GPU)\n{plan.describe(device)}"
    )


def usable_bytes(config: TrainConfig, device: torch.device) -> int:
    """What the run may take, weights that are loaded already included."""
    cap = math.inf if config.max_memory_gb is None else config.max_memory_gb * GB
    if device.type != "cuda":
        return int(cap)
    free, _ = torch.cuda.mem_get_info(device)
    if config.max_memory_gb is None:
        free = int(free * (1 - FREE_MARGIN))
    return int(min(cap, free + torch.cuda.memory_reserved(device)))


def cap_memory(config: TrainConfig, device: torch.device) -> None:
    """Make ``max_memory_gb`` a hard cap of torch's allocator on a GPU."""
    if device.type == "cuda" and config.max_memory_gb is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, config.max_memory_gb * GB / total), device)


def resident_bytes() -> int:
    """Memory that this process holds, on Linux; 0 elsewhere."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


@contextlib.contextmanager
def loading(vla_path: str, device: torch.device) -> Iterator[None]:
    """Around loading the base: where its weights alone do not fit, says so.

    Raises:
        TrainingError: Out of memory.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            f"the weights of {vla_path} do not fit the memory of {device} ({str(error).splitlines()[0]}); free some, "
            "try --use_quantization True, or take a larger GPU"
        ) from error


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / GB:.2f}"
