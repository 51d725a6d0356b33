"""Fixtures that several test folders use."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from grape.errors import GrapeError

REPOSITORY = Path(__file__).resolve().parents[1]
SIMPLER_ASSETS = REPOSITORY.parent / "shared" / "simpler_assets"

# A shell's background jobs, and all that they start, ignore Ctrl-C; the tests send it to processes of their own.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Shapes and dtypes of tensors are checked at each call, before anything imports these modules.
install_import_hook(["grape.models", "grape.losses", "grape.trainer.gradient"], "beartype.beartype")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder ``shared`` beside the repository, with the golden data."""
    path = REPOSITORY.parent / "shared"
    if not (path / "golden").is_dir():
        pytest.skip(
            "parity with the reference OpenVLA code is not checked: its recorded outputs (../shared/golden) are not "
            "beside this checkout"
        )
    return path


@pytest.fixture(scope="session")
def simpler() -> None:
    """Skips, with the reason, where SIMPLER cannot run; takes the assets beside this checkout unless told otherwise."""
    for module in ("mani_skill", "sapien"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'SIMPLER is not tested: {module} is not installed (pip install "grape-vla[simpler]")')
    from grape.envs.simpler.assets import asset_root, check_assets
    from grape.envs.simpler.package import rendering_device
    from grape.envs.simpler.tasks import BRIDGE_TASKS
    from grape.envs.spawn import call

    if SIMPLER_ASSETS.is_dir():
        os.environ.setdefault("MS_ASSET_DIR", str(SIMPLER_ASSETS))
    try:
        for task in BRIDGE_TASKS:
            check_assets(asset_root(), task)
        call(rendering_device)  # an earlier test may have loaded TensorFlow into this process
    except GrapeError as error:
        pytest.skip(f"SIMPLER is not tested: {error}")
