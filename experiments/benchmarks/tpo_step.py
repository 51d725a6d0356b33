"""A TPO step against the published recipe written plainly: seconds, memory and utilisation, in one run.

    python -m experiments.benchmarks.tpo_step --preset openvla-7b --max_memory_gb 40 --out h200.json
    python -m experiments.benchmarks.tpo_step --preset mid --num_steps 16 --long_steps 48 --short_steps 16

The plain way is ours, after the release's recipe: a second model as reference, one picture per forward pass, four
passes per time step (policy and reference, chosen and rejected), one backward pass and one optimiser step per 8-step
window. ``DIFFERENCES`` lists what differs. Both ways run the same network with the same type, adapter and attention
kernel; neither is compiled. Variants are timed in turn, round by round. Peaks of memory are of processes of their own,
one for each, so that nothing else is in them. Pictures are made up and already decoded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F

from experiments.benchmarks.generated_pairs import INSTRUCTION, random_tokens, smooth_pictures
from experiments.benchmarks.operations import count
from experiments.benchmarks.timing import machine, matrix_rate, timed
from grape.cli.arguments import parse_config
from grape.config.train import TrainConfig
from grape.errors import GrapeError
from grape.files import write_json
from grape.models import OpenVLAPolicy, load_policy
from grape.models.random_checkpoint import write_random_checkpoint
from grape.models.recompute import recompute_blocks
from grape.trainer.distributed import Ranks, join_ranks
from grape.trainer.examples import PairSurvey
from grape.trainer.gradient import StepScorer, backward_example
from grape.trainer.kernels import training_attention
from grape.trainer.memory import cap_memory, settle_memory
from grape.trainer.prepare import StepBatch

BETA = 0.1
DIFFERENCES = (
    "reference: plain holds a second copy of the weights and runs it for every step of every window; ours switches the "
    "adapter off, runs it once per pair, and reads the numbers from the cache afterwards",
    "batching: plain scores one picture per forward pass; ours scores micro-batches of time steps",
    "graph: plain keeps the graph of 16 forward passes until the window's backward pass; ours does too where a window "
    "fits a micro-batch, and otherwise scores without gradients first and goes backward per micro-batch",
    "logits: plain computes them at every position of the sequence; ours at the action tokens",
    "adapter: plain is peft's own, which in bfloat16 makes a float32 copy of each layer's input; ours casts its small "
    "matrices instead",
    "whole trajectories have no plain counterpart of the same objective: plain takes num_steps - window_size + 1 "
    "windows for a pair, each a loss and an optimiser step of its own",
    "left out of both: decoding and augmenting pictures, the gradient's norm, logging and checkpoints",
)


@dataclass(frozen=True, kw_only=True)
class StepBenchmark:
    """What is measured, and on what."""

    vla_path: str | None = None
    """Checkpoint to measure; ``None`` makes one with random weights from ``preset``."""
    preset: str = "nano"
    """Size of the random checkpoint."""
    num_steps: int = 120
    """Time steps of each of the two trajectories that are timed."""
    window_size: int = 8
    """Time steps of a window."""
    num_rounds: int = 3
    """How often each variant is timed, after once that is not counted; the median counts."""
    short_steps: int = 60
    """Time steps of each trajectory of the first pair whose peak of memory is measured."""
    long_steps: int = 520
    """The same of the second."""
    micro_batch_size: int | None = None
    """Time steps per pass of ours; ``None``: as the trainer chooses."""
    max_memory_gb: float | None = None
    """Cap of ours, 1e9 bytes, as in training."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Of ours, as in training."""
    lora_rank: int = 32
    """Adapter's rank."""
    lora_targets: Literal["all-linear", "llm"] = "all-linear"
    """Layers with an adapter."""
    device: str = "auto"
    """Where to run."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the base weights."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention, of both ways."""
    num_threads: int | None = None
    """Threads of torch on a CPU; ``None``: torch's own choice."""
    out: Path | None = None
    """JSON file to write."""
    peak_of: Literal["plain", "ours"] | None = None
    """For the processes that this script starts: take one step of ``num_steps`` and print the peak."""


