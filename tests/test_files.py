"""Folders that take another's place, and locks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from grape.errors import TrainingError
from grape.files import hold_lock, replace_folder


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_a_folder_takes_another_s_place(tmp_path: Path) -> None:
    target = folder(tmp_path / "target", "old")
    folder(tmp_path / ".tmp-stale-target", "left by a kill")
    replace_folder(folder(tmp_path / "new", "new"), target)
    assert (target / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["target"]


def test_where_the_new_one_cannot_be_moved_the_old_one_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, new, rename = folder(tmp_path / "target", "old"), folder(tmp_path / "new", "new"), os.rename

    def failing(source: Path, to: Path) -> None:
        if source == new:
            raise OSError("no")
        rename(source, to)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no"):
        replace_folder(new, target)
    assert (target / "file").read_text() == "old"


def test_a_lock_keeps_others_out_until_it_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    busy = pytest.raises(TrainingError, match="another run is writing into .*run; wait for it, or pass another")
    with hold_lock(path, TrainingError, advice="wait"), busy:
        hold_lock(path, TrainingError, advice="pass another").__enter__()
    with hold_lock(path, TrainingError, advice="wait"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot write into"):
        hold_lock(tmp_path / "file" / ".lock", TrainingError, advice="wait").__enter__()
