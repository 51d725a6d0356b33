"""Storage that survives kills, full disks and second runs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from grape.errors import RecordError
from grape.rollouts.store import RolloutStore, RunWriter
from tests.rollouts.rollout_records import make_trajectory

SETTINGS = {"seed": 0, "temperature": 1.0, "task_ids": (0, 1)}
REPOSITORY = Path(__file__).parents[2]

WRITE_FOREVER = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.rollouts.rollout_records import make_trajectory
from grape.rollouts.store import RunWriter
with RunWriter(sys.argv[1], settings={"seed": 0}, resume=True) as writer:
    index = 0
    while True:
        trajectory = make_trajectory(index, num_steps=20, side=64)
        if not writer.has(trajectory.info.episode_id):
            writer.save(trajectory)
            print(trajectory.info.episode_id, flush=True)
        index += 1
"""

WRITE_UNTIL_FULL = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from tests.rollouts.rollout_records import make_trajectory
from grape.errors import RecordError
from grape.rollouts.store import RunWriter
with RunWriter(sys.argv[1], settings={"seed": 0}) as writer:
    writer.save(make_trajectory(0))
    if sys.argv[3] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        for index in range(1, 50):
            writer.save(make_trajectory(index, num_steps=20, side=64))
    except RecordError as error:
        print(error)
