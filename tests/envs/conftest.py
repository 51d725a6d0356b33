"""Real simulators, which take seconds to build and are therefore shared by a module's tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def make_env():
    """Builds environments in the fast profile, with small pictures, and closes them after the module."""
    pytest.importorskip("libero", reason='LIBERO is not installed: pip install "grape-vla[libero]"')
    from grape.envs.libero import make_libero_env

    made = []

    def make(suite: str, task_id: int, **settings):
        env = make_libero_env(suite, task_id, **{"render_profile": "fast", "camera_size": 64} | settings)
        made.append(env)
        return env

    yield make
    for env in made:
        env.close()


@pytest.fixture(scope="module")
def make_simpler(simpler: None):
    """Builds SIMPLER environments, and closes them after the module."""
    from grape.envs.simpler import make_simpler_env, tasks

    made = []

    def make(task_id: int, *, suite: str = tasks.SUITE, **settings):
        env = make_simpler_env(suite, task_id, **settings)
        made.append(env)
        return env

    yield make
    for env in made:
        env.close()
