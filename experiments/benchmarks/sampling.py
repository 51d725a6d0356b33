"""Actions per second: this decoder against one observation at a time through transformers' ``generate``, in one run.

    python -m experiments.benchmarks.sampling --preset nano --batch_sizes 1 8 32 --out sampling.json
    python -m experiments.benchmarks.sampling --vla_path CHECKPOINT --device cuda --matmul_size 8192

The plain way is the published code's: one picture, one prompt, ``generate`` for 7 tokens. Between the two stands this
decoder as it was before: batched, over a cache that grows by a copy at every step. All ways run the same network with
the same type and attention, from the same uint8 pictures; ``DIFFERENCES`` lists the rest. The ways take turns, round by
round, so that what else the machine does meets all of them; medians count.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from experiments.benchmarks.operations import count_decision
from experiments.benchmarks.timing import machine, matrix_rate, timed
from grape.cli.arguments import parse_config
from grape.errors import ConfigError, GrapeError
from grape.files import write_json
from grape.models import OpenVLAPolicy, load_policy, new_policy
from grape.models.batches import ForwardInputs
from grape.models.checkpoint import resolve_device, resolve_dtype
from grape.models.decoding import DEFAULT_PREFILL_ROWS, PREFILL_ROWS, Pick, prefill
from grape.models.openvla import OpenVLA
from grape.models.sampling import TokenPicker
from grape.trajectory import ACTION_DIM

INSTRUCTIONS = (
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "put the bowl on the plate",
)
PLAIN = "plain: generate, one observation"
DIFFERENCES = (
    "batching: plain decides one observation at a time; dynamic and ours decide the batch together",
    "cache: plain's and dynamic's grows by a copy at every step; ours is allocated once, a step writes one column",
    "launches: ours replays a captured step on a GPU, where capture succeeded; the others launch each kernel",
    "prefill: ours runs some rows at a time (settings.prefill_rows), dynamic all rows at once",
    "log-probabilities: dynamic and ours return those of the tokens; plain returns tokens alone",
    "tokens: plain chooses among the whole vocabulary, as the published code does; dynamic and ours do here, too",
    "end: plain's end token is switched off, so that each way decodes 7 tokens with any weights",
    "randomness: plain draws from torch's generator, dynamic and ours by inverse CDF on given numbers, in float64",
    "ours also unnormalises the actions and checks that log-probabilities are finite",
    "instructions: two lengths take turns in dynamic's and ours' batches, which pay for padding; plain's is the longer",
)


@dataclass(frozen=True, kw_only=True)
class SamplingBenchmark:
    """What is measured, and on what."""

    vla_path: str | None = None
    """Checkpoint to measure; ``None`` makes one with random weights from ``preset``."""
    preset: str = "nano"
    """Size of the random network, in memory; for openvla-7b make a checkpoint (`grape init-checkpoint`)."""
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128)
    """Observations decided at once."""
    rounds: int = 5
    """Turns of every way that count, after one that does not."""
    temperature: float = 1.0
    """Of sampling; 0 decodes greedily."""
    prefill_rows: int | None = None
    """Rows of one prefill pass of ours; ``None``: the decoder's own choice."""
    matmul_size: int | None = None
    """Side of square matrices whose product is timed in the same run, to give prefill's utilisation: 8192 on a GPU."""
    device: str = "auto"
    """Where to run."""
    dtype: str = "auto"
    """Type of the weights: bfloat16 on a GPU and float32 on a CPU, unless named."""
    attn_implementation: str = "sdpa"
    """Attention, of all ways."""
    num_threads: int | None = None
    """Threads of torch on a CPU; ``None``: torch's own choice."""
    out: Path | None = None
    """JSON file to write."""


def main(argv: list[str] | None = None) -> int:
    config = parse_config(SamplingBenchmark, "benchmark sampling", argv)
    if config.rounds < 1 or min(config.batch_sizes, default=0) < 1:
        raise ConfigError("rounds and batch_sizes have to be at least 1")
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with torch.inference_mode():
        result = measure(config)
    print(table(result))
    if config.out is not None:
        write_json(config.out, result)
    return 0


