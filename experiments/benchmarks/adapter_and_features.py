"""What the LoRA layer and cached features save in a TPO step of nano, on one CPU core.

    python -m experiments.benchmarks.adapter_and_features

Prints CPU time per observation, forward twice and backward once, and the bytes that autograd keeps of a micro-batch:
with peft's own LoRA layer, with ours, with ours and features that the example's two passes share, and with features
kept from an earlier epoch. Variants take turns, medians count. Pictures are random and decoded.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from grape.config.train import TrainConfig
from grape.models import OpenVLAPolicy, new_policy
from grape.trainer.features import FeatureStore
from grape.trainer.gradient import StepScorer, backward_example
from grape.trainer.kernels import training_attention
from grape.trainer.prepare import StepBatch
from grape.trainer.step_cost import KeptBytes

NUM_OBSERVATIONS, MICRO_BATCH, RANK, REPEATS = 32, 16, 32, 3
INSTRUCTION = "pick up the black bowl and place it on the plate"


def main() -> None:
    torch.set_num_threads(1)
    print("| base | targets | variant | CPU ms / observation | MB kept |\n| --- | --- | --- | --- | --- |")
    with training_attention(torch.device("cpu")):
        for dtype in (torch.bfloat16, torch.float32):
            for targets in ("all-linear", "llm"):
                for name, (milliseconds, megabytes) in measure(dtype, targets).items():
                    base = str(dtype).removeprefix("torch.")
                    print(f"| {base} | {targets} | {name} | {milliseconds:.1f} | {megabytes:.0f} |", flush=True)


def measure(dtype: torch.dtype, targets: str) -> dict[str, tuple[float, float]]:
    scorers = {"peft's layer": make_scorer(dtype, targets, light=False), "ours": make_scorer(dtype, targets)}
    if targets == "llm":
        scorers["ours, features shared"] = make_scorer(dtype, targets)
        scorers["ours, features of an earlier epoch"] = make_scorer(dtype, targets)
    batch = random_batch(scorers["ours"].policy)
    references = {name: scorer.score_reference(batch) for name, scorer in scorers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(REPEATS):
        for name, scorer in scorers.items():
            if "features" not in name:
                scorer._features = None
            elif "shared" in name:
                scorer._features = FeatureStore(0)
            started = time.process_time()
            backward_example(scorer, batch, references[name], weight=1.0)
            seconds[name].append(time.process_time() - started)
    return {
        name: (statistics.median(values) / NUM_OBSERVATIONS * 1e3, kept_bytes(scorers[name], batch) / 1e6)
        for name, values in seconds.items()
    }


def make_scorer(dtype: torch.dtype, targets: str, *, light: bool = True) -> StepScorer:
    policy = new_policy("nano")
    policy.network.to(dtype)
    if light:
        policy.with_adapter(RANK, targets=targets)
    else:
        import grape.models.lora

        with patch.object(grape.models.lora, "use_light_lora"):  # then peft takes its own
            policy.with_adapter(RANK, targets=targets)
    unused = {"dataset_name": "-", "chosen_traj_dir": Path("-"), "rejected_traj_dir": Path("-")}
    config = TrainConfig(vla_path="-", micro_batch_size=MICRO_BATCH, lora_targets=targets, **unused)  # type: ignore[arg-type]
    return StepScorer(policy, config)


def kept_bytes(scorer: StepScorer, batch: StepBatch) -> int:
    kept = KeptBytes(scorer.policy.model)
    with kept:
        graph = scorer.score(batch, slice(0, MICRO_BATCH))
    assert graph.requires_grad
    return kept.total


def random_batch(policy: OpenVLAPolicy) -> StepBatch:
    rng = np.random.default_rng(0)
    size, first = policy.image_size, policy.action_tokenizer.first_id
    return StepBatch(
        images=rng.integers(0, 256, (NUM_OBSERVATIONS, size, size, 3), dtype=np.uint8),
        instructions=[INSTRUCTION] * NUM_OBSERVATIONS,
        tokens=rng.integers(first, first + 256, (NUM_OBSERVATIONS, 7)),
        num_chosen=NUM_OBSERVATIONS // 2,
        center_crop=False,
        label="benchmark",
    )


if __name__ == "__main__":
    main()
