"""Dying simulators, Ctrl-C and resuming, in the real simulators."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grape.cli.main import EXIT_INTERRUPTED, main
from grape.envs.pool import EnvSpec, WorkerPool
from grape.envs.protocol import InitStateId
from grape.envs.suites import suite_task
from grape.errors import SimulatorError
from grape.models.preprocessing import prepare_image
from grape.rollouts.engine import RolloutSettings, run_rollouts
from grape.rollouts.jobs import RolloutJob
from grape.rollouts.policy import Decision, DecisionRequest
from grape.rollouts.session import run_session
from grape.rollouts.store import RolloutStore, RunWriter
from grape.trajectory import Trajectory
from tests.rollouts.conftest import SETTINGS

NUM_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A task that episodes are run on, as cheaply as its simulator can."""

    env: EnvSpec
    num_workers: int
    """A second one would run as fast as the first, but SIMPLER's takes 10 s to start."""
    span: float = 1.0
    """Of the random part of an action."""

    def flags(self) -> list[str]:
        """The same for the command line."""
        names = ("render_profile", "camera_size")
        return [
            *("--task_suite_name", self.env.suite, "--task_ids", str(self.env.task_id)),
            *("--num_workers", str(self.num_workers)),
            *(word for name in names for word in (f"--{name}", str(getattr(self.env, name)))),
        ]


BENCHES = {
    "libero": Bench(
        env=EnvSpec(suite="libero_spatial", task_id=0, render_profile="fast", camera_size=32), num_workers=2
    ),
    "simpler": Bench(
        env=EnvSpec(simulator="simpler", suite="simpler_bridge", task_id=0, camera_size=48), num_workers=1, span=0.02
    ),
}


@pytest.fixture(params=BENCHES)
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each simulator that is installed; the fixture of its name skips where it cannot run."""
    request.getfixturevalue(request.param)
    return BENCHES[request.param]


class Drift:
    """Moves the hand by the step's own random numbers; before each decision it calls ``before``."""

    name, checkpoint_hash = "scripted", "drift-1"

    def __init__(self, before: Callable[[DecisionRequest], None] = lambda request: None, span: float = 1.0) -> None:
        self.settings: dict[str, Any] = {}
        self.before, self.span = before, span

    def image_fn(self) -> None:
        return None

    def act(self, requests: Sequence[DecisionRequest]) -> list[Decision]:
        decisions = []
        for request in requests:
            self.before(request)
            nothing = np.zeros(7, np.float32)
            action = (self.span * (request.uniforms - 0.5)).astype(np.float32)
            tokens = np.zeros(7, np.int32)
            decisions.append(Decision(policy_action=action, tokens=tokens, token_logps=nothing, sampler_logps=nothing))
        return decisions


def jobs(bench: Bench, count: int) -> list[RolloutJob]:
    task = suite_task(bench.env.suite, bench.env.task_id)
    return [
        RolloutJob(task=task, env=bench.env, init_state=InitStateId("rollout", index), max_steps=NUM_STEPS)
        for index in range(count)
    ]


def session(bench: Bench, kills: list[int], run_dir: Path, **settings: Any) -> dict[str, Trajectory]:
    """Run three episodes; the simulator of the second one dies before each step in ``kills``, once each."""

    def kill(request: DecisionRequest) -> None:
        if request.job.init_state.index == 1 and kills and request.step == kills[0]:
            del kills[0]
            [worker] = multiprocessing.active_children()
            worker.kill()

    with RunWriter(run_dir, settings={}, resume=True) as writer:
        run_session(
            Drift(kill, bench.span), jobs(bench, 3), writer, seed=0, num_workers=1, step_timeout_s=60, **settings
        )
        return {episode.info.init_state_id: episode for episode in map(writer.load, writer.episode_ids())}


def test_a_dying_simulator_costs_its_episode_only(bench: Bench, tmp_path: Path) -> None:
    episodes = session(bench, [2], tmp_path)
    assert [episodes[f"rollout/{index}"].info.status for index in range(3)] == ["failure", "crashed", "failure"]
    crashed = episodes["rollout/1"]
    assert "SIGKILL" in (crashed.info.error or "")
    # Steps 0 and 1 were answered by the simulator; the action of step 2 never was.
    assert crashed.info.num_steps == 2 and len(crashed.facts["ee_position"]) == 3
    assert episodes["rollout/2"].info.num_steps == NUM_STEPS


def test_a_crashed_episode_is_tried_again_and_goes_the_same_way(libero: None, tmp_path: Path) -> None:
    crashed = session(BENCHES["libero"], [2], tmp_path)["rollout/1"]
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "episodes").iterdir()}
    kills = [1]  # dies once more, then is run again
    again = session(BENCHES["libero"], kills, tmp_path, num_attempts=2)["rollout/1"]
    assert kills == []
    assert (again.info.status, again.info.error, again.info.num_steps) == ("failure", None, NUM_STEPS)
    np.testing.assert_array_equal(again.images[:2], crashed.images)
    np.testing.assert_array_equal(again.facts["ee_position"][:3], crashed.facts["ee_position"])
    changed = [p.name for p in (tmp_path / "episodes").iterdir() if p.stat().st_mtime_ns != files[p.name]]
    assert changed == [f"{again.info.episode_id}.npz"], "an episode that ended well was run again"