def main() -> int:
    config = parse_config(StepBenchmark, "benchmark tpo_step", None)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    if config.peak_of is not None:
        print(json.dumps(peak_of_step(config)))
        return 0
    with checkpoint(config) as path:
        result = measure(dataclasses.replace(config, vla_path=path), asked=config)
    print(table(result))
    if config.out is not None:
        write_json(config.out, result)
    return 0


@contextlib.contextmanager
def checkpoint(config: StepBenchmark) -> Iterator[str]:
    """The checkpoint to measure, made for the time of the context where none is named."""
    if config.vla_path is not None:
        yield config.vla_path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / config.preset
        write_random_checkpoint(config.preset, path, dtype="float32" if config.dtype == "float32" else "bfloat16")
        yield str(path)


def measure(config: StepBenchmark, *, asked: StepBenchmark) -> dict[str, Any]:
    """Time every variant, then measure peaks; ``config`` names the checkpoint, ``asked`` is what the user said."""
    with join_ranks(config.device) as ranks:
        seconds, facts = time_variants(config, ranks)
        settings = {name: value for name, value in dataclasses.asdict(asked).items() if name not in ("out", "peak_of")}
        plain, window = seconds["plain: one window pair"], seconds["ours: one window pair, reference cached"]
        whole = seconds["ours: whole trajectories, reference cached"]
        rate = matrix_rate(ranks.device, facts.pop("torch_dtype"))
        num_windows = config.num_steps - config.window_size + 1
        result: dict[str, Any] = {
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "all_seconds": seconds,
            "ratios": {
                "window pair, same objective: plain / ours": round_ratio(plain, window),
                f"pair: plain's {num_windows} windows (one measured, times {num_windows}) / ours whole": round_ratio(
                    [value * num_windows for value in plain], whole
                ),
            },
            "utilisation": {
                "operations_per_pair": facts["operations_per_row"] * 2 * config.num_steps,
                "matrix_operations_per_second": rate,
                "share": facts["operations_per_row"] * 2 * config.num_steps / statistics.median(whole) / rate,
            },
            **facts,
            "machine": machine(ranks.device),
            "differences": DIFFERENCES,
            "settings": settings,
        }
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
    result["peaks"] = measure_peaks(config)
    return result


