"""The original SIMPLER's side of the pipe, with a real second interpreter.

What runs in it is not the simulator but the stand-in of ``standin/`` (see its README): these tests prove the
interpreter, the messages and this side of them, not that SAPIEN's objects are as they are taken to be.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

from grape.cli.main import EXIT_ERROR, main
from grape.envs.pool import EnvSpec, WorkerPool
from grape.envs.protocol import InitStateId
from grape.envs.simpler_env import (
    BRIDGE_SUITE,
    GOOGLE_SUITE,
    OriginalSimplerEnv,
    installed_simpler_env,
    make_original_simpler_env,
    simpler_env_task,
    task_names,
)
from grape.envs.simpler_env.gripper import StickyGripper
from grape.errors import ConfigError, MissingDependencyError, SimulatorError
from grape.rollouts.engine import RolloutSettings, run_rollouts
from grape.rollouts.jobs import RolloutJob
from grape.rollouts.policy import Decision, DecisionRequest
from grape.rollouts.scripted import unsampled
from grape.rollouts.store import RolloutStore
from tests.envs.test_pool import STEP_TIMEOUT_S, await_end, is_running, wait_for

STANDIN = Path(__file__).with_name("standin")
GOOGLE = {name: task_id for task_id, name in enumerate(task_names(GOOGLE_SUITE))}
PICK, PICK_ANY = GOOGLE["google_robot_pick_horizontal_coke_can"], GOOGLE["google_robot_pick_object"]
PLACE = GOOGLE["google_robot_place_apple_in_closed_top_drawer"]
HOLD = np.array([0, 0, 0, 0, 0, 0, 1.0], np.float32)


def jump(metres: float) -> np.ndarray:
    """Far enough for the stand-in to misbehave: 30 raises, 40 hangs, 50 dies."""
    return np.array([metres, 0, 0, 0, 0, 0, 1], np.float32)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has numpy and the stand-in, and neither grape nor anything else of this one."""
    folder = tmp_path_factory.mktemp("interpreter")
    venv.create(folder, with_pip=False, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    here = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (here / name).exists():
            (packages / name).symlink_to(here / name)
    for source in STANDIN.iterdir():
        if source.is_dir():
            shutil.copytree(source, packages / source.name)
            info = packages / f"{source.name}-0.0.1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {source.name}\nVersion: 0.0.1\n")
    stages = packages / "mani_skill2_real2sim" / "data" / "stages"
    stages.mkdir(parents=True)
    (stages / "stage.glb").write_bytes(b"a table")
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def make(python: str):
    """Builds environments, and closes them after the module."""
    made: list[OriginalSimplerEnv] = []

    def build(suite: str, task_id: int) -> OriginalSimplerEnv:
        made.append(make_original_simpler_env(suite, task_id, python=python))
        return made[-1]

    yield build
    for env in made:
        env.close()


@pytest.fixture(scope="module")
def bridge(make) -> OriginalSimplerEnv:
    return make(BRIDGE_SUITE, 0)


def packages_of(python: str) -> Path:
    [packages] = Path(python).parents[1].glob("lib/python*/site-packages")
    return packages


def test_the_other_interpreter_has_nothing_of_this_one(python: str) -> None:
    code = "import grape"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "ModuleNotFoundError" in done.stderr
    wanted = {name: "0.0.1" for name in ("simpler_env", "mani_skill2_real2sim", "sapien")}
    assert installed_simpler_env(BRIDGE_SUITE, python) == wanted


def test_an_episode_is_what_the_simulator_says(bridge: OriginalSimplerEnv) -> None:
    observation = bridge.reset(InitStateId("official", 5))
    assert observation.image.shape == (480, 640, 3) and observation.instruction == "put carrot on plate"
    assert observation.state.shape == (8,) and observation.state.dtype == np.float32
    np.testing.assert_allclose(observation.state, [0.147, 0.028, 1.0, 0, 0, 0, 0.037, 0.037], atol=1e-6)
    facts = bridge.facts()
    # id 5 is the third placing of the objects: first and last corner
    np.testing.assert_allclose(facts["keypoints"][0], [-0.235, -0.075, 0.88], atol=1e-6)
    np.testing.assert_allclose(facts["keypoints"][1], [-0.085, 0.075, 0.88], atol=1e-6)
    assert facts["gripper_opening"] == np.float32(0.074) and not facts["goal_satisfied"].any()
    assert facts["robot_contact"].tolist() == [False, False] and not facts["arm_contact"]
    assert "finger_positions" not in facts and "joint_positions" not in facts
    assert bridge.settings["versions"]["python"].count(".") == 2 and len(bridge.settings["assets"]) == 16


