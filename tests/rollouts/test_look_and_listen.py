"""The settings and arms of experiments/nano/look_and_listen.py."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from grape.config.evaluate import EvaluateConfig
from grape.errors import ConfigError
from grape.rollouts.policy import DecisionRequest
from grape.rollouts.session import plan_jobs


def test_the_official_states_are_refused(repository: Path) -> None:
    pytest.importorskip("torch")
    kind = runpy.run_path(str(repository / "experiments" / "nano" / "look_and_listen.py"))["LookAndListen"]
    assert kind(pretrained_checkpoint="p", run_dir=Path("r")).init_split == "validation"
    with pytest.raises(ConfigError, match="for testing only"):
        kind(pretrained_checkpoint="p", run_dir=Path("r"), init_split="official")


def test_each_arm_changes_what_the_policy_is_shown_or_told(repository: Path) -> None:
    pytest.importorskip("libero", reason="needs the extra libero")
    script = runpy.run_path(str(repository / "experiments" / "nano" / "look_and_listen.py"))
    arms = script["make_arms"](script["LookAndListen"](pretrained_checkpoint="p", run_dir=Path("r"), task_ids=(8, 1)))
    plan = EvaluateConfig(pretrained_checkpoint="p", task_suite_name="libero_goal", task_ids=(8, 1))
    job, other = (next(job for job in plan_jobs(plan) if job.task.task_id == task_id) for task_id in (8, 1))
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    requests = [
        DecisionRequest(
            job=job, step=step, instruction=job.task.instruction, image=image, state=np.zeros(8, np.float32), facts={},
            uniforms=np.zeros(7),
        )
        for step, image in enumerate(images)
    ]  # fmt: skip
    seen = {name: [change(request) for request in requests] for name, change in arms.items()}
    assert seen["normal"] == requests
    assert all((request.image == 127).all() for request in seen["blank"])
    assert all((request.image == images[0]).all() for request in seen["frozen"])
    assert [request.instruction for request in seen["other_instruction"]] == [other.task.instruction] * 2
    assert all(request.job is job for request in seen["other_instruction"]), "success is still that of the task"