def time_variants(config: StepBenchmark, ranks: Ranks) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each variant in each round, and what is worth knowing beside them."""
    policy, trainer = load_ours(config, ranks, longest=config.num_steps)
    plain = Plain(config, ranks.device)
    pair, window = (random_pair(policy, steps) for steps in (config.num_steps, config.window_size))
    ours = Ours(policy, trainer)
    windows = Ours(policy, dataclasses.replace(trainer, include_end_token=True))
    pair_reference, window_reference = ours.scorer.score_reference(pair), windows.scorer.score_reference(window)
    variants: dict[str, Callable[[], object]] = {
        "plain: one window pair": lambda: plain.step(window),
        "ours: one window pair, reference cached": lambda: windows.step(window, window_reference),
        "ours: one window pair, reference computed": lambda: windows.step(window, None),
        "ours: whole trajectories, reference cached": lambda: ours.step(pair, pair_reference),
        "ours: whole trajectories, reference computed": lambda: ours.step(pair, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with training_attention(ranks.device):  # as the trainer has it, for both ways alike
        for number in range(config.num_rounds + 1):
            for name, run in variants.items():
                taken = timed(run, ranks.device)
                if number:
                    seconds[name].append(taken)
    num_text_tokens = len(policy.prompts.action_prefix_ids(INSTRUCTION)) + pair.tokens.shape[1]
    rank = config.lora_rank if config.lora_targets == "all-linear" else 0  # the count knows no adapter in between
    facts = {
        "micro_batch_size": ours.scorer.micro_batch_size,
        "gradient_checkpointing": trainer.gradient_checkpointing,
        "operations_per_row": count(policy.config, num_text_tokens=num_text_tokens, lora_rank=rank).training_step,
        "parameters": sum(p.numel() for p in policy.network.parameters()),
        "dtype": str(policy.dtype),
        "torch_dtype": policy.dtype,
    }
    return seconds, facts


def load_ours(config: StepBenchmark, ranks: Ranks, *, longest: int) -> tuple[OpenVLAPolicy, TrainConfig]:
    """The policy with a fresh adapter, and the trainer's settings with what memory decides."""
    assert config.vla_path is not None
    here = Path(".")
    trainer = TrainConfig(
        vla_path=config.vla_path,
        dataset_name="benchmark",
        chosen_traj_dir=here,
        rejected_traj_dir=here,
        beta=BETA,
        lora_rank=config.lora_rank,
        lora_targets=config.lora_targets,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        micro_batch_size=config.micro_batch_size,
        max_memory_gb=config.max_memory_gb,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    cap_memory(trainer, ranks.device)
    policy = load(config, ranks.device).with_adapter(config.lora_rank, targets=config.lora_targets)
    survey = PairSurvey(lengths=((longest, longest),), digest="", longest_instruction=INSTRUCTION)
    trainer, _ = settle_memory(trainer, policy, ranks, survey, None)
    if trainer.gradient_checkpointing == "on":
        recompute_blocks(policy.network, replay_dropout=False)
    return policy, trainer


def load(config: StepBenchmark, device: torch.device) -> OpenVLAPolicy:
    """A copy of the checkpoint."""
    assert config.vla_path is not None
    return load_policy(
        config.vla_path, device=str(device), dtype=config.dtype, attn_implementation=config.attn_implementation
    )


def random_pair(policy: OpenVLAPolicy, num_steps: int) -> StepBatch:
    """Two trajectories of made-up pictures and tokens."""
    return StepBatch(
        images=smooth_pictures(2 * num_steps, policy.image_size, seed=0),
        instructions=[INSTRUCTION] * (2 * num_steps),
        tokens=random_tokens(policy, 2 * num_steps, seed=0),
        num_chosen=num_steps,
        center_crop=False,
        label="benchmark",
    )


class Ours:
    """One optimiser step of this trainer."""

    def __init__(self, policy: OpenVLAPolicy, trainer: TrainConfig) -> None:
        self.optimizer = adamw(policy)
        self.scorer = StepScorer(policy, trainer)

    def step(self, batch: StepBatch, reference: torch.Tensor | None) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        if reference is None:
            reference = self.scorer.score_reference(batch)
        result = backward_example(self.scorer, batch, reference, weight=1.0)
        self.optimizer.step()
        return result.loss


class Plain:
    """One optimiser step of the published recipe on one window pair."""

    def __init__(self, config: StepBenchmark, device: torch.device) -> None:
        import peft

        from grape.models.openvla import lora_target_pattern

        self.policy, self.reference = (load(config, device) for _ in range(2))
        settings = peft.LoraConfig(
            r=config.lora_rank,
            lora_alpha=min(config.lora_rank, 32),
            target_modules=lora_target_pattern(self.policy.config, config.lora_targets),
            init_lora_weights="gaussian",
        )
        peft.get_peft_model(self.policy.network, settings)  # type: ignore[arg-type]
        self.optimizer = adamw(self.policy)

    def step(self, window: StepBatch) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        log_ratios = []
        for first, last in ((0, window.num_chosen), (window.num_chosen, len(window))):
            steps = []
            for row in range(first, last):
                with torch.no_grad():
                    reference_logp = self.log_prob(self.reference, window, row)
                steps.append(self.log_prob(self.policy, window, row) - reference_logp)
            log_ratios.append(torch.stack(steps).sum())
        loss = -F.logsigmoid(BETA * (log_ratios[0] - log_ratios[1]))
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @staticmethod
    def log_prob(policy: OpenVLAPolicy, batch: StepBatch, row: int) -> torch.Tensor:
        """log π of one step, end token included, from the logits of the whole sequence."""
        rows = slice(row, row + 1)
        inputs = policy.forward_inputs(list(batch.images[rows]), batch.instructions[rows], batch.tokens[rows])
        end = torch.full_like(inputs.input_ids[:, :1], policy.prompts.end_id)
        embeddings = policy.network.embed(inputs.pixel_values, torch.cat([inputs.input_ids, end], dim=1))
        logits = policy.network.language_model(inputs_embeds=embeddings, use_cache=False).logits
        targets = policy.target_tokens(batch.tokens[rows], include_end_token=True)
        logps = logits[:, -targets.shape[1] - 1 : -1].float().log_softmax(dim=-1)
        return logps.gather(-1, targets[..., None]).sum()


def adamw(policy: OpenVLAPolicy) -> torch.optim.Optimizer:
    """As the trainer makes it; the learning rate moves the weights without spoiling them."""
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-6, fused=policy.device.type == "cuda")