def test_there_is_no_view_with_depth(bridge: OriginalSimplerEnv) -> None:
    with pytest.raises(SimulatorError, match="no depth and segmentation; the four tasks of simpler_bridge do"):
        bridge.view()


def test_the_hand_turns_as_the_policy_meant(bridge: OriginalSimplerEnv) -> None:
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    bridge.reset(InitStateId("official", 0))
    wanted = rotation.identity()
    for angles in ((0.2, -0.3, 0.25), (-0.4, 0.1, 0.3)):
        bridge.step(bridge.to_simulator_action(np.array([0, 0, 0, *angles, 1.0])))
        wanted = rotation.from_euler("xyz", angles) * wanted  # about axes that do not move
    got = rotation.from_quat(bridge.facts()["ee_quaternion"])
    assert (got.inv() * wanted).magnitude() < 1e-5  # float32 on its way


def test_an_expert_in_the_stand_in_succeeds_at_the_last_step(bridge: OriginalSimplerEnv) -> None:
    bridge.reset(InitStateId("official", 0))
    source, target = bridge.movable_positions_m()
    hand = bridge.facts()["ee_position"].astype(float)
    carry = (target - source) / 2
    moves = ((source - hand, 1), (np.zeros(3), -1), (carry, -1), (carry, -1))
    results = [bridge.step([*delta, 0, 0, 0, grip]) for delta, grip in moves]
    assert [result.success for result in results] == [False, False, False, True]
    facts = bridge.facts()
    assert facts["grasped"].tolist() == [True, False] and facts["finger_contact"].tolist() == [True, False]
    assert facts["goal_satisfied"].tolist() == [True] and results[-1].observation.image[0, 5, 0] == 4


def test_reset_is_a_function_of_the_state_and_snapshots_repeat(bridge: OriginalSimplerEnv) -> None:
    first = bridge.reset(InitStateId("train", 3))
    wanted = bridge.init_state_hash
    bridge.step([0.01, 0, 0, 0, 0, 0.1, -1])
    snapshot, before = bridge.snapshot(), bridge.render()
    bridge.reset(InitStateId("train", 4))
    assert bridge.init_state_hash != wanted
    after = bridge.restore(snapshot)
    np.testing.assert_array_equal(after.state, before.state)
    np.testing.assert_array_equal(after.image, before.image)
    assert bridge.snapshot().digest() == snapshot.digest() and bridge.init_state_hash == wanted
    assert not np.array_equal(first.state, after.state)
    with pytest.raises(ConfigError, match="official/0 to 23"):
        bridge.reset(InitStateId("official", 24))
    with pytest.raises(SimulatorError, match="before reset"):
        bridge.step(HOLD)


def test_sampled_states_are_where_they_were_drawn(bridge: OriginalSimplerEnv) -> None:
    starts = []
    for index in range(5):
        bridge.reset(InitStateId("train", index), render=False)
        starts.append(bridge.movable_positions_m())
    assert len({start.tobytes() for start in starts}) == 5
    for start in starts:
        assert (np.abs(start[:, :2] - [-0.16, 0.0]) <= 0.075 + 1e-6).all()
        assert np.linalg.norm(start[0, :2] - start[1, :2]) >= 0.12 - 1e-6


