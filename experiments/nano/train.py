"""Train OpenVLA-nano from scratch on scripted demonstrations; the recipe is in experiments/nano/README.md.

It is OpenVLA's supervised loss with three additions that a policy this small, without pretraining, needs:

* The hidden state before the first action token also regresses what the simulator knows (hand, objects, fingers,
  grasps). The head is thrown away; the localisation that it teaches stays in the towers and in Llama.
* Some of the previous action tokens are swapped between rows, so that later tokens look at the picture.
* Tokens of axes that the experts never move weigh little.

Axis legend: N frames, B batch, A the 7 action tokens, F regressed facts, T steps.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from grape.config.inputs import CROP_KEY
from grape.envs.protocol import InitStateId
from grape.envs.rotations import matrix_from_quaternion
from grape.errors import ConfigError
from grape.models import load_policy, new_policy, save_policy
from grape.models.policy import OpenVLAPolicy
from grape.trainer.kernels import training_attention
from grape.trajectory import ACTION_DIM, Trajectory, load_trajectory

IDLE_TOKEN_WEIGHT = 0.1
"""Of an axis that no label moves, beside 1 for the others."""
MIN_DEVIATION = 0.02
"""Of a regressed fact, m or dimensionless."""


@dataclass(frozen=True, kw_only=True)
class NanoTraining:
    """Supervised training of a nano policy."""

    run_dirs: tuple[Path, ...]
    """Folders of ``grape experts``, of one suite."""
    out: Path
    """Checkpoint folder."""
    steps: int = 1200
    """Updates; two free cores make about two a second."""
    unnorm_key: str | None = None
    """Name of the action statistics in the checkpoint; None takes the suite's."""
    preset: str = "nano"
    """Size, see grape/models/nano.py."""
    init: str | None = None
    """Checkpoint to continue from; None starts from random weights."""
    batch_size: int = 64
    """Frames per step."""
    learning_rate: float = 1e-3
    """Peak of AdamW's rate; constant for half of the steps, then linear to 2 %."""
    swap_probability: float = 0.3
    """Share of previous action tokens taken from another row."""
    regression_weight: float = 10.0
    """Weight of the regressed facts beside the cross-entropy."""
    validation_every: int = 25
    """Initial states whose number is a multiple of this are held out, in every task."""
    report_every: int = 250
    """Steps between two looks at the held-out frames; the checkpoint is saved then, too."""
    seed: int = 0
    """Weights, batches and augmentation."""
    num_threads: int = 2
    """Of torch."""
    device: str = "cpu"
    """cpu or cuda."""


@dataclass(frozen=True)
class Frames:
    """All demonstrations in memory."""

    suite: str
    images: np.ndarray  # (N, H, W, 3) uint8
    labels: np.ndarray  # (N, 7) policy convention
    facts: np.ndarray  # (N, F)
    instructions: list[str]  # one per episode
    episode: np.ndarray  # (N,) index into instructions
    state: np.ndarray  # (N,) number of the initial state


def read_frames(run_dirs: tuple[Path, ...]) -> Frames:
    """Read every episode that did not crash.

    Raises:
        ConfigError: There is none, or they are of several suites, whose actions have different units.
    """
    paths = [path for run_dir in run_dirs for path in sorted((run_dir / "episodes").glob("*.npz"))]
    trajectories = [trajectory for trajectory in map(load_trajectory, paths) if trajectory.info.status != "crashed"]
    suites = sorted({trajectory.info.suite for trajectory in trajectories})
    if len(suites) != 1:
        raise ConfigError(f"run_dirs have episodes of {suites or 'no suite'}; wanted those of one, by grape experts")
    lengths = [trajectory.info.num_steps for trajectory in trajectories]
    return Frames(
        suite=suites[0],
        images=np.concatenate([trajectory.images for trajectory in trajectories]),
        labels=np.concatenate([trajectory.policy_actions for trajectory in trajectories]),
        facts=np.concatenate([regressed_facts(trajectory) for trajectory in trajectories]).astype(np.float32),
        instructions=[trajectory.info.instruction for trajectory in trajectories],
        episode=np.repeat(np.arange(len(lengths)), lengths),
        state=np.repeat([InitStateId.parse(one.info.init_state_id).index for one in trajectories], lengths),
    )