def measure(config: SamplingBenchmark) -> dict[str, Any]:
    """Run every way in turns and return seconds, ratios, settings and versions."""
    policy = make_policy(config)
    if config.prefill_rows is not None:
        PREFILL_ROWS[policy.device.type] = config.prefill_rows
    policy.norm_stats = {"benchmark": {"action": {"q01": [-1.0] * ACTION_DIM, "q99": [1.0] * ACTION_DIM}}}
    ways: dict[str, tuple[Callable[[], Any], int]] = {PLAIN: (Ways(policy, config, 1).plain, 1)}
    for batch in config.batch_sizes:
        one = Ways(policy, config, batch)
        ways |= {
            f"dynamic cache, batch {batch}": (one.dynamic, batch),
            f"ours, batch {batch}": (one.ours, batch),
            part("inputs", batch): (one.make_inputs, batch),
            part("vision", batch): (one.vision, batch),
            part("vision and prefill", batch): (one.prefill, batch),
        }
    peaks = {name: peak_memory(policy, run) for name, (run, _) in ways.items()}
    timings: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(config.rounds + 1):
        for name, (run, _) in ways.items():
            seconds = timed(run, policy.device)
            if number:
                timings[name].append(seconds)
    seconds = {name: statistics.median(values) for name, values in timings.items()}
    rates = {name: ways[name][1] / seconds[name] for name in ways if not name.startswith("part")}
    return {
        "actions_per_second": rates,
        "ratio_to_plain": {name: rate / rates[PLAIN] for name, rate in rates.items()},
        "shares_of_ours": {batch: shares(seconds, batch) for batch in config.batch_sizes},
        "utilisation": utilisation(policy, config, seconds),
        "peak_memory_bytes": peaks,
        "greedy_tokens_equal_plain": agreement(policy, config),
        "all_seconds": timings,
        "differences": DIFFERENCES,
        "settings": {
            **{k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()},
            "prefill_rows": PREFILL_ROWS.get(policy.device.type, DEFAULT_PREFILL_ROWS),
        },
        "machine": machine(policy.device)
        | {
            "dtype": str(policy.dtype),
            "parameters": sum(p.numel() for p in policy.network.parameters()),
            "captured_steps": policy._decoder.num_captured,
        },
    }


def make_policy(config: SamplingBenchmark) -> OpenVLAPolicy:
    """The checkpoint, or a network with random weights."""
    if config.vla_path is not None:
        return load_policy(
            config.vla_path,
            device=config.device,
            dtype=config.dtype,
            attn_implementation=config.attn_implementation,
        )
    policy = new_policy(config.preset, instructions=INSTRUCTIONS)
    device = resolve_device(config.device)
    policy.network.to(device=device, dtype=resolve_dtype(config.dtype, device))
    policy.network.language_model.config._attn_implementation = config.attn_implementation
    return policy


class Ways:
    """The ways to decide one batch of noise pictures, and the parts of ours."""

    def __init__(self, policy: OpenVLAPolicy, config: SamplingBenchmark, batch: int) -> None:
        rng = np.random.default_rng(0)
        self.policy, self.temperature = policy, config.temperature
        self.images = list(rng.integers(0, 256, (batch, policy.image_size, policy.image_size, 3), dtype=np.uint8))
        self.instructions = [INSTRUCTIONS[row % 2] for row in range(batch)]
        self.uniforms = rng.random((batch, ACTION_DIM))
        self.inputs = self.make_inputs()

    def make_inputs(self) -> ForwardInputs:
        return self.policy.forward_inputs(self.images, self.instructions)

    def plain(self) -> np.ndarray:
        return generate(self.policy, self.images[0], self.instructions[0], self.temperature)

    def dynamic(self) -> np.ndarray:
        pick = TokenPicker(
            first_id=0,
            end_id=None,
            temperature=self.temperature,
            top_p=None,
            uniforms=torch.as_tensor(self.uniforms).to(self.policy.device),
        )
        tokens, logps, _ = decode_with_dynamic_cache(self.policy.network, self.make_inputs(), ACTION_DIM, pick)
        logps.cpu()
        return tokens.cpu().numpy()

    def ours(self) -> np.ndarray:
        return self.policy.act(
            self.images,
            self.instructions,
            unnorm_key="benchmark",
            temperature=self.temperature,
            uniforms=self.uniforms,
            restrict_to_actions=False,
        ).tokens

    def vision(self) -> None:
        rows = PREFILL_ROWS.get(self.policy.device.type, DEFAULT_PREFILL_ROWS)
        for pixels, ids in zip(self.inputs.pixel_values.split(rows), self.inputs.input_ids.split(rows), strict=True):
            self.policy.network.embed(pixels, ids)

    def prefill(self) -> Tensor:
        lengths = self.inputs.num_prompt_ids + self.policy.config.num_patches
        width = self.inputs.input_ids.shape[1] + self.policy.config.num_patches
        cache = self.policy._decoder._reserve(len(lengths), width)
        return prefill(self.policy.network, cache, self.inputs, lengths)


def generate(policy: OpenVLAPolicy, image: np.ndarray, instruction: str, temperature: float) -> np.ndarray:
    """7 tokens for one observation through transformers' ``generate``, as the published code asks for them."""
    inputs = policy.forward_inputs([image], [instruction])
    embeddings = policy.network.embed(inputs.pixel_values, inputs.input_ids)
    # top_k 0: transformers' default of 50 would cut the distribution.
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    settings = transformers.GenerationConfig(
        max_new_tokens=ACTION_DIM, eos_token_id=None, pad_token_id=policy.prompts.pad_id, **how
    )
    tokens = policy.network.language_model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=policy.device),
        generation_config=settings,
    )
    return tokens.cpu().numpy()


