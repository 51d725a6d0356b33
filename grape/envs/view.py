"""A look at a task's scene, with a simulator that is started for it."""

from __future__ import annotations

from grape.envs.protocol import InitStateId
from grape.envs.suites import find_simulator
from grape.scene import SceneView


def take_view(suite: str, task_id: int, init_state: InitStateId) -> SceneView:
    """Start the simulator, reset, and look; the picture has the benchmark's own size and rendering.

    Call it in a process of its own: ``grape.envs.spawn.call(take_view, suite, task_id, init_state)``. TensorFlow and
    the simulators do not bear each other, and a simulator that crashes takes its process with it.

    Raises:
        ConfigError: There is no such suite, task or state.
        MissingDependencyError: The simulator, or its assets, are not installed.
        SimulatorError: It cannot be started or reset, or has no depth and segmentation (the original SIMPLER).
    """
    env = find_simulator(suite).make_env(suite, task_id)
    try:
        env.reset(init_state)
        return env.view()
    finally:
        env.close()