def regressed_facts(trajectory: Trajectory, num_objects: int = 4) -> np.ndarray:
    """(T, F) hand, objects (LIBERO lists movable ones first), finger opening, grasps, and in SIMPLER their yaws."""
    facts, steps = trajectory.facts, trajectory.info.num_steps
    parts = [
        facts["ee_position"],
        facts["keypoints"][:, :num_objects].reshape(steps + 1, -1),
        facts["gripper_opening"][:, None],
        facts["grasped"][:, :num_objects],
    ]
    if trajectory.info.simulator != "libero":  # seen from above: the way the fingers open, and along each object
        opening = np.stack([matrix_from_quaternion(one)[:2, 1] for one in facts["ee_quaternion"]])
        along = np.stack([matrix_from_quaternion(one)[:2, 0] for one in facts["keypoint_quaternions"].reshape(-1, 4)])
        parts += [opening, along.reshape(steps + 1, -1)]
    return np.concatenate(parts, axis=1)[:steps]


def action_statistics(labels: np.ndarray) -> dict[str, list[float] | list[bool]]:
    """Each axis's largest deflection either way, in the simulator's unit, so that zero is in the middle of a bin.

    Percentiles would cut off full deflections that are rare, such as a turn's. An axis that no label moves gets the
    smallest span of the others: nothing to divide by zero, and little harm in a stray token.
    """
    span = np.abs(labels[:, :6]).max(axis=0).astype(float)
    span = np.where(span > 0, span, span[span > 0].min())
    return {"q01": [*(-span).tolist(), 0.0], "q99": [*span.tolist(), 1.0], "mask": [True] * 6 + [False]}


