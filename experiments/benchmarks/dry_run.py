"""A whole training run on generated pairs: random checkpoint, optimiser steps, a stop, resume, merge, load.

    python -m experiments.benchmarks.dry_run --preset openvla-7b --run_dir runs/dry-run-7b
    python -m experiments.benchmarks.dry_run --preset nano --num_steps 6 --pair_steps 12 --run_dir runs/dry-run-nano

The commands are those of a real run, under torchrun; what is trained on is made up, so nothing is learnt. The stop is a
SIGTERM in the middle of the run, as a scheduler sends it. At the end the merged checkpoint and the adapter on its base
must give the same log-probabilities, up to the rounding of the type. Writes dry_run.json into the run folder.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.generated_pairs import DATASET, INSTRUCTION, random_tokens, smooth_pictures, write_pairs
from grape.cli.arguments import parse_config
from grape.errors import ConfigError, GrapeError, TrainingError
from grape.files import write_json
from grape.models import OpenVLAPolicy, load_policy
from grape.models.random_checkpoint import lay_out
from grape.optional import installed_versions
from grape.trainer.metrics import read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]
RUN_NAME = "tpo"
MERGE_TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.5}
"""Largest difference of an action's log-probability, merged against adapter, by the type in which weights are stored:
bfloat16 rounds merged weights once more, and an action sums seven tokens (half a nat is 7 % for each)."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What is run."""

    run_dir: Path
    """New folder for checkpoint, pairs, run and result; needs about twice the checkpoint's size."""
    preset: str = "openvla-7b"
    """Size of the random checkpoint."""
    num_steps: int = 20
    """Optimiser steps, of one pair each and process."""
    pair_steps: int = 120
    """Time steps of each of a pair's trajectories."""
    learning_rate: float = 1e-3
    """So large that the adapter's effect stands out from the rounding of merged weights."""
    num_processes: int = 1
    """Processes of torchrun on this machine, one GPU each."""
    device: str = "auto"
    """cpu, cuda or auto."""
    train_flags: str = ""
    """Further flags of finetune.py, separated by spaces, e.g. "--max_memory_gb 40"."""


def main() -> int:
    config = parse_config(DryRun, "dry_run", None)
    if config.run_dir.exists() and any(config.run_dir.iterdir()):
        raise ConfigError(f"{config.run_dir} is not empty; name a new folder")
    lay_out(config.preset)  # an unknown name is told at once
    result = run(config)
    write_json(config.run_dir / "dry_run.json", result)
    print(json.dumps(result, indent=1))
    return 0


def run(config: DryRun) -> dict[str, Any]:
    """All stages, one after the other; each is timed."""
    base, pairs, merged = (config.run_dir / name for name in ("base", "pairs", "merged"))
    seconds: dict[str, float] = {}

    def stage(name: str, *command: str, stop_after: int | None = None) -> None:
        print(f"\n[{name}] {' '.join(command)}", flush=True)
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=REPOSITORY)
        if stop_after is not None:
            stop_at_step(process, config.run_dir / "train" / RUN_NAME, stop_after)
        code = process.wait()
        if bool(code) != (stop_after is not None):  # a stopped run says so with its exit code
            raise TrainingError(f"stage {name} ended with exit code {code}")
        seconds[name] = round(time.perf_counter() - started, 1)

    grape = (sys.executable, "-m", "grape.cli.main")
    stage("init-checkpoint", *grape, "init-checkpoint", "--preset", config.preset, "--out", str(base))
    policy = load_policy(base, device="cpu", dtype="stored")
    write_pairs(
        pairs,
        policy,
        next(iter(policy.norm_stats)),
        num_pairs=config.num_steps * config.num_processes,
        num_steps=config.pair_steps,
    )
    del policy
    train = train_command(config, base, pairs)
    stage("train, stopped half-way", *train, stop_after=config.num_steps // 2)
    stage("train, resumed", *train, "--resume", "True")
    adapter = config.run_dir / "train" / RUN_NAME / "adapter"
    stage("merge", *grape, "merge", "--vla_path", str(base), "--adapter", str(adapter), "--out", str(merged))

    rows = read_metrics(config.run_dir / "train" / RUN_NAME)
    if [row["step"] for row in rows] != list(range(1, config.num_steps + 1)):
        raise TrainingError(f"the log has steps {[row['step'] for row in rows]}, not 1 to {config.num_steps}")
    return {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()},
        "seconds": seconds,
        "seconds_per_step": {"median": statistics.median(row["step_time_s"] for row in rows)},
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "run": json.loads((config.run_dir / "train" / RUN_NAME / "run.json").read_text()),
        "merged_against_adapter": compare(config, base, adapter, merged),
        "versions": {"python": sys.version.split()[0], **installed_versions(("torch", "transformers", "peft"))},
    }


def train_command(config: DryRun, base: Path, pairs: Path) -> list[str]:
    """The published command on the generated pairs."""
    flags = {
        "vla_path": base,
        "dataset_name": DATASET,
        "chosen_traj_dir": pairs / "chosen",
        "rejected_traj_dir": pairs / "rejected",
        "run_root_dir": config.run_dir / "train",
        "adapter_tmp_dir": config.run_dir / "newest_adapter",
        "run_name": RUN_NAME,
        "learning_rate": config.learning_rate,
        "save_steps": config.num_steps,
        "device": config.device,
    }
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(config.num_processes)]
    options = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return [sys.executable, *torchrun, "finetune.py", *options, *config.train_flags.split()]


def stop_at_step(process: subprocess.Popen[bytes], run_dir: Path, step: int) -> None:
    """SIGTERM once the log has so many steps."""
    while process.poll() is None:
        if len(read_metrics(run_dir)) >= step:
            process.send_signal(signal.SIGTERM)
            return
        time.sleep(0.05)


def compare(config: DryRun, base: Path, adapter: Path, merged: Path) -> dict[str, float]:
    """Log-probabilities of a few actions, merged against adapter on base.

    Raises:
        TrainingError: They differ by more than rounding explains.
    """
    values = {}
    for name, path, own_adapter in (("base", base, None), ("adapter", base, adapter), ("merged", merged, None)):
        policy = load_policy(path, adapter=own_adapter, device=config.device, dtype="stored")
        with torch.inference_mode():
            values[name] = log_probs(policy).double().cpu()
        tolerance = MERGE_TOLERANCE_NATS[policy.dtype]
        del policy
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    difference, effect = ((values["adapter"] - values[name]).abs().max().item() for name in ("merged", "base"))
    if not difference <= min(tolerance, effect / 2):
        raise TrainingError(
            f"merged and adapter differ by {difference} nats, where rounding explains {tolerance} and the adapter's "
            f"whole effect is {effect}; was it merged? (a larger --learning_rate makes the effect clearer)"
        )
    return {"largest_difference_nats": difference, "tolerance_nats": tolerance, "adapter_against_base_nats": effect}


def log_probs(policy: OpenVLAPolicy) -> torch.Tensor:
    """Of four random actions before four pictures, nats."""
    pictures = smooth_pictures(4, policy.image_size, seed=1)
    return policy.log_prob(list(pictures), [INSTRUCTION] * 4, np.asarray(random_tokens(policy, 4, seed=1))).sum(-1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GrapeError as error:
        sys.exit(str(error))