def test_a_run_without_a_finished_episode_is_an_error(libero: None, tmp_path: Path) -> None:
    class Blind(Drift):
        def image_fn(self) -> Any:
            return functools.partial(prepare_image, size=0)

    error = "all 3 episodes crashed, the last one with: .*continue with --resume"
    with RunWriter(tmp_path, settings={}, resume=True) as writer, pytest.raises(SimulatorError, match=error):
        run_session(Blind(), jobs(BENCHES["libero"], 3), writer, seed=0, num_workers=1, step_timeout_s=60)
    assert [info.status for info in RolloutStore(tmp_path).infos()] == ["crashed"] * 3


def test_a_simulator_that_never_works_ends_the_run(libero: None) -> None:
    episodes: list[Trajectory] = []
    settings = RolloutSettings(max_consecutive_crashes=2)
    # Nothing is built in 0.2 s: each episode hangs at its start.
    with (
        WorkerPool(1, start_timeout_s=0.2) as pool,
        pytest.raises(SimulatorError, match=r"2 episodes in a row crashed.*no answer for 0.2 s"),
    ):
        run_rollouts(Drift(), jobs(BENCHES["libero"], 5), pool, settings, episodes.append)
    assert [episode.info.status for episode in episodes] == ["crashed"] * 2
    assert [episode.info.num_steps for episode in episodes] == [0] * 2


def start(command: str, run_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "grape.cli.main", command, "--run_dir", str(run_dir), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(child: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    while child.poll() is None and not [*folder.glob(pattern)]:
        time.sleep(0.02)


def files_of(run_dir: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run_dir.glob("episodes/[!.]*")}


@pytest.mark.parametrize("command", ["collect", "eval"])
def test_a_killed_run_resumes_and_repeats_nothing(
    bench: Bench, command: str, tiny_policy_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    states = ["--num_states", "6", "--num_rollouts", "1"] if command == "collect" else ["--num_trials_per_task", "6"]
    arguments = [
        *("--pretrained_checkpoint", str(tiny_policy_dir), "--device", "cpu", *bench.flags()),
        *("--max_steps", "5", "--init_split", "rollout", *states),
    ]
    child = start(command, run_dir, *arguments)
    wait_for(child, run_dir, "episodes/[!.]*")
    child.kill()  # the collector alone, as the kernel does for memory; its simulators have to notice
    child.communicate(timeout=60)
    if child.returncode == 0:
        pytest.skip("the run had ended before it was killed")
    assert child.returncode == -signal.SIGKILL
    finished = files_of(run_dir)
    assert 0 < len(finished) < 6

    assert main([command, "--run_dir", str(run_dir), *arguments, "--resume"]) == 0
    now = files_of(run_dir)
    assert {name: now[name] for name in finished} == finished, "a finished episode was run again"
    suffix = "npz" if command == "collect" else "json"
    assert sorted(now) == [f"{bench.env.suite}--00--rollout-{index}--r000.{suffix}" for index in range(6)]
    assert [info.status for info in RolloutStore(run_dir).infos()] == ["failure"] * 6
    if command == "eval":
        assert json.loads((run_dir / "results.json").read_text())["total"]["trials"] == 6


def test_sigterm_stops_experts_and_says_how_to_continue(libero: None, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    child = start("experts", run_dir, "--task_ids", "0", "--num_states", "1", "--num_workers", "1")
    wait_for(child, run_dir, "run.json")
    child.terminate()
    _, shown = child.communicate(timeout=60)
    assert child.returncode == EXIT_INTERRUPTED, shown
    assert f"grape experts --run_dir {run_dir} --task_ids 0" in shown and "--resume" in shown
    assert "Traceback" not in shown


def test_ctrl_c_stops_and_resume_repeats_nothing(
    collected_run: Path, tiny_policy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    settings = ["--pretrained_checkpoint", str(tiny_policy_dir), *SETTINGS]
    arguments = ["--run_dir", str(run_dir), *settings]
    child = start("collect", run_dir, *settings, "--num_workers", "1")
    wait_for(child, run_dir, "episodes/*.npz")
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the simulators, too
    _, shown = child.communicate(timeout=60)
    if child.returncode == 0:
        pytest.skip("the run had ended before Ctrl-C arrived")
    assert child.returncode == EXIT_INTERRUPTED, shown
    assert f"--run_dir {run_dir}" in shown and "--resume" in shown and "Traceback" not in shown
    finished = {path.name: path.stat().st_mtime_ns for path in (run_dir / "episodes").iterdir()}
    assert 0 < len(finished) < 4

    assert main(["collect", *arguments]) == 1
    assert "already holds a run; continue it with --resume" in capsys.readouterr().err
    assert main(["collect", *arguments, "--temperature", "0.5", "--resume"]) == 1
    assert "temperature = 1.0, now it is 0.5" in capsys.readouterr().err
    assert main(["collect", *arguments, "--resume", "--num_workers", "1"]) == 0
    now = {path.name: path.stat().st_mtime_ns for path in (run_dir / "episodes").iterdir()}
    assert {name: now[name] for name in finished} == finished, "a finished episode was run again"
    resumed, whole = RolloutStore(run_dir), RolloutStore(collected_run)
    assert resumed.episode_ids() == whole.episode_ids()
    for episode_id in whole.episode_ids():
        np.testing.assert_array_equal(resumed.load(episode_id).actions, whole.load(episode_id).actions)