def decode_with_dynamic_cache(
    network: OpenVLA, inputs: ForwardInputs, num_tokens: int, pick: Pick
) -> tuple[Tensor, Tensor, Tensor]:
    """The decoder as it was before the static cache: transformers' DynamicCache, all rows in one prefill."""
    llama, head = network.language_model.model, network.language_model.lm_head
    cache = transformers.DynamicCache(config=network.language_model.config)
    embeddings = network.embed(inputs.pixel_values, inputs.input_ids)
    hidden = llama(inputs_embeds=embeddings, past_key_values=cache, use_cache=True).last_hidden_state
    lengths = inputs.num_prompt_ids + network.openvla_config.num_patches
    batch, width = hidden.shape[:2]
    mask = None
    if (lengths != lengths[0]).any():
        seen = torch.arange(width + num_tokens - 1, device=hidden.device)[None]
        mask = ((seen < lengths[:, None]) | (seen >= width)).long()
    columns = [pick(0, head(hidden[torch.arange(batch, device=hidden.device), lengths - 1]))]
    for step in range(1, num_tokens):
        hidden = llama(
            inputs_embeds=llama.embed_tokens(columns[-1][0])[:, None],
            position_ids=(lengths + step - 1)[:, None],
            attention_mask=None if mask is None else mask[:, : width + step],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        columns.append(pick(step, head(hidden[:, 0])))
    tokens, logps, sampler_logps = (torch.stack(parts, dim=1) for parts in zip(*columns, strict=True))
    return tokens, logps, sampler_logps


def agreement(policy: OpenVLAPolicy, config: SamplingBenchmark) -> dict[str, float]:
    """Part of the greedy tokens that equal plain's; in bfloat16, rounding moves some where weights are random."""
    ways = Ways(policy, dataclasses.replace(config, temperature=0.0), 4)
    plain = np.concatenate(
        [generate(policy, image, text, 0.0) for image, text in zip(ways.images, ways.instructions, strict=True)]
    )
    return {"dynamic": float((ways.dynamic() == plain).mean()), "ours": float((ways.ours() == plain).mean())}


def utilisation(policy: OpenVLAPolicy, config: SamplingBenchmark, seconds: dict[str, float]) -> dict[str, Any] | None:
    """Vision's and prefill's operations per second, as part of a matrix product's in the same run."""
    if config.matmul_size is None:
        return None
    rate = matrix_rate(policy.device, policy.dtype, config.matmul_size)
    counts = [count_decision(policy.config, len(policy.prompts.action_prefix_ids(text))) for text in INSTRUCTIONS]
    used = {}
    for batch in config.batch_sizes:
        work = sum(counts[row % 2].vision + counts[row % 2].prefill for row in range(batch))
        used[f"batch {batch}"] = work / seconds[part("vision and prefill", batch)] / rate
    return {"matmul_size": config.matmul_size, "matmul_operations_per_second": rate, "vision and prefill": used}


def shares(seconds: dict[str, float], batch: int) -> dict[str, float]:
    """Parts of the seconds of ours; the rest is decoding, picking and what surrounds them."""
    whole = seconds[f"ours, batch {batch}"]
    inputs, vision = seconds[part("inputs", batch)], seconds[part("vision", batch)]
    both = seconds[part("vision and prefill", batch)]
    parts = {"inputs": inputs, "vision": vision, "prefill": both - vision, "decode and rest": whole - inputs - both}
    return {name: value / whole for name, value in parts.items()}


def part(name: str, batch: int) -> str:
    return f"part: {name}, batch {batch}"


def peak_memory(policy: OpenVLAPolicy, run: Callable[[], Any]) -> int | None:
    """Bytes allocated at most in a call that finds nothing kept; on a GPU alone."""
    if policy.device.type != "cuda":
        return None
    policy.release_memory()
    torch.cuda.reset_peak_memory_stats(policy.device)
    run()
    return torch.cuda.max_memory_allocated(policy.device)


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    lines = [f"{'':<36} {'actions/s':>10} {'to plain':>9} {'peak GB':>8}"]
    for name, rate in result["actions_per_second"].items():
        peak = result["peak_memory_bytes"][name]
        memory = "-" if peak is None else f"{peak / 1e9:.1f}"
        lines.append(f"{name:<36} {rate:>10.2f} {result['ratio_to_plain'][name]:>8.2f}x {memory:>8}")
    lines.append("")
    for batch, parts in result["shares_of_ours"].items():
        lines.append(f"ours, batch {batch}: " + ", ".join(f"{name} {value:.0%}" for name, value in parts.items()))
    if result["utilisation"] is not None:
        rate, used = result["utilisation"]["matmul_operations_per_second"], result["utilisation"]["vision and prefill"]
        lines.append(f"vision and prefill, of the {rate / 1e12:.3g} T/s that a matrix product makes: ")
        lines[-1] += ", ".join(f"{name} {value:.0%}" for name, value in used.items())
    equal = ", ".join(f"{name} {value:.0%}" for name, value in result["greedy_tokens_equal_plain"].items())
    return "\n".join([*lines, f"greedy tokens equal to plain's: {equal}", "", "differences:", *result["differences"]])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GrapeError as error:
        sys.exit(str(error))
