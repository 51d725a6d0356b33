"""The worker pool, with real simulators and real deaths."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from grape.envs.pool import EnvSpec, WorkerPool
from grape.envs.protocol import InitStateId
from grape.errors import ConfigError

SPEC = EnvSpec(suite="libero_spatial", task_id=0, render_profile="fast", camera_size=64)
STATE = InitStateId("train", 3)
STEP_TIMEOUT_S = 10.0
NO_OP = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)

POOL_SCRIPT = """
import sys
from grape.envs.pool import EnvSpec, WorkerPool
from grape.envs.protocol import InitStateId
if __name__ == "__main__":
    with WorkerPool(2) as pool:
        pool.start_episode(0, EnvSpec(suite="libero_spatial", task_id=0), InitStateId("train", 0))
        print(pool.process_id(0), pool.process_id(1), flush=True)
        while True:
            pool.wait(60)
"""


def crop(image: np.ndarray, *, trapdoor: Path) -> np.ndarray:
    """An image function that a spawned process can import; it takes its process down while ``trapdoor`` exists."""
    if trapdoor.exists():
        os._exit(1)
    return image[:32, :48]


def wait_for(pool: WorkerPool, worker: int):
    end = time.monotonic() + 300
    while time.monotonic() < end:
        for event in pool.wait(5):
            assert event.worker == worker
            return event
    raise AssertionError(f"worker {worker} reported nothing")


def is_running(process_id: int) -> bool:
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def await_end(process_ids: list[int]) -> None:
    end = time.monotonic() + 60
    while any(map(is_running, process_ids)):
        assert time.monotonic() < end, "worker processes are left over"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def trapdoor(tmp_path_factory):
    return tmp_path_factory.mktemp("pool") / "trapdoor"


@pytest.fixture(scope="module")
def pool(trapdoor):
    pytest.importorskip("libero", reason='LIBERO is not installed: pip install "grape-vla[libero]"')
    with WorkerPool(2, step_timeout_s=STEP_TIMEOUT_S, image_fn=functools.partial(crop, trapdoor=trapdoor)) as pool:
        yield pool


@pytest.fixture(scope="module")
def first_events(pool):
    """Both workers, started on the same initial state."""
    for worker in range(2):
        pool.start_episode(worker, SPEC, STATE)
    events = {}
    end = time.monotonic() + 300
    while len(events) < 2 and time.monotonic() < end:
        events |= {event.worker: event for event in pool.wait(5)}
    return events


def test_workers_agree_bit_for_bit_and_describe_the_episode(first_events):
    one, other = first_events[0], first_events[1]
    assert one.kind == other.kind == "observation", (one.error, other.error)
    assert one.init_state_hash == other.init_state_hash != ""
    np.testing.assert_array_equal(one.observation.image, other.observation.image)
    assert one.observation.image.shape == (32, 48, 3)  # through image_fn
    assert one.task.name.startswith("pick_up_the_black_bowl")
    assert one.settings["render_profile"] == "fast"
    assert one.facts["keypoints"].shape == (len(one.task.keypoint_names), 3)


def test_an_action_brings_the_next_observation_only_once(pool, first_events):
    pool.send_action(0, NO_OP)
    event = wait_for(pool, 0)
    assert event.kind == "observation" and not event.success and event.facts
    assert event.task is None and event.init_state_hash == ""
    assert pool.wait(0.2) == []


def test_a_killed_worker_costs_its_episode_only(pool, first_events):
    killed = pool.process_id(0)
    pool.send_action(0, NO_OP)
    os.kill(killed, signal.SIGKILL)
    events = [wait_for(pool, 0)]
    if events[0].kind == "observation":  # it had answered before the signal came
        pool.send_action(0, NO_OP)
        events.append(wait_for(pool, 0))
    assert events[-1].kind == "crashed" and "SIGKILL" in events[-1].error
    assert pool.process_id(0) != killed
    pool.send_action(1, NO_OP)  # the other one is in the same episode as before
    assert wait_for(pool, 1).kind == "observation"
    pool.start_episode(0, SPEC, STATE)
    again = wait_for(pool, 0)
    assert again.kind == "observation" and again.init_state_hash == first_events[0].init_state_hash


def test_a_worker_killed_while_the_policy_thinks_is_noticed(pool, first_events):
    os.kill(pool.process_id(0), signal.SIGKILL)
    assert pool.wait(1) == []  # nothing was under way, so nothing is lost yet
    pool.send_action(0, NO_OP)
    assert wait_for(pool, 0).kind == "crashed"


def test_a_worker_that_leaves_with_an_error_costs_its_episode_only(pool, first_events, trapdoor):
    pool.start_episode(0, SPEC, STATE)
    assert wait_for(pool, 0).kind == "observation"
    trapdoor.touch()
    try:
        pool.send_action(0, NO_OP)
        event = wait_for(pool, 0)
    finally:
        trapdoor.unlink()
    assert event.kind == "crashed" and "exit code 1" in event.error


def test_a_hung_worker_is_killed_after_its_timeout(pool, first_events):
    hung = pool.process_id(1)
    os.kill(hung, signal.SIGSTOP)
    started = time.monotonic()
    pool.send_action(1, NO_OP)
    event = wait_for(pool, 1)
    assert event.kind == "crashed" and "no answer for 10 s" in event.error
    assert time.monotonic() - started >= STEP_TIMEOUT_S
    assert not is_running(hung) and pool.process_id(1) != hung


def test_an_exception_in_the_simulator_is_a_crash_with_its_reason(pool, first_events):
    pool.start_episode(1, SPEC, STATE)
    assert wait_for(pool, 1).kind == "observation"
    before = pool.process_id(1)
    pool.send_action(1, np.full(7, np.nan))
    event = wait_for(pool, 1)
    assert event.kind == "crashed" and "wanted 7 finite numbers" in event.error
    assert pool.process_id(1) != before


def test_what_can_never_work_is_raised_not_recorded(pool, first_events):
    import dataclasses

    pool.start_episode(0, dataclasses.replace(SPEC, suite="libero_spacial"), STATE)
    with pytest.raises(ConfigError, match="Did you mean 'libero_spatial'"):
        wait_for(pool, 0)
    pool.start_episode(0, dataclasses.replace(SPEC, simulator="libera"), STATE)
    with pytest.raises(ConfigError, match="Did you mean 'libero'"):
        wait_for(pool, 0)


def test_closing_reaps_every_worker():
    pool = WorkerPool(2)
    process_ids = [pool.process_id(worker) for worker in range(2)]
    os.kill(process_ids[1], signal.SIGSTOP)
    pool.start_episode(1, SPEC, STATE)  # busy, and will never answer
    pool.close()
    assert not any(map(is_running, process_ids))
    with pytest.raises(ChildProcessError):  # nothing left to wait for: no zombies
        os.waitpid(process_ids[1], os.WNOHANG)
    pool.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(number, tmp_path):
    script = tmp_path / "collect.py"
    script.write_text(POOL_SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    process_ids = [int(text) for text in process.stdout.readline().split()]
    assert len(process_ids) == 2 and all(map(is_running, process_ids))
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to parent and workers alike
    else:
        process.kill()
    _, errors = process.communicate(timeout=120)
    await_end(process_ids)
    if number == signal.SIGINT:
        assert errors.count("KeyboardInterrupt") == 1, errors  # the parent's own, none from a worker
        assert errors.count("Traceback") == 1, errors


def test_settings_that_cannot_be_honoured_are_refused():
    with pytest.raises(ConfigError, match="num_workers=0"):
        WorkerPool(0)
    with pytest.raises(ConfigError, match="image_fn"):
        WorkerPool(1, image_fn=lambda image: image)