class NanoTrainer:
    """Weights, optimiser and data of one run."""

    def __init__(self, config: NanoTraining, frames: Frames) -> None:
        self.config, self.frames = config, frames
        self.rng = np.random.default_rng(config.seed)
        self.policy = self._make_policy()
        self.policy.source_config[CROP_KEY] = False  # see jitter_colours
        self.policy.network.to(config.device)
        self.tokens = self.policy.encode_actions(frames.labels, config.unnorm_key or frames.suite)
        self.token_weights = np.where(np.ptp(frames.labels, axis=0) > 0, 1.0, IDLE_TOKEN_WEIGHT).astype(np.float32)
        # The floor keeps facts that hardly ever change from becoming huge targets.
        deviation = np.maximum(frames.facts.std(0), MIN_DEVIATION)
        self.targets = torch.from_numpy((frames.facts - frames.facts.mean(0)) / deviation)
        width = self.policy.network.language_model.config.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.targets.shape[1])).to(config.device)
        self.parameters = [p for p in self.policy.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [*self.parameters, *self.head.parameters()], lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.02
        )
        held_out = frames.state % config.validation_every == 0
        self.training_rows = np.flatnonzero(~held_out)
        self.validation_rows = self.rng.permutation(np.flatnonzero(held_out))[:512]

    def _make_policy(self) -> OpenVLAPolicy:
        if self.config.init is not None:
            return load_policy(self.config.init, device=self.config.device, dtype="float32")
        key = self.config.unnorm_key or self.frames.suite
        statistics = {key: {"action": action_statistics(self.frames.labels)}}
        return new_policy(
            self.config.preset,
            instructions=self.frames.instructions,
            norm_stats=statistics,
            seed=self.config.seed,
        )

    def losses(self, rows: np.ndarray, *, augment: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cross-entropy (B, A), squared error (B, F), and whether each token is right (B, A)."""
        policy, network, config = self.policy, self.policy.network, self.config
        images, fed = self.frames.images[rows], self.tokens[rows]
        if augment:
            images = jitter_colours(images, self.rng)
            swapped = self.rng.random(fed.shape) < config.swap_probability
            fed = np.where(swapped, fed[self.rng.permutation(len(rows))], fed)
        instructions = [self.frames.instructions[self.frames.episode[row]] for row in rows]
        inputs = policy.forward_inputs(list(images), instructions, fed)
        embeddings = network.embed(inputs.pixel_values, inputs.input_ids)
        hidden = network.language_model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        first = inputs.num_prompt_ids - 1 + policy.config.num_patches
        positions = first[:, None] + torch.arange(ACTION_DIM, device=first.device)
        chosen = hidden[torch.arange(len(rows), device=first.device)[:, None], positions]
        logits = network.language_model.lm_head(chosen).float()
        wanted = torch.from_numpy(self.tokens[rows]).to(logits.device)
        entropy = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
        targets = self.targets[rows].to(logits.device)
        error = F.smooth_l1_loss(self.head(chosen[:, 0]).float(), targets, reduction="none")
        return entropy, error, logits.argmax(-1) == wanted

    def step(self, number: int) -> float:
        """The update ``number``, counted from 1, which sets the learning rate."""
        decay = min(1.0, max(0.02, 2.0 * (1.0 - number / self.config.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(1.0, number / 150) * decay
        rows = self.rng.choice(self.training_rows, self.config.batch_size)
        with torch.autocast(self.config.device, torch.bfloat16):
            entropy, error, _ = self.losses(rows, augment=True)
        weights = torch.from_numpy(self.token_weights).to(entropy.device)
        loss = (entropy * weights).sum(1).mean() + self.config.regression_weight * error.mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {number}; the last checkpoint is untouched")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and token accuracy on held-out episodes."""
        self.policy.network.eval()
        with torch.autocast(self.config.device, torch.bfloat16):
            parts = [self.losses(rows, augment=False) for rows in np.array_split(self.validation_rows, 4)]
        self.policy.network.train()
        entropy, error, right = (torch.cat(values) for values in zip(*parts, strict=True))
        accuracy = right.float().mean(0)
        return {
            "val_loss": entropy.sum(1).mean().item(),
            "val_regression": error.mean().item(),
            **{f"val_accuracy_{name}": accuracy[column].item() for name, column in (("x", 0), ("y", 1), ("z", 2))},
            "val_accuracy_gripper": accuracy[6].item(),
        }


def jitter_colours(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness and tint; no crop, since where things are is the whole point."""
    gain = rng.uniform(0.85, 1.15, (len(images), 1, 1, 1))
    tint = rng.uniform(-20.0, 20.0, (len(images), 1, 1, 3))
    return np.clip(images * gain + tint, 0, 255).astype(np.uint8)


def train(config: NanoTraining) -> None:
    """Train for the given number of steps, log to ``OUT.jsonl``, save."""
    torch.set_num_threads(config.num_threads)
    trainer = NanoTrainer(config, read_frames(config.run_dirs))
    frames, started = trainer.frames, time.monotonic()
    print(f"{len(frames.images)} frames of {len(frames.instructions)} episodes, {sorted(set(frames.instructions))}")
    trainer.policy.network.train()
    config.out.parent.mkdir(parents=True, exist_ok=True)
    kernel = training_attention(torch.device(config.device))
    with config.out.with_suffix(".jsonl").open("w") as log, kernel:
        log.write(json.dumps({key: str(value) for key, value in dataclasses.asdict(config).items()}) + "\n")
        for number in tqdm(range(1, config.steps + 1), desc="steps", mininterval=5):
            loss = trainer.step(number)
            if number % config.report_every and number < config.steps:
                continue
            entry = {"step": number, "minutes": (time.monotonic() - started) / 60, "loss": loss, **trainer.validate()}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            save_policy(trainer.policy, config.out, dtype="bfloat16", overwrite=True)
    print(f"saved {config.out}: {entry}")


if __name__ == "__main__":
    train(tyro.cli(NanoTraining, config=(tyro.conf.FlagConversionOff,), use_underscores=True))