def test_the_google_robot_is_driven_as_published(make) -> None:
    env = make(GOOGLE_SUITE, PICK)
    observation = env.reset(InitStateId("official", 25))
    assert observation.image.shape == (512, 640, 3) and observation.instruction == "pick coke can"
    assert observation.image[0, 0, 1] == len("recolor_tabletop_visual_matching_1")  # the second colour, loaded
    np.testing.assert_allclose(env.movable_positions_m()[0, :2], [-0.35, -0.02], atol=1e-6)
    gripper, finger = StickyGripper(), 0.0
    for opening in (1.0, 0.1, 0.1, 0.9):
        action = env.to_simulator_action(np.array([0, 0, 0, 0, 0, 0, opening]))
        state = env.step(action).observation.state
        finger += 0.1 * gripper.command(float(np.float32(opening)))
        np.testing.assert_allclose(state[6:], finger, atol=1e-6)
    assert "gripper_opening" not in env.facts()  # its fingers turn: there is no width in metres
    snapshot = env.snapshot()
    env.reset(InitStateId("official", 0))
    env.restore(snapshot)  # the repeated actions go through a gripper that was reset


def test_the_instruction_is_the_simulator_s(make) -> None:
    any_object = make(GOOGLE_SUITE, PICK_ANY)
    said = {any_object.reset(InitStateId("train", index)).instruction for index in range(12)}
    assert said == {"pick apple", "pick orange"}
    place = make(GOOGLE_SUITE, PLACE)
    heard = [place.reset(InitStateId("train", 0)).instruction]
    heard += [place.step(HOLD).observation.instruction for _ in range(3)]
    assert heard == ["open top drawer"] * 3 + ["place apple into top drawer"]
    facts = place.facts()
    np.testing.assert_allclose(facts["keypoints"][1], [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(facts["joint_positions"], np.array([np.nan, 0.15], np.float32))
    assert place._gripper._previous is None  # forgotten with the old instruction


def test_an_error_in_the_simulator_says_where(make) -> None:
    env = make(BRIDGE_SUITE, 0)
    env.reset(InitStateId("official", 0))
    with pytest.raises(SimulatorError, match=r"RuntimeError: the physics exploded \(__init__.py:\d+, in the original"):
        env.step(jump(30))
    with pytest.raises(SimulatorError, match="SIGSEGV"):
        env.step(jump(50))
    process = env.simulator.process_id
    env.close()
    env.close()
    assert not is_running(process)


def test_a_missing_table_or_package_is_an_error_before_the_first_step(python: str, tmp_path: Path) -> None:
    table = packages_of(python) / "mani_skill2_real2sim" / "data" / "stages" / "stage.glb"
    table.rename(tmp_path / "stage.glb")
    try:
        with pytest.raises(ConfigError, match=r"stage.glb: set MS2_ASSET_DIR"):
            make_original_simpler_env(BRIDGE_SUITE, 0, python=python)
    finally:
        (tmp_path / "stage.glb").rename(table)
    with pytest.raises(ConfigError, match="has no widowx_stack_cube, only widowx_carrot_on_plate"):
        make_original_simpler_env(BRIDGE_SUITE, 1, python=python)
    sapien = packages_of(python) / "sapien"
    sapien.rename(tmp_path / "sapien")
    try:
        with pytest.raises(MissingDependencyError, match="lacks sapien; install the original SIMPLER"):
            make_original_simpler_env(BRIDGE_SUITE, 0, python=python)
    finally:
        (tmp_path / "sapien").rename(sapien)


def children_of(process_id: int) -> list[int]:
    text = Path(f"/proc/{process_id}/task/{process_id}/children").read_text()
    return [int(word) for word in text.split()]


def test_the_pool_supervises_it_like_any_simulator(python: str) -> None:
    spec = EnvSpec(simulator=BRIDGE_SUITE, suite=BRIDGE_SUITE, task_id=0, camera_size=480, python=python)
    state = InitStateId("official", 2)
    with WorkerPool(1, step_timeout_s=STEP_TIMEOUT_S) as pool:
        hashes = []
        for metres, reason in ((50, "SIGSEGV"), (40, "no answer for 10 s")):
            pool.start_episode(0, spec, state)
            event = wait_for(pool, 0)
            assert event.kind == "observation", event.error
            hashes.append(event.init_state_hash)
            interpreters = children_of(pool.process_id(0))
            assert interpreters
            pool.send_action(0, jump(metres))
            event = wait_for(pool, 0)
            assert event.kind == "crashed" and reason in event.error
            await_end(interpreters)  # a hung one goes with its worker
        assert hashes[0] == hashes[1] != ""
        pool.start_episode(0, spec, state)
        assert wait_for(pool, 0).kind == "observation"
        interpreters = children_of(pool.process_id(0))
        os.kill(pool.process_id(0), signal.SIGKILL)
        await_end(interpreters)
        pool.send_action(0, HOLD)
        assert wait_for(pool, 0).kind == "crashed"


class Listener:
    """A policy that holds still and keeps what it was told."""

    name, checkpoint_hash = "listener", "listener"

    def __init__(self) -> None:
        self.settings: dict = {}
        self.heard: list[str] = []

    def image_fn(self) -> None:
        return None

    def act(self, requests: list[DecisionRequest]) -> list[Decision]:
        self.heard += [request.instruction for request in requests]
        return [unsampled(HOLD, HOLD) for _ in requests]


def test_the_policy_is_told_what_the_simulator_says(python: str) -> None:
    stored, listener = [], Listener()
    with WorkerPool(1) as pool:
        for task_id, max_steps in ((PLACE, 5), (PICK_ANY, 1)):
            env = EnvSpec(simulator=GOOGLE_SUITE, suite=GOOGLE_SUITE, task_id=task_id, python=python)
            state, task = InitStateId("train", 0), simpler_env_task(GOOGLE_SUITE, task_id)
            job = RolloutJob(task=task, env=env, init_state=state, max_steps=max_steps, consecutive_successes=None)
            run_rollouts(listener, [job], pool, RolloutSettings(), stored.append)
    assert listener.heard[:5] == ["open top drawer"] * 3 + ["place apple into top drawer"] * 2
    assert listener.heard[5] in ("pick apple", "pick orange")
    assert [one.info.status for one in stored] == ["failure", "failure"]
    assert [one.info.instruction for one in stored] == ["open top drawer", listener.heard[5]]


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with statistics of Bridge data, in metres and radians."""
    pytest.importorskip("torch")
    from grape.models import new_policy, save_policy

    span = {
        "q01": [-0.03] * 3 + [-0.1] * 3 + [0.0],
        "q99": [0.03] * 3 + [0.1] * 3 + [1.0],
        "mask": [True] * 6 + [False],
    }
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    save_policy(new_policy("test", norm_stats={"bridge_orig": {"action": span}}), folder)
    return folder


def test_collect_and_eval_through_the_other_interpreter(python: str, policy_dir: Path, tmp_path: Path, capsys) -> None:
    task = ["--task_suite_name", BRIDGE_SUITE, "--task_ids", "0", "--num_workers", "1", "--device", "cpu"]
    shared = ["--pretrained_checkpoint", str(policy_dir), *task, "--max_steps", "3"]
    collect = [*shared, "--run_dir", str(tmp_path / "run"), "--num_states", "1", "--num_rollouts", "2"]
    assert main(["collect", *collect]) == EXIT_ERROR
    assert "name it with --simpler_python" in capsys.readouterr().err and not (tmp_path / "run" / "run.json").exists()
    assert main(["collect", *collect, "--simpler_python", python]) == 0
    store = RolloutStore(tmp_path / "run")
    first, second = map(store.load, store.episode_ids())
    assert store.run["versions"]["simpler_env"] == "0.0.1" and store.run["details"]["simpler_python"] == python
    assert first.info.init_state_hash == second.info.init_state_hash and first.info.num_steps == 3
    assert first.info.instruction == "put carrot on plate" and first.facts["keypoints"].shape == (4, 2, 3)
    assert not np.array_equal(first.action_tokens, second.action_tokens)
    trial = [*shared, "--run_dir", str(tmp_path / "eval"), "--num_trials_per_task", "2", "--simpler_python", python]
    assert main(["eval", *trial]) == 0
    got = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert got["total_by_rule"]["last_step"]["trials"] == 2 and got["crashed_episodes"] == {}
    assert got["tasks"][0]["assets"] and got["simulator_settings"]["versions"]["sapien"] == "0.0.1"


def test_ctrl_c_does_not_reach_the_other_interpreter(bridge: OriginalSimplerEnv) -> None:
    process = bridge.simulator.process_id
    assert os.getsid(process) == process != os.getsid(0)
    os.kill(process, signal.SIGINT)
    bridge.reset(InitStateId("official", 0))
    assert bridge.simulator.process_id == process