def measure_peaks(config: StepBenchmark) -> dict[str, dict[str, float] | str]:
    """Peak bytes of one step, each in a process of its own."""
    runs = {
        f"plain: one window pair ({config.window_size} steps)": ("plain", config.window_size),
        f"ours: pair of {config.short_steps} steps": ("ours", config.short_steps),
        f"ours: pair of {config.long_steps} steps": ("ours", config.long_steps),
    }
    peaks: dict[str, dict[str, float] | str] = {}
    for name, (way, num_steps) in runs.items():
        one = dataclasses.replace(config, peak_of=way, num_steps=num_steps, out=None)  # type: ignore[arg-type]
        flags = [part for key, value in dataclasses.asdict(one).items() for part in (f"--{key}", str(value))]
        done = subprocess.run(
            [sys.executable, "-m", "experiments.benchmarks.tpo_step", *flags], capture_output=True, text=True
        )
        # the plain way may not fit the device: that is a result, too
        peaks[name] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr[-300:]
    return peaks


def peak_of_step(config: StepBenchmark) -> dict[str, float]:
    """Take one step and return its peak of memory, and of what lay there before it, in bytes."""
    with join_ranks(config.device) as ranks, training_attention(ranks.device):
        if config.peak_of == "plain":
            plain = Plain(config, ranks.device)
            batch = random_pair(plain.policy, config.num_steps)
            before = held(ranks.device)
            plain.step(batch)
        else:
            policy, trainer = load_ours(config, ranks, longest=config.num_steps)
            ours, batch = Ours(policy, trainer), random_pair(policy, config.num_steps)
            before = held(ranks.device)
            ours.step(batch, None)
        return {"before": before, "peak": peak(ranks.device)}


def held(device: torch.device) -> float:
    """Bytes that are held now: by torch's tensors on a GPU, by the process on a CPU; ``peak`` counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    Path("/proc/self/clear_refs").write_text("5")  # Linux then forgets the peak
    return _process_bytes("VmRSS")


def peak(device: torch.device) -> float:
    """The most bytes since ``held``."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _process_bytes("VmHWM")


def _process_bytes(name: str) -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return float(line.split()[1]) * 1024


def round_ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Median of the rounds' ratios, with the smallest and the largest."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    lines = [f"{name:<50} {value:>10.3f} s" for name, value in result["seconds"].items()]
    for name, one in result["ratios"].items():
        lines.append(f"{name}: {one['median']:.1f} x ({one['low']:.1f} to {one['high']:.1f})")
    used = result["utilisation"]
    lines.append(
        f"whole trajectories, reference cached: {used['operations_per_pair'] / 1e12:.2f} TFLOP a pair, "
        f"{used['share']:.0%} of the {used['matrix_operations_per_second'] / 1e12:.2f} TFLOP/s of a matrix product here"
    )
    for name, peak in result["peaks"].items():
        text = peak if isinstance(peak, str) else f"{peak['peak'] / 1e9:.2f} GB, {peak['before'] / 1e9:.2f} before it"
        lines.append(f"peak memory, {name}: {text}")
    return "\n".join([*lines, "", "differences between the two ways:", *result["differences"]])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GrapeError as error:
        sys.exit(str(error))
