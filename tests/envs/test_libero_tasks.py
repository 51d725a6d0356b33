"""Suites, tasks, task definitions and initial states, without starting a simulator."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

pytest.importorskip("libero", reason='LIBERO is not installed: pip install "grape-vla[libero]"')

from grape.envs.libero.bddl import read_task_definition
from grape.envs.libero.init_states import (
    load_official_states,
    numpy_seed,
    official_state,
    read_torch_archive,
    sampling_seed,
)
from grape.envs.libero.package import configure_original_libero
from grape.envs.libero.tasks import LIBERO_SUITES, instruction_from_name, libero_task, task_names
from grape.envs.protocol import InitStateId
from grape.errors import ConfigError, SimulatorError


def test_a_task_carries_the_step_limit_the_goal_and_the_file_s_instruction():
    task = libero_task("libero_object", 0)
    assert task.max_steps == 280
    assert task.instruction == "pick up the alphabet soup and place it in the basket"  # the definition: "pick the"
    assert task.goal_predicates == (("in", "alphabet_soup_1", "basket_1_contain_region"),)
    assert task.keypoint_names[:2] == ("alphabet_soup_1", "basket_1")
    assert task.keypoint_names[-1] == "basket_1_contain_region"


def test_scene_prefixes_are_not_part_of_the_instruction():
    assert instruction_from_name("KITCHEN_SCENE10_close_the_top_drawer") == "close the top drawer"
    assert instruction_from_name("LIVING_ROOM_SCENE2_put_both_in_the_basket") == "put both in the basket"


def test_variants_that_change_the_words_prompt_with_the_changed_words():
    plain, reworded = libero_task("libero_spatial", 2), libero_task("libero_spatial_lan", 2)
    assert plain.name == reworded.name  # the file name still has the old words
    assert plain.instruction == "pick up the black bowl from table center and place it on the plate"
    assert reworded.instruction == "lift the black bowl from the table center and put it on the plate"
    assert libero_task("libero_goal_task", 0).instruction == "open the bottom drawer of the cabinet"


@pytest.mark.parametrize("suite", sorted(LIBERO_SUITES))
def test_every_suite_has_tasks_whose_definitions_parse(suite):
    names = task_names(suite)
    assert len(names) == {"libero_90": 90}.get(suite, len(names)) > 0
    task = libero_task(suite, len(names) - 1)
    assert task.goal_predicates and task.keypoint_names and task.instruction


def test_unknown_suite_answers_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'libero_spatial'"):
        libero_task("libero_spacial", 0)


@pytest.mark.parametrize("task_id", [-1, 10])
def test_unknown_task_answers_with_the_range(task_id):
    with pytest.raises(ConfigError, match=f"got task {task_id} of libero_spatial, wanted 0 to 9"):
        libero_task("libero_spatial", task_id)


def test_damaged_definitions_are_refused(tmp_path):
    whole = "(define (problem P) (:language do it) (:objects a_1 - a) (:goal (And (On a_1 b_1))))"
    path = tmp_path / "task.bddl"
    path.write_text(whole)
    assert read_task_definition(path).goal_predicates == (("on", "a_1", "b_1"),)
    for damaged in ("", whole[:-5], whole.replace("define", "defile"), "(define (problem P))", whole + " )"):
        path.write_text(damaged)
        with pytest.raises(SimulatorError, match="is not a task definition"):
            read_task_definition(path)
    with pytest.raises(SimulatorError, match="cannot read"):
        read_task_definition(tmp_path / "absent.bddl")


def test_official_states_are_fifty_and_bounded():
    task = libero_task("libero_spatial", 0)
    states = load_official_states(task.suite, task.name)
    assert states.shape == (50, 92) and states.dtype == np.float64
    assert len(np.unique(states, axis=0)) == 50
    with pytest.raises(ConfigError, match="got official/50 of libero_spatial/0, wanted official/0 to 49"):
        official_state(states, task, 50)
    with pytest.raises(SimulatorError, match="no official initial states for libero_object_with_trigger"):
        load_official_states("libero_object_with_trigger", task_names("libero_object_with_trigger")[0])


def test_arrays_saved_by_torch_are_read_without_torch(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "task.pruned_init"
    states = np.random.default_rng(0).normal(size=(3, 5))
    torch.save(states, path)
    np.testing.assert_array_equal(read_torch_archive(path), states)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SimulatorError, match="cannot read the initial states"):
        read_torch_archive(path)


def test_a_state_file_cannot_run_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    path = tmp_path / "task.pruned_init"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Attack()))
    with pytest.raises(SimulatorError, match="wanted a plain numpy array"):
        read_torch_archive(path)
    assert not (tmp_path / "ran").exists()


def test_sampling_seeds_differ_in_every_part_of_the_name():
    task, other = libero_task("libero_spatial", 0), libero_task("libero_spatial", 1)
    seeds = [
        sampling_seed(task, InitStateId("train", 0), 0),
        sampling_seed(task, InitStateId("train", 1), 0),
        sampling_seed(task, InitStateId("heldout", 0), 0),
        sampling_seed(task, InitStateId("train", 0), 1),
        sampling_seed(other, InitStateId("train", 0), 0),
        sampling_seed(libero_task("libero_object", 0), InitStateId("train", 0), 0),
    ]
    assert len({seed.tobytes() for seed in seeds}) == len(seeds)
    again = sampling_seed(task, InitStateId("train", 0), 0)
    np.testing.assert_array_equal(again, seeds[0])


def test_seeding_leaves_the_callers_generator_alone():
    np.random.seed(5)
    expected = np.random.RandomState(5).uniform(size=2)
    first = np.random.uniform()
    with numpy_seed(1):
        np.random.uniform(size=7)
    assert [first, np.random.uniform()] == list(expected)


def test_original_libero_is_configured_in_a_private_folder_and_asks_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "")
    folder = configure_original_libero(tmp_path / "libero" / "libero")
    assert folder is not None and os.environ["LIBERO_CONFIG_PATH"] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0
    assert not (tmp_path / ".libero").exists()
    paths = json.loads((folder / "config.yaml").read_text())
    assert paths["bddl_files"] == str(tmp_path / "libero" / "libero" / "bddl_files")
    assert set(paths) == {"benchmark_root", "bddl_files", "init_states", "datasets", "assets"}
    assert configure_original_libero(tmp_path) is None  # now there is one


def test_tasks_need_neither_simulator_nor_torch():
    code = (
        "import sys; from grape.envs.libero import libero_task; libero_task('libero_10', 3); "
        "print([m for m in ('torch', 'tensorflow', 'mujoco', 'robosuite') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
