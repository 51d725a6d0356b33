"""Answers are kept, found again, given to others, never believed when damaged; and what comes with nobody to ask."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grape.cli.main import main
from grape.constraints import load_constraints
from tests.constraints.proposals import answers_by_hand as answers
from tests.constraints.proposals.chat_server import ChatServer, completion
from tests.constraints.proposals.conftest import Shell


@pytest.fixture
def asked(shell: Shell, server: ChatServer) -> Shell:
    """After a question that took a repair: two entries in the cache."""
    server.play(completion(answers.NOT_JSON), completion(answers.GOOD))
    assert shell.run()[0] == 0
    server.play(completion(answers.GOOD))
    return shell


def test_what_was_answered_is_not_asked_again(asked: Shell, server: ChatServer) -> None:
    before = load_constraints(asked.out)
    code, shown, _ = asked.run("--overwrite", "--stream", "--timeout_s", "9")
    assert code == 0 and server.requests == [] and load_constraints(asked.out) == before
    assert "2 of them from the cache" in shown and "0 in, 0 out" in shown
    provenance = json.loads(asked.out.with_suffix(".proposal.json").read_text())
    assert [(one["from_cache"], one["input_tokens"]) for one in provenance["answers"]] == [(True, 1200), (True, 1200)]
    assert {one["cache_entry"] for one in provenance["answers"]} == {path.name for path in asked.cache.iterdir()}


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "another"],
        ["--temperature", "0.5"],
        ["--seed", "1"],
        ["--structured", "off"],
        ["--objective", "safety"],
        ["--task", "put the bowl on the cup"],
        ["--image", "other.png"],
    ],
    ids=lambda flags: flags[0],
)
def test_what_decides_an_answer_asks_anew(asked: Shell, server: ChatServer, flags: list[str]) -> None:
    pixels = np.asarray(Image.open("scene.png")).copy()
    pixels[0, 0] += 1
    Image.fromarray(pixels).save("other.png")
    assert asked.run("--overwrite", *flags)[0] == 0 and len(server.requests) == 1


def test_refresh_asks_anew_and_replaces(asked: Shell, server: ChatServer) -> None:
    assert asked.run("--overwrite", "--refresh")[0] == 0 and len(server.requests) == 1
    assert asked.run("--overwrite", "--offline", ask=False)[0] == 0
    assert len(json.loads(asked.out.with_suffix(".proposal.json").read_text())["answers"]) == 1


def test_offline_says_what_is_missing_and_calls_nobody(shell: Shell, server: ChatServer, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-written-by-hand")
    server.play(completion(answers.GOOD))
    code, _, complaint = shell.run("--offline")
    assert code == 1 and server.requests == [] and str(shell.cache) in complaint and ".json" in complaint
    assert not shell.out.exists()


def test_a_shipped_cache_works_elsewhere(asked: Shell, tmp_path: Path) -> None:
    """Another folder, another home, no network settings, a process of its own; the picture file was written anew."""
    there = tmp_path / "there"
    shutil.copytree(asked.cache, there / "answers")
    shutil.copy("keypoints.json", there)
    Image.open("scene.png").save(there / "scene.png", compress_level=1)
    assert (there / "scene.png").read_bytes() != Path("scene.png").read_bytes()
    for path in asked.cache.iterdir():
        path.unlink()
    question = ["--task", answers.TASK, "--image", "scene.png", "--keypoints", "keypoints.json", "--model", "by-hand"]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "grape.cli.main", "constraints", "propose", *question, "--offline"]
        + ["--cache_dir", "answers", "--out", "bowl.json"],
        cwd=there, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "HOME": str(there)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert load_constraints(there / "bowl.json") == load_constraints(asked.out)


def entry_of(shell: Shell, text: str) -> Path:
    [path] = [one for one in shell.cache.iterdir() if json.loads(one.read_text())["answer"]["text"] == text]
    return path


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "not utf-8": lambda data: b"\xff" + data,
    "answer changed": lambda data: data.replace(b"grasped", b"robot_contact"),
    "question changed": lambda data: data.replace(b'"by-hand"', b'"other"', 1),
    "list": lambda data: b"[]",
    "deep": lambda data: b"[" * 100_000,
    "other version": lambda data: data.replace(b'"format_version": 1', b'"format_version": 99'),
    "field gone": lambda data: data.replace(b'"time"', b'"tmie"'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_reported_and_asked_anew(asked: Shell, server: ChatServer, damage) -> None:
    path = entry_of(asked, answers.GOOD)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    code, _, complaint = asked.run("--overwrite", "--offline", ask=False)
    assert code == 1 and path.name in complaint and server.requests == []
    code, shown, _ = asked.run("--overwrite")
    assert code == 0 and path.name in shown and "asked anew" in shown and len(server.requests) == 1
    assert json.loads(path.read_text())["answer"] == json.loads(whole)["answer"]


def test_an_entry_under_another_s_name_is_not_believed(asked: Shell) -> None:
    first, second = entry_of(asked, answers.NOT_JSON), entry_of(asked, answers.GOOD)
    shutil.copy(second, first)
    code, _, complaint = asked.run("--overwrite", "--offline", ask=False)
    assert code == 1 and "does not hold the answer" in complaint


def test_no_endpoint_but_a_cache(asked: Shell) -> None:
    assert asked.run("--overwrite", ask=False)[0] == 0 and load_constraints(asked.out).source == "by-hand"


@pytest.mark.parametrize("model", [[], ["--model", "by-hand", "--image", "scene.png"]], ids=["no model", "no answer"])
@pytest.mark.parametrize(("suite", "source"), [("simpler_bridge", "shipped"), ("libero_goal", "bddl")])
def test_nobody_to_ask_about_a_suite_s_task(shell: Shell, suite: str, source: str, model: list[str]) -> None:
    if suite == "libero_goal":
        pytest.importorskip("libero")
    shell.capsys.readouterr()
    origin = Path(f"runs/constraints/{suite}_1.proposal.json")
    origin.parent.mkdir(parents=True)
    origin.write_text("of a model's answer that was here before")
    assert main(["constraints", "propose", "--suite", suite, "--task_id", "1", *model]) == 0
    shown = shell.capsys.readouterr().out
    assert "No model was asked" in shown and f"source: {source}" in shown
    assert load_constraints(Path(f"runs/constraints/{suite}_1.json")).source == source
    assert not origin.exists()


def test_nobody_to_ask_about_a_task_in_words(shell: Shell) -> None:
    code, _, complaint = shell.run(ask=False)
    assert code == 1 and "docs/constraints.md" in complaint and not shell.out.exists()


def test_whom_to_ask_without_a_model(shell: Shell, server: ChatServer) -> None:
    shell.capsys.readouterr()
    flags = ["--suite", "simpler_bridge", "--task_id", "1", "--base_url", server.base_url]
    assert main(["constraints", "propose", *flags]) == 1
    assert "--model" in shell.capsys.readouterr().err
