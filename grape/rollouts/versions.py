"""The versions that a run is recorded with, and that every machine of a run has to share."""

from __future__ import annotations

import platform
from pathlib import Path

from grape.envs.suites import find_simulator
from grape.optional import installed_versions

LIBRARIES = ("numpy", "pillow", "torch", "transformers")
"""Distributions whose version can change an episode, beside the simulator's own."""


def library_versions(suite: str, simpler_python: Path | None = None) -> dict[str, str]:
    """Versions of Python, the toolkit and the libraries that can change an episode of this suite.

    Args:
        suite: Whose simulator.
        simpler_python: The interpreter of a simulator that needs its own.

    Raises:
        GrapeError: That interpreter is not named, cannot be run or lacks a package.
    """
    simulator = find_simulator(suite)
    versions = toolkit_versions()
    if simulator.interpreter_versions is None:
        return versions | installed_versions(simulator.libraries)
    return versions | simulator.interpreter_versions(suite, None if simpler_python is None else str(simpler_python))


def toolkit_versions() -> dict[str, str]:
    """Versions of Python, the toolkit and the libraries that policies act with."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **installed_versions(("grape-vla", *LIBRARIES))}
