"""The whole demo on the real simulator with a tiny random policy: a few steps per episode, every stage real."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grape.cli.demo import check_command
from grape.cli.main import EXIT_ERROR, main, run_command
from grape.config.demo import DemoConfig
from grape.demo.driver import run_demo
from grape.demo.revision import code_revision

MAX_STEPS = 5
ROLLOUT_FLAGS = {"render_profile": "fast", "center_crop": False, "camera_size": 64, "max_steps": MAX_STEPS}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("libero", reason="needs the extra libero")
    pytest.importorskip("tensorflow_datasets", reason="needs the extra rlds")
    from grape.models import save_policy
    from grape.models.nano import new_policy

    statistics = {"q01": [-0.9] * 6 + [0.0], "q99": [0.9] * 6 + [1.0], "mask": [True] * 6 + [False]}
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    save_policy(new_policy("test", norm_stats={"libero_object": {"action": statistics}}, seed=0), folder)
    return folder


@pytest.fixture(scope="module")
def plan(policy: Path) -> Path:
    content: dict[str, Any] = {
        "name": "demo_tiny",
        "question": "Does every stage run?",
        "policy": str(policy),
        "tasks": {"libero_object": [0]},
        "test_states": {"split": "heldout", "num_per_task": 2},
        "rollout_states": {"split": "rollout", "num_per_task": 1},
        "test": "two-sided exact McNemar, one look",
        "supervised_arm": True,
        "evaluate": ROLLOUT_FLAGS,
        "collect": {**ROLLOUT_FLAGS, "num_rollouts": 2},
        "score": {"lambda_self": 0},  # two normalised terms of two rollouts may cancel into a tie
        "pair": {"require_chosen_success": False, "cut_at_parting": True},  # a random policy never succeeds
        "train": {"lora_rank": 2},
        "sft": {"lora_rank": 2},
    }
    path = policy.parent / "plan.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.timeout(1800)  # about a minute on an idle core; simulators start slowly on a busy machine
def test_the_demo_stops_continues_and_reports(plan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = DemoConfig(plan=plan, run_dir=tmp_path / "run", num_workers=1, device="cpu")
    ran: list[str] = []

    def stop_before_training(name: str, argv: Sequence[str]) -> int:
        ran.append(name)
        if name == "train":
            raise KeyboardInterrupt
        return run_command(name, argv)

    with pytest.raises(KeyboardInterrupt):
        run_demo(config, stop_before_training, check_command)
    assert ran == ["eval", "collect", "score", "pair", "pair", "train"]  # cut, and whole for the supervised arm
    capfd.readouterr()

    flags = ["--plan", str(plan), "--run_dir", str(tmp_path / "run"), "--num_workers", "1", "--device", "cpu"]
    assert main(["demo", *flags]) == 0
    shown = capfd.readouterr().out
    assert "pair: done in an earlier run" in shown
    assert "no significant change" in shown.splitlines()[-4]
    check_result(json.loads((tmp_path / "run" / "result.json").read_text()))
    check_report((tmp_path / "run" / "report.html").read_text())

    plan.write_text(plan.read_text().replace('"lora_rank": 2', '"lora_rank": 3'))
    assert main(["demo", *flags]) == EXIT_ERROR
    assert "plan.sft.lora_rank was 2, now it is 3" in capfd.readouterr().err


def check_result(result: dict[str, Any]) -> None:
    (task,) = result["tasks"]
    assert task["init_states"] == ["heldout/0", "heldout/1"]
    assert task["before"] == task["after"] == task["supervised"] == [False, False]
    assert all(distance > 0 for distance in task["nearest_used_state_m"]), "test and rollout states are disjoint"
    assert max(extent for area in task["spread_m"].values() for extent in area) > 0.002, "two states, two places"
    hashes = result["checkpoint_hashes"]
    assert len(set(hashes.values())) == 3, "each arm is another policy"
    assert set(result["wall_time_s"]) == set(result["commands"]) == set(result["killed_attempts"])
    assert {stage for means in result["ran_with"] for stage in means["stages"]} == set(result["commands"])
    means = result["ran_with"][-1]  # the only entry, unless somebody edits grape/ while this test runs
    assert (means["device"], means["num_workers"]) == ("cpu", 1)
    assert means["code_commit"] == code_revision()["code_commit"]
    (round_,) = result["iterations"]
    assert round_["rollouts"] == {"failure": 2}
    assert (round_["num_pairs"], round_["num_gradient_steps"]) == (1, 1)
    assert result["settings"]["supervised"]["max_steps"] == round_["num_gradient_steps"]
    assert result["versions"]["mujoco"]


def check_report(report: str) -> None:
    assert "<video" in report and "data:video/mp4;base64," in report
    assert report.count("<svg") >= 5
    addresses = re.findall(r'(?:src|href)="([^"]*)"', report)
    assert addresses and all(address.startswith("data:") for address in addresses), "nothing is loaded from elsewhere"
    for word in (
        "before",
        "after preference optimization",
        "chosen",
        "rejected",
        "R_self",
        "R_ext",
        "I_success",
        "two-sided exact McNemar, one look",
    ):
        assert word in report


def test_official_states_need_a_committed_plan(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(plan.read_text()) | {"test_states": {"split": "official", "num_per_task": 1}}
    uncommitted = tmp_path / "plan.json"
    uncommitted.write_text(json.dumps(content))
    assert main(["demo", "--plan", str(uncommitted), "--run_dir", str(tmp_path / "run")]) == EXIT_ERROR
    assert "commit the plan before its test states are touched" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "log.md").exists()
