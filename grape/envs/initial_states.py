"""Where objects stand in initial states, and how far two sets of states are apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grape.envs.protocol import Env, InitStateId
from grape.errors import ConfigError


def placed_positions_m(env: Env, init_states: Sequence[InitStateId]) -> np.ndarray:
    """(num_states, num_objects, 3) m: where ``env``'s movable objects settle in each state.

    Ends the episode under way, and raises what ``reset`` does.
    """
    rows = []
    for init_state in init_states:
        env.reset(init_state, render=False)
        rows.append(env.movable_positions_m())
    return np.stack(rows) if rows else np.empty((0, len(env.movable_names), 3))


def nearest_state_distance_m(test_states: np.ndarray, used_states: np.ndarray) -> np.ndarray:
    """Distance of each test state to the nearest state that training, tuning or rollouts used.

    The distance of two states is the largest displacement of any movable object, so a small one means that *every*
    object stands almost where it stood.

    Args:
        test_states: (num_test, num_objects, 3) m, positions of the movable objects.
        used_states: (num_used, num_objects, 3) m, same objects in the same order.

    Returns:
        (num_test,) m; infinite where ``used_states`` is empty.

    Raises:
        ConfigError: The arrays describe different objects.
    """
    if test_states.ndim != 3 or used_states.ndim != 3 or test_states.shape[1:] != used_states.shape[1:]:
        raise ConfigError(
            f"got positions of shapes {test_states.shape} and {used_states.shape}, wanted (states, the same objects, 3)"
        )
    if not len(used_states):
        return np.full(len(test_states), np.inf)
    return np.array([np.linalg.norm(used_states - state, axis=-1).max(axis=1).min() for state in test_states])
