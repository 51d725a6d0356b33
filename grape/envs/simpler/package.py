"""Finding and importing ManiSkill and SAPIEN, and the Vulkan driver that they render with.

Everything that touches the process's environment for SIMPLER's sake is in this module.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from grape.envs.guards import refuse_tensorflow
from grape.envs.simpler.assets import asset_root, check_assets
from grape.envs.simpler.tasks import BridgeTask
from grape.errors import SimulatorError
from grape.optional import installed_versions, require

EXTRA = "simpler"
MANISKILL_LOGGER = "mani_skill "
"""With the space."""
TASK_MODULE = "mani_skill.envs.tasks.digital_twins.bridge_dataset_eval.put_on_in_scene"
DRIVER_VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
"""How a Vulkan loader is told which drivers there are; the second is the name that old loaders know."""
PRIVATE_DRIVER = Path("share/grape-lavapipe/lvp_icd.json")
"""Mesa's software driver as `.ci/lavapipe` unpacks it, below the virtual environment: the system's stays untouched."""
VULKAN_HELP = (
    "SAPIEN needs a Vulkan driver; without a GPU that is Mesa's lavapipe, newer than Debian 12's own 22.3.6, which is "
    "refused: `bash .ci/lavapipe` unpacks one from bookworm-backports below the virtual environment and changes "
    "nothing else; or set VK_DRIVER_FILES and VK_ICD_FILENAMES to the .json of an installed one"
)


def import_tasks(task: BridgeTask) -> ModuleType:
    """Import the module with ManiSkill's bridge tasks, after everything that it would miss has been checked.

    Raises:
        MissingDependencyError: ManiSkill or the task's assets are not installed.
        SimulatorError: TensorFlow is loaded in this process.
    """
    check_assets(asset_root(), task)
    refuse_tensorflow("SIMPLER")
    select_driver()
    with quiet():
        require("sapien", extra=EXTRA)
        return require(TASK_MODULE, extra=EXTRA)


def select_driver() -> None:
    """Name the private software driver to the Vulkan loader, unless there is none or the user has named another."""
    driver = Path(sys.prefix) / PRIVATE_DRIVER
    if driver.is_file() and not any(os.environ.get(name) for name in DRIVER_VARIABLES):
        os.environ |= {name: str(driver) for name in DRIVER_VARIABLES}  # simulator processes inherit them


def rendering_device() -> str:
    """Name of the device that pictures come from, e.g. ``"llvmpipe (LLVM 15.0.6, 256 bits)"``.

    Raises:
        MissingDependencyError: SAPIEN is not installed.
        SimulatorError: There is no usable Vulkan driver, or TensorFlow is loaded in this process.
    """
    refuse_tensorflow("SIMPLER")
    select_driver()
    with quiet():
        sapien: Any = require("sapien", extra=EXTRA)
        try:
            summary = sapien.render.get_device_summary()
        except RuntimeError as error:
            raise SimulatorError(f"no Vulkan driver can be used ({error}); {VULKAN_HELP}") from error
    return summary.partition("GPU:")[2].partition("\n")[0].strip()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Spare the user what ManiSkill and SAPIEN say at each start: built-in loader, mimic joints, initial poses."""
    logger = logging.getLogger(MANISKILL_LOGGER)
    was_disabled = logger.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = was_disabled


def package_versions() -> dict[str, str]:
    """Versions of whatever changes pictures or physics, for the record."""
    return installed_versions(("mani-skill", "sapien", "torch", "numpy"))
