"""What an environment shows, as digests: here and in a process that starts with the other initial state."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

from grape.envs.protocol import Env, InitStateId, Observation, Snapshot
from grape.envs.worker import EnvSpec

TRAIN, OFFICIAL = InitStateId("train", 17), InitStateId("official", 3)


def fingerprint(observation: Observation) -> str:
    """Digest of everything a policy may see."""
    return hashlib.sha256(observation.image.tobytes() + observation.state.tobytes()).hexdigest()


def shown(env: Env, states: tuple[InitStateId, ...], snapshot: Snapshot, actions: np.ndarray) -> dict[str, list[str]]:
    """Digests after a reset to each state, after going back to ``snapshot``, and after each action from there."""
    seen = {str(state): [fingerprint(env.reset(state)), env.init_state_hash] for state in states}
    seen["restored"] = [fingerprint(env.restore(snapshot))]
    seen["restored"] += [fingerprint(env.step(action).observation) for action in actions]
    return seen


def assert_a_fresh_process_agrees(env: Env, spec: EnvSpec, snapshot: Snapshot, actions: np.ndarray, folder: Path):
    """Compare with another process's environment, which ``spec`` makes; pictures and states to the bit."""
    path = folder / "request.pickle"
    path.write_bytes(pickle.dumps((spec, snapshot, actions)))
    command = [sys.executable, "-m", "tests.envs.fresh_process", str(path)]
    repository = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout.splitlines()[-1])
    assert there == shown(env, (TRAIN, OFFICIAL), snapshot, actions)


if __name__ == "__main__":
    spec, snapshot, actions = pickle.loads(Path(sys.argv[1]).read_bytes())
    env = spec.make()
    seen = shown(env, (OFFICIAL, TRAIN), snapshot, actions)
    env.close()
    print(json.dumps(seen))
