"""A tiny real policy and preference pairs in memory."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grape.config.train import TrainConfig
from grape.models import new_policy, save_policy
from grape.rlds import EpisodeData, ExportEpisode, PreferencePair, write_dataset
from grape.trajectory import EpisodeInfo, Trajectory, encode_png

INSTRUCTION = "put the bowl on the plate"
IMAGE_SIZE = 28
STATISTICS = {"tiny": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}}}


class MemoryEpisode(EpisodeData):
    """Decodes with Pillow: the processes of these tests need not load tensorflow for a few PNG files."""

    def decode_images(self, steps: Sequence[int]) -> np.ndarray:
        return np.stack([np.asarray(Image.open(io.BytesIO(self.encoded_images[step]))) for step in steps])


class MemoryPairs:
    """Pairs in a list, with the interface of ``grape.rlds.PairDataset`` that the trainer uses."""

    def __init__(self, pairs: Sequence[PreferencePair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[PreferencePair]:
        return iter(self.pairs[start:stop])


def make_checkpoint(folder: Path) -> Path:
    """Write the tiny policy in the published layout."""
    save_policy(new_policy("test", instructions=[INSTRUCTION], norm_stats=STATISTICS, seed=3), folder)
    return folder


def make_episode(seed: int, num_steps: int, first_action_id: int, **changes: Any) -> EpisodeData:
    """Noise pictures and random action tokens."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_steps, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    values: dict[str, Any] = {
        "source": f"memory#{seed}",
        "position": seed,
        "encoded_images": tuple(encode_png(frame) for frame in frames),
        "actions": rng.uniform(-1, 1, (num_steps, 7)).astype(np.float32),
        "policy_actions": rng.uniform(-1, 1, (num_steps, 7)).astype(np.float32),
        "action_tokens": rng.integers(first_action_id, first_action_id + 256, (num_steps, 7)).astype(np.int32),
        "token_logps": None,
        "sampler_logps": None,
        "states": None,
        "instruction": INSTRUCTION,
        "metadata": {"policy_settings": {"center_crop": False, "unnorm_key": "tiny"}},
    }
    return MemoryEpisode(**values | changes)


def make_pairs(lengths: Sequence[tuple[int, int]], first_action_id: int, **changes: Any) -> MemoryPairs:
    """One pair per (chosen, rejected) length."""
    return MemoryPairs(
        [
            PreferencePair(
                pair_id=f"{index:06d}--tiny",
                chosen=make_episode(2 * index, chosen, first_action_id, **changes),
                rejected=make_episode(2 * index + 1, rejected, first_action_id, **changes),
            )
            for index, (chosen, rejected) in enumerate(lengths)
        ]
    )


def write_pairs(root: Path, lengths: Sequence[tuple[int, int]], first_action_id: int, checkpoint_hash: str) -> None:
    """Two RLDS data sets as ``grape pair`` writes them: ``root/chosen/tiny`` and ``root/rejected/tiny``."""
    for side, name in enumerate(("chosen", "rejected")):
        episodes = [
            stored_episode(index, both[side], name, first_action_id, checkpoint_hash)
            for index, both in enumerate(lengths)
        ]
        write_dataset(root / name / "tiny" / "1.0.0", "tiny", {"train": episodes})


def stored_episode(index: int, num_steps: int, side: str, first_action_id: int, checkpoint_hash: str) -> ExportEpisode:
    rng = np.random.default_rng([index, num_steps])
    info = EpisodeInfo(
        simulator="libero",
        suite="libero_spatial",
        task_id=0,
        task_name="task",
        instruction=INSTRUCTION,
        init_state_id=f"rollout/{index}",
        init_state_hash=f"hash{index}",
        rollout_index=int(side == "chosen"),
        policy="tiny",
        checkpoint_hash=checkpoint_hash,
        policy_settings={"center_crop": False, "unnorm_key": "tiny"},
        status="success" if side == "chosen" else "failure",
        num_steps=num_steps,
    )
    numbers = {
        name: rng.uniform(-1, 1, (num_steps, 7)).astype(np.float32)
        for name in ("token_logps", "sampler_logps", "policy_actions", "actions")
    }
    trajectory = Trajectory(
        info=info,
        images=rng.integers(0, 256, (num_steps, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8),
        action_tokens=rng.integers(first_action_id, first_action_id + 256, (num_steps, 7)).astype(np.int32),
        states=np.zeros((num_steps, 8), np.float32),
        facts={"ee_position": np.zeros((num_steps + 1, 3), np.float32)},
        **numbers,
    )
    return ExportEpisode(trajectory=trajectory, pair_id=f"{index:06d}--x", score=float(side == "chosen"))


def tiny_config(checkpoint: Path, root: Path, **changes: Any) -> TrainConfig:
    """Settings under which a step takes milliseconds; the learning rate is large so that weights move visibly."""
    values: dict[str, Any] = {
        "vla_path": str(checkpoint),
        "dataset_name": "tiny",
        "chosen_traj_dir": root / "chosen",
        "rejected_traj_dir": root / "rejected",
        "run_root_dir": root / "runs",
        "adapter_tmp_dir": root / "adapters",
        "run_name": "run",
        "lora_rank": 2,
        "learning_rate": 1e-2,
        "micro_batch_size": 4,
        "device": "cpu",
    }
    return TrainConfig(**values | changes)


def config_from_json(text: str) -> TrainConfig:
    """What ``config_to_json`` wrote."""
    values = json.loads(text)
    paths = ("chosen_traj_dir", "rejected_traj_dir", "run_root_dir", "adapter_tmp_dir")
    return TrainConfig(**values | {name: Path(values[name]) for name in paths})


def config_to_json(config: TrainConfig) -> str:
    return json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()})
