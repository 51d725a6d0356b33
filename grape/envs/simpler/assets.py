"""SIMPLER's assets: where they are, whether they are whole, and which ones they are.

ManiSkill asks on stdin for what it misses, and builds scenes without a table where one file is gone: objects then fall
for ever behind a plausible background. So everything is checked here, before ManiSkill sees it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from grape.envs.simpler.tasks import BridgeTask
from grape.errors import MissingDependencyError, SimulatorError

BRIDGE = Path("tasks/bridge_v2_real2sim_dataset")
ROBOT = Path("robots/widowx")
DOWNLOAD_HELP = (
    "download them with: grape assets simpler "
    "(they land in $MS_ASSET_DIR/data, or ~/.maniskill/data where that is not set)"
)
_SCENES = {
    "flat_table": ("stages/bridge_table_1_v1.glb", "real_inpainting/bridge_real_eval_1.png", ()),
    "sink": ("stages/bridge_table_1_v2.glb", "real_inpainting/bridge_sink.png", ("sink",)),
}
"""Scene to its table, its background picture and the models that stand in it."""
_VISUAL_FILES = ("textured.obj", "textured.dae", "textured.glb")
"""In ManiSkill's order of preference; one is enough."""
_MODEL_LISTS = ("custom/info_bridge_custom_v0.json", "custom/info_bridge_custom_baked_tex_v0.json")


def asset_root() -> Path:
    """The folder that holds ``robots`` and ``tasks``; ManiSkill reads it once, when first imported."""
    loaded = sys.modules.get("mani_skill")
    if loaded is not None and hasattr(loaded, "ASSET_DIR"):
        return Path(loaded.ASSET_DIR)
    return Path(os.environ.get("MS_ASSET_DIR") or Path.home() / ".maniskill") / "data"


def check_assets(root: Path, task: BridgeTask) -> None:
    """Refuse to go on without everything that the task's scene is built from.

    Raises:
        MissingDependencyError: Files are missing; the message names the first ones and the download.
    """
    if missing := missing_files([*bridge_files(root, task), *robot_files(root)]):
        raise MissingDependencyError(
            f"{task.environment} needs assets that {root} lacks: {name_files(root, missing)}; {DOWNLOAD_HELP}"
        )


def missing_files(files: Iterable[Path]) -> list[Path]:
    """Those of the files that are not there, or empty."""
    return [path for path in files if not path.is_file() or path.stat().st_size == 0]


def name_files(root: Path, files: Sequence[Path]) -> str:
    """The first three, relative to ``root``, and how many more."""
    shown = ", ".join(str(path.relative_to(root)) for path in files[:3])
    return shown + (f" and {len(files) - 3} more" if len(files) > 3 else "")


@functools.lru_cache(maxsize=8)
def asset_digest(root: Path, task: BridgeTask) -> str:
    """First 16 hex digits of a SHA-256 over the task's assets: results of different assets are not comparable.

    Raises:
        SimulatorError: A file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted({*bridge_files(root, task), *robot_files(root), *(root / ROBOT).glob("*.srdf")}):
            digest.update(f"{path.relative_to(root).as_posix()};".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    except OSError as error:
        raise SimulatorError(f"cannot read an asset ({error}); {DOWNLOAD_HELP}") from error
    return digest.hexdigest()[:16]


def bridge_files(root: Path, task: BridgeTask) -> list[Path]:
    """Table, background, model lists and models of a task; what a model's file names is known once that is there."""
    bridge = root / BRIDGE
    table, background, scene_models = _SCENES[task.scene]
    files = [bridge / table, bridge / background, *(bridge / name for name in _MODEL_LISTS)]
    for model in (*(model for _, model in task.objects), *scene_models):
        folder = bridge / "custom" / "models" / model
        visual = next((folder / name for name in _VISUAL_FILES if (folder / name).is_file()), folder / _VISUAL_FILES[0])
        files += [folder / "collision.obj", visual]
        files += _referenced(visual, r"<init_from>([^<]+\.[a-zA-Z]+)</init_from>") if visual.suffix == ".dae" else []
    return files


def robot_files(root: Path) -> list[Path]:
    """The robot's description, and the meshes that it names."""
    urdf = root / ROBOT / "wx250s.urdf"
    return [urdf, *_referenced(urdf, r'filename="([^"]+)"')]


def _referenced(path: Path, pattern: str) -> list[Path]:
    """Files that a file names, relative to its own folder; none where it is missing itself."""
    if not path.is_file():
        return []
    names = re.findall(pattern, path.read_text(encoding="utf-8", errors="replace"))
    return [path.parent / name for name in dict.fromkeys(names)]
