"""SIMPLER through the same commands as LIBERO, for real. Skipped with the reason where it cannot run."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grape.cli.main import EXIT_ERROR, main
from grape.envs.simpler.actions import to_maniskill
from grape.errors import RecordError
from grape.rollouts.store import RolloutStore
from grape.trainer.metrics import read_metrics

TASK = ["--task_suite_name", "simpler_bridge", "--task_ids", "0", "--num_workers", "1", "--device", "cpu"]
MAX_STEPS = 3


def run_beside_tensorflow(command: str, *arguments: str) -> None:
    """In another process: a simulator refuses to render where TensorFlow is loaded."""
    if importlib.util.find_spec("tensorflow_datasets") is None:  # found, not imported: tests here render in-process
        pytest.skip("needs the extra rlds")
    done = subprocess.run(
        [sys.executable, "-m", "grape.cli.main", command, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_collect_score_pair_train_and_eval(simpler: None, tiny_policy_dir: Path, tmp_path: Path) -> None:
    run_dir, evaluation = tmp_path / "run", tmp_path / "evaluation"
    shared = ["--pretrained_checkpoint", str(tiny_policy_dir), *TASK, "--max_steps", str(MAX_STEPS)]
    collect = ["--run_dir", str(run_dir), "--num_states", "1", "--num_rollouts", "2", "--image_resize", "area"]
    assert main(["collect", *shared, *collect]) == 0
    store = RolloutStore(run_dir)
    first, second = map(store.load, store.episode_ids())
    settings = store.run["settings"]
    assert (settings["simulator"], settings["camera_size"], settings["consecutive_successes"]) == ("simpler", 480, 6)
    assert (settings["prompt_style"], settings["image_resize"]) == ("template", "area")
    assert settings["unnorm_key"] == "bridge_orig" and {"mani-skill", "sapien"} <= store.run["versions"].keys()
    assert first.info.instruction == "put carrot on plate" and first.info.num_steps == MAX_STEPS
    assert first.info.longest_success_run == 0 and first.facts["goal_satisfied"].shape == (MAX_STEPS + 1, 1)
    assert first.info.init_state_hash == second.info.init_state_hash
    assert not np.array_equal(first.action_tokens, second.action_tokens)
    for policy_action, action in zip(first.policy_actions, first.actions, strict=True):
        np.testing.assert_array_equal(action, to_maniskill(policy_action))

    assert main(["score", str(run_dir), "--lambda_self", "0"]) == 0
    [scores] = (run_dir / "scores").glob("*.json")
    stages = json.loads(scores.read_text())["episodes"][first.info.episode_id]["stages"]
    assert stages and all(np.isfinite(stage["cost"]) for stage in stages)
    pairs = tmp_path / "pairs"
    pair = ["--scores", str(scores), "--out", str(pairs), "--dataset_name", "tiny"]
    run_beside_tensorflow("pair", str(run_dir), *pair, "--require_chosen_success", "False")
    train = ["--chosen_traj_dir", str(pairs / "chosen"), "--rejected_traj_dir", str(pairs / "rejected")]
    train += ["--dataset_name", "tiny", "--run_root_dir", str(tmp_path / "train"), "--image_resize", "area"]
    train += ["--adapter_tmp_dir", str(tmp_path / "adapter"), "--run_name", "tpo", "--device", "cpu"]
    run_beside_tensorflow("train", "--vla_path", str(tiny_policy_dir), *train, "--lora_rank", "2", "--max_steps", "1")
    [metrics] = read_metrics(tmp_path / "train" / "tpo")
    # 1e-4: float32; before the first step policy and reference agree, so that the loss is -log σ(0)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-4)

    trial = ["--run_dir", str(evaluation), "--num_trials_per_task", "1", "--image_resize", "area"]
    assert main(["eval", *shared, *trial, "--adapter", str(tmp_path / "adapter" / "tpo")]) == 0
    got = json.loads((evaluation / "results.json").read_text())
    assert got["checkpoint_hash"] != store.run["settings"]["checkpoint_hash"], "the adapter is part of it"
    assert got["simulator_settings"]["rendering_device"] and got["tasks"][0]["assets"]
    assert {rule: rate["trials"] for rule, rate in got["total_by_rule"].items()} == {
        "last_step": 1, "once": 1, "three_in_a_row": 1,
    }  # fmt: skip
    assert main(["compare", str(evaluation), str(evaluation)]) == 0


def test_experts_demonstrate_a_variant_and_the_task_s_shipped_stages_score_it(simpler: None, tmp_path: Path) -> None:
    run_dir, expert = tmp_path / "run", ["--jitter", "0.2", "--image_size", "64"]
    variant = ["--task_suite_name", "simpler_bridge_subject", *TASK[2:-2]]
    assert main(["experts", *variant, *expert, "--run_dir", str(run_dir), "--num_states", "1"]) == 0
    store = RolloutStore(run_dir)
    [episode] = map(store.load, store.episode_ids())
    assert (episode.info.suite, episode.info.instruction) == ("simpler_bridge_subject", "put eggplant on plate")
    assert episode.info.simulator_settings["variation"]["axis"] == "subject"
    assert episode.info.keypoint_names == ("eggplant", "plate")
    assert episode.info.status == "success" and episode.info.longest_success_run == 6  # it ends as a collected one
    assert episode.images.shape == (episode.info.num_steps, 64, 64, 3)
    for label, action in zip(episode.policy_actions, episode.actions, strict=True):
        np.testing.assert_array_equal(action[3:], to_maniskill(label)[3:])  # disturbed in translation alone
    assert episode.facts["keypoint_quaternions"].shape == (episode.info.num_steps + 1, 2, 4)
    assert main(["score", str(run_dir), "--lambda_self", "0"]) == 0
    [scored] = json.loads((run_dir / "scores" / "default.json").read_text())["episodes"].values()
    assert scored["constraints"] == "shipped" and [s["name"] for s in scored["stages"]][1:] == ["carry", "place"]
    assert all(stage["completed"] for stage in scored["stages"])


def test_experts_are_measured_on_published_states_without_leaving_demonstrations(
    simpler: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    where = ["--run_dir", str(run_dir), "--init_split", "official", "--num_states", "1"]
    assert main(["experts", *TASK[:-2], *where, "--measure_only"]) == 0
    assert "| last step |" in capsys.readouterr().out
    [stored] = (run_dir / "episodes").iterdir()
    outcome = json.loads(stored.read_text())  # text, not an archive of pictures and actions
    assert (outcome["status"], outcome["num_steps"], outcome["init_state_id"]) == ("success", 60, "official/0")
    assert outcome["longest_success_run"] > 6, "it ran on after six successes, as evaluation does"
    assert main(["score", str(run_dir)]) == EXIT_ERROR
    assert "outcome" in capsys.readouterr().err
    with pytest.raises(RecordError, match="outcome alone"):  # how export and sft would read it
        RolloutStore(run_dir).load(stored.stem)
