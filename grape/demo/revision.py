"""Which commits a result belongs to: that of its plan, and that of the code."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import grape
from grape.errors import ConfigError

NOT_COMMITTED = "not committed"
ROOT = Path(grape.__file__).resolve().parents[1]
"""Folder that holds the package, which is the repository's where it runs from a checkout."""
CODE = ("grape", "finetune.py", "constraints.txt")
"""What of the repository decides a result, beside the plan and the policy that it names."""
_INSIST = "or pass --allow_dirty True and say so"


def committed_revision(path: Path) -> str:
    """The commit that holds ``path`` exactly as it is on disk.

    Raises:
        ConfigError: The file is not committed, or differs from what is.
    """
    advice = f"commit the plan before its test states are touched, {_INSIST}"
    folder = path.resolve().parent
    if shutil.which("git") is None:
        raise ConfigError(f"git is not installed, so nobody can tell whether {path} was committed first; {advice}")
    if _git(folder, "ls-files", "--error-unmatch", path.name) is None:
        raise ConfigError(f"{path} is not under version control; {advice}")
    if _git(folder, "status", "--porcelain", "--", path.name) != "":
        raise ConfigError(f"{path} differs from its last commit; {advice}")
    revision = _git(folder, "log", "-1", "--format=%H", "--", path.name)
    if not revision:
        raise ConfigError(f"{path} has no commit yet; {advice}")
    return revision


def code_revision(root: Path = ROOT, policy: str | None = None) -> dict[str, Any]:
    """The repository's newest commit, and the files of ``CODE`` and of the policy that differ from it or are new.

    Args:
        root: Folder that holds the package ``grape``.
        policy: Checkpoint folder or hub id; only a folder of the repository counts.

    Returns:
        ``code_commit`` (``NOT_COMMITTED`` where the package is in no repository, as after ``pip install``) and
        ``code_changed``, file names.
    """
    tracked = shutil.which("git") and _git(root, "ls-files", "--error-unmatch", "grape/__init__.py")
    commit = _git(root, "rev-parse", "HEAD") if tracked else None
    if not commit:
        return {"code_commit": NOT_COMMITTED, "code_changed": []}
    folder = Path(policy).resolve() if policy is not None else root
    paths = [*CODE, str(folder)] if root in folder.parents and folder.is_dir() else CODE
    changed = _git(root, "diff", "--name-only", "HEAD", "--", *paths) or ""
    new = _git(root, "ls-files", "--others", "--exclude-standard", "--", *paths) or ""
    return {"code_commit": commit, "code_changed": [*changed.splitlines(), *new.splitlines()]}


def require_committed_code(code: dict[str, Any]) -> None:
    """Refuse code that nobody could get back.

    Raises:
        ConfigError: The code of a proof is not committed as it stands.
    """
    advice = f"a proof must be traceable to its code: commit the code first, {_INSIST}"
    if code["code_commit"] == NOT_COMMITTED:
        raise ConfigError(f"the package grape is in no git repository; {advice}")
    if code["code_changed"]:
        raise ConfigError(f"{', '.join(code['code_changed'])} differ from commit {code['code_commit'][:12]}; {advice}")


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
