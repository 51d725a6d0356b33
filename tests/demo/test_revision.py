"""Results on test states belong to a committed plan and to committed code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from grape.demo.revision import NOT_COMMITTED, code_revision, committed_revision, require_committed_code
from grape.errors import ConfigError
from tests.demo.test_plan import CONTENT, changed


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_plan_counts_as_committed_only_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(CONTENT))
    with pytest.raises(ConfigError, match="not under version control"):
        committed_revision(path)
    git(tmp_path, "init")
    with pytest.raises(ConfigError, match="not under version control"):
        committed_revision(path)
    git(tmp_path, "add", ".")
    with pytest.raises(ConfigError, match="differs from its last commit"):
        committed_revision(path)
    git(tmp_path, "commit", "-m", "plan")
    first = committed_revision(path)
    assert len(first) == 40
    (tmp_path / "other").write_text("unrelated")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "other")
    assert committed_revision(path) == first, "the commit is the plan's, not the newest"
    path.write_text(json.dumps(changed(alpha=0.01)))
    with pytest.raises(ConfigError, match="differs from its last commit"):
        committed_revision(path)


def test_code_is_traced_to_its_commit_and_what_differs_from_it(tmp_path: Path) -> None:
    package = tmp_path / "grape"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "README.md").write_text("one")
    assert code_revision(tmp_path) == {"code_commit": NOT_COMMITTED, "code_changed": []}
    with pytest.raises(ConfigError, match="in no git repository"):
        require_committed_code(code_revision(tmp_path))

    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "code")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "README.md").write_text("two")  # decides no result
    assert code_revision(tmp_path) == {"code_commit": commit, "code_changed": []}
    require_committed_code(code_revision(tmp_path))

    policy = tmp_path / "policy"  # of the plan: another one, or a hub id, decides nothing
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    assert code_revision(tmp_path, policy="openvla/openvla-7b")["code_changed"] == []
    assert code_revision(tmp_path, policy=str(policy))["code_changed"] == ["policy/config.json"]

    (package / "__init__.py").write_text("changed = 1")
    git(tmp_path, "add", ".")
    (package / "new.py").write_text("")
    (tmp_path / "constraints.txt").write_text("")
    changed_files = ["grape/__init__.py", "constraints.txt", "grape/new.py"]
    assert code_revision(tmp_path) == {"code_commit": commit, "code_changed": changed_files}
    with pytest.raises(ConfigError, match=f"grape/new.py differ from commit {commit[:12]}"):
        require_committed_code(code_revision(tmp_path))
