"""Collection and evaluation on Ray, on one machine, in the real simulator: actors are killed, results stay the same."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from grape.cli.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_USAGE, main
from grape.config.collect import CollectConfig, check_cluster
from grape.envs.pool import EnvSpec
from grape.envs.protocol import InitStateId
from grape.envs.suites import suite_task
from grape.envs.worker import Refused
from grape.errors import CheckpointError, ConfigError, SimulatorError
from grape.rollouts.cluster.connection import Setup, check_room, connect
from grape.rollouts.cluster.policies import PolicyActor, RayPolicy
from grape.rollouts.cluster.simulators import RaySimulators, SimulatorActor
from grape.rollouts.engine import RolloutSettings, run_rollouts
from grape.rollouts.jobs import RolloutJob
from grape.rollouts.policy import Decision, DecisionRequest
from grape.rollouts.session import library_versions, plan_jobs, run_session
from grape.rollouts.store import RolloutStore, RunWriter
from grape.trajectory import Trajectory
from tests.rollouts.conftest import SETTINGS
from tests.rollouts.test_collect import assert_same_episode
from tests.rollouts.test_interruptions import Drift

SUITE = "libero_spatial"
EPISODE = {
    "task_suite_name": SUITE, "task_ids": (0,), "num_states": 2, "num_rollouts": 2, "max_steps": 5,
    "render_profile": "fast", "camera_size": 64, "device": "cpu",
}  # fmt: skip
"""``SETTINGS`` as fields."""


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One Ray for all tests, to which this process is connected."""
    ray = pytest.importorskip("ray", reason='Ray is not installed (pip install "grape-vla[ray]")')
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    settings = {"num_cpus": 4, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    ray.init(address="local", log_to_driver=False, logging_level="ERROR", **settings)
    yield ray
    ray.shutdown()


def processes_of(session: int) -> dict[int, str]:
    """Process id -> command line of all processes of a session (``man 2 setsid``)."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == session and (words := (path / "cmdline").read_bytes()):
                found[int(path.name)] = words.replace(b"\0", b" ").decode()
        except (OSError, ProcessLookupError):
            continue  # it has just ended
    return found


def actors(kind: str) -> list[int]:
    return sorted(pid for pid, line in processes_of(os.getsid(0)).items() if line.startswith(f"ray::{kind}"))


def wait_until_gone(session: int, word: str) -> None:
    deadline = time.monotonic() + 30
    while left := {pid: line for pid, line in processes_of(session).items() if word in line}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


class Unlucky:
    """A policy some of whose ticks kill an actor, or do so a random moment later."""

    def __init__(self, policy: RayPolicy, kills: dict[int, str], chance: random.Random) -> None:
        self.name, self.checkpoint_hash, self.settings = policy.name, policy.checkpoint_hash, policy.settings
        self.image_fn = policy.image_fn
        self.policy, self.kills, self.chance = policy, kills, chance
        self.tick = 0
        self.killed: list[str] = []

    def act(self, requests: Sequence[DecisionRequest]) -> list[Decision]:
        self.tick += 1
        kind = self.kills.get(self.tick)
        if kind == "PolicyActor":
            self.kill(kind)
        elif kind is not None:
            threading.Timer(self.chance.uniform(0, 0.1), self.kill, [kind]).start()
        return self.policy.act(requests)

    def kill(self, kind: str) -> None:
        os.kill(self.chance.choice(actors(kind)), signal.SIGKILL)
        self.killed.append(kind)


def test_killed_actors_change_nothing(
    ray: Any, collected_run: Path, tiny_policy_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(5)
    ticks = sorted(chance.sample(range(2, 6), 3))
    kills = dict(zip(ticks, ("SimulatorActor", "PolicyActor", "SimulatorActor"), strict=True))
    config = CollectConfig(
        pretrained_checkpoint=str(tiny_policy_dir), run_dir=tmp_path, ray_address="local", num_policy_actors=2,
        **EPISODE,  # type: ignore[arg-type]
    )  # fmt: skip
    finished: list[str] = []
    with (
        caplog.at_level(logging.WARNING, logger="grape"),
        connect(config, library_versions(SUITE)) as cluster,
        RunWriter(tmp_path, settings={}) as writer,
    ):
        policy = Unlucky(RayPolicy(cluster, config), kills, chance)
        run_session(
            policy, plan_jobs(config), writer, seed=0, num_workers=2, step_timeout_s=60,
            on_episode=lambda trajectory: finished.append(trajectory.info.episode_id),
            make_pool=lambda *count, **settings: RaySimulators(cluster, SUITE, None, *count, **settings),
        )  # fmt: skip
        policy.policy.close()
    assert sorted(policy.killed) == ["PolicyActor", "SimulatorActor", "SimulatorActor"]
    said = [record.getMessage() for record in caplog.records]
    assert sum("the actor of simulator" in text for text in said) == 2, said
    assert sum("a policy actor was lost" in text for text in said) == 1, said

    alone, cluster_run = RolloutStore(collected_run), RolloutStore(tmp_path)
    assert sorted(finished) == cluster_run.episode_ids() == alone.episode_ids(), "each exactly once"
    for episode_id in alone.episode_ids():
        got, wanted = cluster_run.load(episode_id), alone.load(episode_id)
        assert_same_episode(got, wanted)
        assert dataclasses.replace(got.info, wall_time_s=0) == dataclasses.replace(wanted.info, wall_time_s=0)


def test_eval_joins_a_cluster_and_leaves_it_alone(
    ray: Any, libero: None, tiny_policy_dir: Path, tmp_path: Path
) -> None:
    address = ray.get_runtime_context().gcs_address
    arguments = [
        *("--pretrained_checkpoint", os.path.relpath(tiny_policy_dir), "--run_dir", str(tmp_path), "--device", "cpu"),
        *("--task_suite_name", SUITE, "--task_ids", "0", "--num_trials_per_task", "2", "--init_split", "rollout"),
        *("--max_steps", "3", "--render_profile", "fast", "--camera_size", "64", "--ray_address", address),
    ]
    code = f"import sys; from grape.cli.main import main; print(main(['eval', *{arguments!r}]), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300, start_new_session=True
    )
    assert done.stdout.splitlines()[-1:] == ["0 False"], done.stdout + done.stderr
    assert "(raylet)" not in done.stdout and "INFO" not in done.stderr
    result = json.loads((tmp_path / "results.json").read_text())
    assert (result["total"]["trials"], result["crashed_episodes"]) == (2, {})
    assert result["details"]["ray_address"] == address and "ray_address" not in result["settings"]
    assert result["details"]["pretrained_checkpoint"] == os.path.relpath(tiny_policy_dir)
    wait_until_gone(os.getsid(0), "Actor")
    assert ray.is_initialized() and ray.cluster_resources()["CPU"] == 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadly(EnvSpec):
    """What reads it dies: a machine that fails whenever it is asked for this environment."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_restarts_are_bounded(ray: Any, libero: None, tmp_path: Path) -> None:
    task = suite_task(SUITE, 0)
    jobs = [
        RolloutJob(task=task, env=Deadly(suite=SUITE, task_id=0), init_state=InitStateId("rollout", index), max_steps=2)
        for index in range(2)
    ]
    config = CollectConfig(pretrained_checkpoint="none", run_dir=tmp_path, ray_address="local", num_workers=1)
    stored: list[Trajectory] = []
    with (
        connect(config, library_versions(SUITE)) as cluster,
        RaySimulators(cluster, SUITE, None, 1) as pool,
        pytest.raises(SimulatorError, match=r"lost 4 times before it answered anything.*--resume"),
    ):
        run_rollouts(Drift(), jobs, pool, RolloutSettings(), stored.append)
    # The first one took three actors with it, and is not tried for ever; the second one met the actors' own bound.
    assert [(one.info.init_state_id, one.info.status) for one in stored] == [("rollout/0", "crashed")]
    assert "lost 3 times" in (stored[0].info.error or "")


def test_machines_that_differ_are_refused(tmp_path: Path) -> None:
    versions = library_versions(SUITE)
    other = Setup(versions={**versions, "mujoco": "0.1"}, environment={})
    reply = SimulatorActor(other, SUITE, None, {}).start_episode(
        EnvSpec(suite=SUITE, task_id=0), InitStateId("rollout", 0)
    )
    assert isinstance(reply, Refused) and isinstance(reply.error, ConfigError)
    assert "but 0.1 where the command runs" in str(reply.error) and os.uname().nodename in str(reply.error)

    config = CollectConfig(pretrained_checkpoint=str(tmp_path / "nothing"), run_dir=tmp_path)
    loaded = PolicyActor(Setup(versions={**versions, "torch": "0.1"}, environment={}), config).load()
    assert isinstance(loaded, Refused) and "torch is" in str(loaded.error)
    loaded = PolicyActor(Setup(versions=versions, environment={}), config).load()
    assert isinstance(loaded, Refused) and isinstance(loaded.error, CheckpointError)
    assert str(tmp_path / "nothing") in str(loaded.error) and os.uname().nodename in str(loaded.error)


def test_ctrl_c_leaves_nothing_behind(ray: Any, libero: None, tiny_policy_dir: Path, tmp_path: Path) -> None:
    arguments = ["--pretrained_checkpoint", str(tiny_policy_dir), "--run_dir", str(tmp_path / "run")]
    child = subprocess.Popen(
        [sys.executable, "-m", "grape.cli.main", "collect", *arguments, *SETTINGS, "--ray_address", "local"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert child.stderr is not None
    shown = ""
    while "starting 2 simulators" not in shown and (line := child.stderr.readline()):
        shown += line
    assert any("raylet" in line for line in processes_of(child.pid).values()), shown
    os.killpg(child.pid, signal.SIGINT)
    shown += child.communicate(timeout=60)[1]
    assert child.returncode == EXIT_INTERRUPTED, shown
    assert "--ray_address local" in shown and "--resume" in shown and "Traceback" not in shown
    wait_until_gone(child.pid, "")


def test_bad_input_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")

    def refused(*changes: str) -> str:
        arguments = ["--pretrained_checkpoint", "none", "--run_dir", str(tmp_path / "run"), *changes]
        assert main(["eval", *arguments]) in (EXIT_ERROR, EXIT_USAGE)
        assert not (tmp_path / "run").exists()
        return " ".join(capsys.readouterr().err.split())

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # but does not listen
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert f"ray_address {address}: no Ray cluster answers there" in (shown := refused("--ray_address", address))
        assert "`ray start --head --port=6379`" in shown
    assert "wanted local, auto or HOST:PORT" in refused("--ray_address", "ray://head:10001")
    assert "need --ray_address" in refused("--num_policy_actors", "2")
    monkeypatch.setitem(sys.modules, "ray", None)  # what import finds where it is not installed
    assert 'pip install "grape-vla[ray]"' in refused("--ray_address", "local")


def test_room_is_compared_before_anything_starts(tmp_path: Path) -> None:
    config = CollectConfig(
        pretrained_checkpoint="p", run_dir=tmp_path, ray_address="auto", num_workers=6, num_policy_actors=2
    )
    assert check_room({"CPU": 8, "GPU": 2}, config) == 1
    assert check_room({"CPU": 8}, config) == 0
    assert check_room({"CPU": 8, "GPU": 2}, dataclasses.replace(config, device="cpu")) == 0
    with pytest.raises(ConfigError, match="take 8 CPUs, but the cluster has 7"):
        check_room({"CPU": 7}, config)
    with pytest.raises(ConfigError, match="take 3 GPUs, but the cluster has 2"):
        check_room({"CPU": 8, "GPU": 2}, dataclasses.replace(config, gpus_per_policy_actor=1.5))
    with pytest.raises(ConfigError, match="num_policy_actors is 0"):
        check_cluster("local", 0, None)