"""


def start(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_episode_comes_back_whole(tmp_path: Path) -> None:
    wanted = make_trajectory(4)
    with RunWriter(tmp_path, settings=SETTINGS) as writer:
        writer.save(wanted)
    store = RolloutStore(tmp_path)
    episode_id = wanted.info.episode_id
    assert store.has(episode_id) and store.episode_ids() == [episode_id]
    got = store.load(episode_id)
    assert got.info == wanted.info == store.info(episode_id) == next(store.infos())
    for name in ("images", "action_tokens", "token_logps", "sampler_logps", "policy_actions", "actions", "states"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
    np.testing.assert_array_equal(got.facts["ee_position"], wanted.facts["ee_position"])


def test_an_episode_that_crashed_at_once_can_be_stored(tmp_path: Path) -> None:
    with RunWriter(tmp_path, settings=SETTINGS) as writer:
        writer.save(make_trajectory(0, num_steps=0, status="crashed"))
        [got] = map(writer.load, writer.episode_ids())
        assert (got.info.status, got.info.error, len(got.images)) == ("crashed", "the simulator died", 0)
        writer.save(make_trajectory(0))  # the second attempt takes its place
        assert [info.status for info in writer.infos()] == ["success"]


def test_outcomes_alone(tmp_path: Path) -> None:
    wanted = make_trajectory(1)
    with RunWriter(tmp_path, settings=SETTINGS, keep="outcome") as writer:
        writer.save(wanted)
        assert [*writer.infos()] == [wanted.info]
        with pytest.raises(RecordError, match="holds the outcome alone"):
            writer.load(wanted.info.episode_id)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no run"):
        RolloutStore(tmp_path)


def test_a_second_run_is_refused_without_resume(tmp_path: Path) -> None:
    with RunWriter(tmp_path, settings=SETTINGS) as writer:
        writer.save(make_trajectory(0))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RecordError, match="already holds a run; continue it with --resume"):
        RunWriter(tmp_path, settings=SETTINGS)
    assert sorted(tmp_path.rglob("*")) == before
    with RunWriter(tmp_path, settings=SETTINGS, resume=True) as writer:
        assert writer.has(make_trajectory(0).info.episode_id)


def test_resuming_under_other_settings_names_both(tmp_path: Path) -> None:
    RunWriter(tmp_path, settings=SETTINGS, versions={"mujoco": "3.3.2"}).close()
    with pytest.raises(RecordError, match=r"started with temperature = 1\.0, now it is 0\.5"):
        RunWriter(tmp_path, settings={**SETTINGS, "temperature": 0.5}, versions={"mujoco": "3.3.2"}, resume=True)
    with pytest.raises(RecordError, match=r"started with mujoco = '3\.3\.2', now it is '3\.4\.0'"):
        RunWriter(tmp_path, settings=SETTINGS, versions={"mujoco": "3.4.0"}, resume=True)
    with pytest.raises(RecordError, match=r"started with top_p = None, now it is 0\.9"):
        RunWriter(tmp_path, settings={**SETTINGS, "top_p": 0.9}, versions={"mujoco": "3.3.2"}, resume=True)
    RunWriter(tmp_path, settings=SETTINGS, versions={"mujoco": "3.3.2"}, resume=True).close()  # and none is left locked


def test_episodes_of_unknown_settings_are_not_taken_over(tmp_path: Path) -> None:
    with RunWriter(tmp_path, settings=SETTINGS, keep="outcome") as writer:
        writer.save(make_trajectory(0))
    (tmp_path / "run.json").unlink()
    for resume in (True, False):
        with pytest.raises(RecordError, match=r"holds episodes but no run\.json"):
            RunWriter(tmp_path, settings={**SETTINGS, "temperature": 0.5}, keep="outcome", resume=resume)
    assert not (tmp_path / "run.json").exists()


def test_a_run_from_before_a_setting_had_a_name_can_be_resumed(tmp_path: Path) -> None:
    RunWriter(tmp_path, settings=SETTINGS).close()
    named = {**SETTINGS, "consecutive_successes": 1, "prompt_style": "template", "image_resize": "lanczos"}
    RunWriter(tmp_path, settings=named, resume=True).close()
    with pytest.raises(RecordError, match="started with prompt_style = 'template', now it is 'bare'"):
        RunWriter(tmp_path, settings={**named, "prompt_style": "bare"}, resume=True)
    with pytest.raises(RecordError, match="started with consecutive_successes = 1, now it is None"):
        RunWriter(tmp_path, settings={**named, "consecutive_successes": None}, resume=True)


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    child = start(WRITE_FOREVER, tmp_path, REPOSITORY)
    try:
        assert child.stdout is not None and child.stdout.readline()
        with pytest.raises(RecordError, match=f"in use by another run .process {child.pid} on "):
            RunWriter(tmp_path, settings={"seed": 0}, resume=True)
    finally:
        child.kill()
        child.communicate()
    RunWriter(tmp_path, settings={"seed": 0}, resume=True).close()  # the lock dies with its holder


def test_kills_lose_nothing_that_was_finished(tmp_path: Path) -> None:
    moments = random.Random(0)
    finished: list[str] = []
    num_interrupted_writes = 0
    for kill in range(60):
        if kill >= 12 and num_interrupted_writes:
            break
        child = start(WRITE_FOREVER, tmp_path, REPOSITORY)
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(moments.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        rest, error = child.communicate()
        assert child.returncode == -signal.SIGKILL, error
        num_interrupted_writes += any((tmp_path / "episodes").glob(".*.tmp"))
        announced = (first + rest).split()
        assert not set(announced) & set(finished), "resuming repeated an episode"
        finished += announced
        store = RolloutStore(tmp_path)
        stored = [store.load(name).info.episode_id for name in store.episode_ids()]  # each is whole
        assert set(finished) <= set(stored)
        assert len(stored) <= len(finished) + 1  # one may have been stored but not announced
        finished = stored
    assert num_interrupted_writes > 0, "no kill fell into a write: the test has lost its bite"
    for got in map(store.load, stored):
        wanted = make_trajectory(int(got.info.init_state_id.removeprefix("rollout/")), num_steps=20, side=64)
        np.testing.assert_array_equal(got.images, wanted.images)
    with RunWriter(tmp_path, settings={"seed": 0}, resume=True):
        assert not [*tmp_path.rglob("*.tmp")], "resuming leaves half-written files"


def check_full_disk(run_dir: Path, kind: str) -> None:
    child = start(WRITE_UNTIL_FULL, run_dir, REPOSITORY, kind)
    printed, error = child.communicate(timeout=60)
    assert child.returncode == 0, error
    assert "could not be written" in printed and "all earlier episodes are safe" in printed
    store = RolloutStore(run_dir)
    assert make_trajectory(0).info.episode_id in [store.load(name).info.episode_id for name in store.episode_ids()]
    assert not [*run_dir.rglob("*.tmp")]


def test_a_write_that_fails_leaves_no_partial_file(tmp_path: Path) -> None:
    check_full_disk(tmp_path, "limit")  # the kernel cuts the file at 100 kB


def test_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk can only be mounted as root: {mounted.stderr.strip()}")
    try:
        check_full_disk(tmp_path / "run", "disk")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with RunWriter(tmp_path, settings=SETTINGS) as writer:
        writer.save(make_trajectory(0))
        [path] = (tmp_path / "episodes").glob("*.npz")
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(RecordError, match=f"{path.name} is not a whole episode file"):
            [*writer.infos()]
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RecordError, match="run.json cannot be read"):
        RunWriter(tmp_path, settings=SETTINGS, resume=True)
    (tmp_path / "run.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(RecordError, match="format version 99"):
        _ = RolloutStore(tmp_path).run


@pytest.mark.parametrize("keep", ["trajectory", "outcome"])
def test_an_unknown_status_is_damage(tmp_path: Path, keep: Literal["trajectory", "outcome"]) -> None:
    wanted = make_trajectory(0)
    with RunWriter(tmp_path, settings=SETTINGS, keep=keep) as writer:
        object.__setattr__(wanted.info, "status", "foo")  # as an editor would: it cannot be made
        writer.save(wanted)
        with pytest.raises(RecordError, match=f"{wanted.info.episode_id}.*'foo'; wanted success, failure, crashed"):
            writer.info(wanted.info.episode_id)


def test_an_unusable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot create .*file/run"):
        RunWriter(tmp_path / "file" / "run", settings=SETTINGS)
