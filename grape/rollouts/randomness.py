"""Random numbers of a rollout: a function of what is rolled out, never of workers, batches or order."""

from __future__ import annotations

import zlib

import numpy as np

from grape.trajectory import ACTION_DIM


def step_uniforms(
    *, seed: int, suite: str, task_id: int, init_state_id: str, rollout_index: int, step: int
) -> np.ndarray:
    """Return the (7,) uniforms in [0, 1) with which the action of one step is sampled."""
    entropy = [seed, zlib.crc32(suite.encode()), task_id, zlib.crc32(init_state_id.encode()), rollout_index, step]
    return np.random.default_rng(np.random.SeedSequence(entropy)).random(ACTION_DIM)
