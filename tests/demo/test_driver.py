"""A wrong plan is told before its first look at a state; a right one keeps what it started with."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grape.cli.demo import check_command
from grape.config.demo import DemoConfig
from grape.demo import driver
from grape.demo.driver import run_demo
from grape.demo.revision import code_revision
from grape.errors import ConfigError, MissingDependencyError
from tests.demo.test_plan import changed
from tests.demo.test_revision import git

needs_libero = pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="needs the extra libero")


def refuse_to_run(name: str, argv: Sequence[str]) -> int:
    raise AssertionError(f"{name} was run")


def write_plan(folder: Path, **entries: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps(changed(**entries)))
    return path


def test_a_draft_never_touches_test_states(tmp_path: Path) -> None:
    config = DemoConfig(plan=write_plan(tmp_path, draft=True), run_dir=tmp_path / "run", allow_dirty=True)
    with pytest.raises(ConfigError, match="draft"):
        run_demo(config, refuse_to_run, check_command)


@needs_libero
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"evaluate": {"max_stepps": 5}}, r"stage evaluate-before \(grape eval\): .*--max_stepps"),
        ({"collect": {"num_rollouts": 0}}, r"stage collect \(grape collect\): .*num_rollouts is 0"),
        ({"score": {"lambda_selff": 1}}, r"stage score \(grape score\): .*--lambda_selff"),
        ({"score": {"preset": "papper"}}, r"stage score \(grape score\): unknown preset 'papper'"),
        ({"pair": {"strategy": "best"}}, r"stage pair \(grape pair\): .*--strategy"),
        ({"name": "Tiny-Plan"}, r"stage pair \(grape pair\): dataset_name 'Tiny-Plan'"),
        ({"train": {"bta": 1}}, r"stage train \(grape train\): .*--bta"),
        ({"train": {"beta": -1}}, r"stage train \(grape train\): beta=-1"),
        ({"supervised_arm": True, "sft": {"lora_rank": 0}}, r"stage train-supervised \(grape sft\): lora_rank=0"),
        ({"supervised_arm": True, "sft": {"lorank": 4}}, r"stage train-supervised \(grape sft\): .*--lorank"),
        ({"tasks": {"libero_objekt": [0]}}, "tasks: unknown suite 'libero_objekt'"),
        ({"tasks": {"libero_object": [0, 10]}}, "tasks: got task 10 of libero_object"),
        ({"test_states": {"split": "official", "num_per_task": 51}}, "but it has 50 official states"),
    ],
)
def test_what_a_late_stage_would_refuse_is_told_before_the_first_look(
    tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    path = write_plan(tmp_path, **entries)
    with pytest.raises(ConfigError, match=message) as caught:
        run_demo(DemoConfig(plan=path, run_dir=tmp_path / "run", allow_dirty=True), refuse_to_run, check_command)
    assert str(caught.value).startswith(str(path))
    assert {entry.name for entry in tmp_path.iterdir()} == {"plan.json"}, "no look was logged, no run was begun"


def test_missing_assets_are_told_before_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path / "nothing"))
    monkeypatch.delitem(sys.modules, "mani_skill", raising=False)  # which remembers another folder
    official = {"split": "official", "num_per_task": 2}
    path = write_plan(tmp_path, tasks={"simpler_bridge": [0]}, test_states=official, evaluate={}, collect={})
    with pytest.raises(MissingDependencyError, match="grape assets simpler"):
        run_demo(DemoConfig(plan=path, run_dir=tmp_path / "run", allow_dirty=True), refuse_to_run, check_command)
    assert {entry.name for entry in tmp_path.iterdir()} == {"plan.json"}


def stop(name: str, argv: Sequence[str]) -> int:
    raise KeyboardInterrupt


@needs_libero
def test_other_notes_continue_the_run_under_the_commit_that_it_started_with(tmp_path: Path) -> None:
    heldout = {"split": "heldout", "num_per_task": 2}
    config = DemoConfig(plan=write_plan(tmp_path, test_states=heldout), run_dir=tmp_path / "run", device="cpu")
    git(tmp_path, "init")
    commits = []
    for notes in ("", "a word"):
        write_plan(tmp_path, test_states=heldout, notes=notes)
        git(tmp_path, "add", "plan.json")
        git(tmp_path, "commit", "-m", "plan")
        commits.append(git(tmp_path, "rev-parse", "HEAD"))
        with pytest.raises(KeyboardInterrupt):
            run_demo(config, stop, check_command)
        assert json.loads((tmp_path / "run" / "demo.json").read_text())["plan_commit"] == commits[0]
    assert commits[0] != commits[1]
    record = json.loads((tmp_path / "run" / "stages" / "evaluate-before.json").read_text())
    assert record["attempts"] == 2
    assert record["ran_with"] == [{**code_revision(), "device": "cpu", "num_workers": 2}]

    write_plan(tmp_path, test_states=heldout, alpha=0.01)
    with pytest.raises(ConfigError, match=r"plan\.alpha was 0\.05, now it is 0\.01"):
        run_demo(config, stop, check_command)


@needs_libero
def test_changed_code_never_touches_test_states_unless_the_user_insists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "grape"
    package.mkdir()
    (package / "__init__.py").write_text("")
    path = write_plan(tmp_path)
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "all")
    # This repository's own state is not the test's to decide, so another one stands for it.
    monkeypatch.setattr(driver, "code_revision", lambda **_: code_revision(tmp_path))
    run = tmp_path / "run"
    (package / "__init__.py").write_text("changed = 1")
    with pytest.raises(ConfigError, match="grape/__init__.py differ from commit"):
        run_demo(DemoConfig(plan=path, run_dir=run, device="cpu"), refuse_to_run, check_command)
    assert not run.exists() and not (tmp_path / "log.md").exists()
    with pytest.raises(KeyboardInterrupt):
        run_demo(DemoConfig(plan=path, run_dir=run, device="cpu", allow_dirty=True), stop, check_command)
    record = json.loads((run / "stages" / "evaluate-before.json").read_text())
    assert record["ran_with"][0]["code_changed"] == ["grape/__init__.py"]
