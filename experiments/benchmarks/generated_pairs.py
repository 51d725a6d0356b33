"""Preference pairs with made-up content and real form: for speed and memory, where what is learnt does not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from grape.models import OpenVLAPolicy
from grape.models.preprocessing import resize_bicubic
from grape.rlds import ExportEpisode, write_dataset
from grape.trajectory import ACTION_DIM, STATE_DIM, EpisodeInfo, Trajectory

INSTRUCTION = "pick up the black bowl between the plate and the ramekin and place it on the plate"
DATASET = "generated"


def smooth_pictures(num_pictures: int, size: int, seed: int) -> np.ndarray:
    """(num_pictures, size, size, 3) uint8: blurred noise, which takes as little room as a simulator's picture."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_pictures, 8, 8, 3), dtype=np.uint8)
    return np.stack([resize_bicubic(picture, size) for picture in coarse])


def random_tokens(policy: OpenVLAPolicy, num_steps: int, seed: int) -> np.ndarray:
    """(num_steps, 7) action tokens."""
    tokenizer = policy.action_tokenizer
    rng = np.random.default_rng(seed)
    return rng.integers(tokenizer.first_id, tokenizer.vocab_size, (num_steps, ACTION_DIM)).astype(np.int32)


def write_pairs(folder: Path, policy: OpenVLAPolicy, unnorm_key: str, *, num_pairs: int, num_steps: int) -> None:
    """Write ``folder/chosen`` and ``folder/rejected``, two RLDS data sets as `grape pair` writes them."""
    for side in ("chosen", "rejected"):
        episodes = (_episode(policy, unnorm_key, side, index, num_steps) for index in range(num_pairs))
        write_dataset(folder / side / DATASET / "1.0.0", DATASET, {"train": episodes})


def _episode(policy: OpenVLAPolicy, unnorm_key: str, side: str, index: int, num_steps: int) -> ExportEpisode:
    seed = 2 * index + (side == "rejected")
    numbers = np.random.default_rng(seed).uniform(-1, 1, (4, num_steps, ACTION_DIM)).astype(np.float32)
    info = EpisodeInfo(
        simulator="libero",
        suite="generated",
        task_id=0,
        task_name="generated",
        instruction=INSTRUCTION,
        init_state_id=f"generated/{index}",
        init_state_hash=f"generated/{index}",
        rollout_index=int(side == "rejected"),
        policy=policy.name,
        checkpoint_hash=policy.checkpoint_hash,
        policy_settings={"center_crop": False, "unnorm_key": unnorm_key},
        status="success" if side == "chosen" else "failure",
        num_steps=num_steps,
    )
    trajectory = Trajectory(
        info=info,
        images=smooth_pictures(num_steps, policy.image_size, seed),
        action_tokens=random_tokens(policy, num_steps, seed),
        token_logps=-np.abs(numbers[0]),
        sampler_logps=-np.abs(numbers[1]),
        policy_actions=numbers[2],
        actions=numbers[3],
        states=np.zeros((num_steps, STATE_DIM), np.float32),
        facts={"ee_position": np.zeros((num_steps + 1, 3), np.float32)},
    )
    return ExportEpisode(trajectory=trajectory, pair_id=f"{index:06d}--generated", score=float(side == "chosen"))
