"""``grape constraints check`` on real LIBERO episodes: an expert's successes, a careless one's failures, and
constraints that were spoilt on purpose. Every sabotage is written by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grape.cli.constraints_check import check_rollouts, main
from grape.config.constraints_check import ConstraintsCheckConfig
from grape.constraints import derive_constraints
from grape.envs.libero.experts import PickAndPlaceExpert
from grape.envs.protocol import InitStateId
from grape.errors import ConstraintError
from grape.trajectory import EpisodeInfo, Trajectory, load_info, load_trajectory
from tests.rewards.test_score_command import write_run

NUM_STATES, NUM_STEPS = 3, 90
BOWL, PLATE, STOVE = "akita_black_bowl_1", "plate_1", "flat_stove_1_cook_region"
TASK = "libero_goal/8"


def roll_out(env, state: int, careless_m: float) -> Trajectory:
    """One episode; every tenth picture is rendered, those between repeat it."""
    expert = PickAndPlaceExpert(env.task, careless_m=careless_m)
    init_state = InitStateId("train", state)
    image = env.reset(init_state).image
    rows, images, success = [env.facts()], [], False
    while len(images) < NUM_STEPS and not success:
        images.append(image)
        result = env.step(expert.act(rows[-1]), render=len(images) % 10 == 0)
        image = result.observation.image if result.observation.image.size else image
        rows.append(env.facts())
        success = result.success
    task, num_steps = env.task, len(images)
    info = EpisodeInfo(
        simulator="libero", suite=task.suite, task_id=task.task_id, task_name=task.name, instruction=task.instruction,
        init_state_id=str(init_state), init_state_hash=env.init_state_hash, rollout_index=int(careless_m > 0),
        policy="scripted", checkpoint_hash="", status="success" if success else "failure", num_steps=num_steps,
        keypoint_names=task.keypoint_names, goal_predicates=task.goal_predicates,
    )  # fmt: skip
    unsampled = {name: np.full((num_steps, 7), np.nan, np.float32) for name in ("token_logps", "sampler_logps")}
    moves = {name: np.zeros((num_steps, 7), np.float32) for name in ("policy_actions", "actions")}
    return Trajectory(
        info=info, images=np.stack(images), action_tokens=np.full((num_steps, 7), -1, np.int32), **unsampled, **moves,
        states=np.zeros((num_steps, 8), np.float32),
        facts={name: np.stack([row[name] for row in rows]) for name in rows[0]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def rollouts(make_env, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three states, each once with the expert and once with one who closes the fingers 5 cm beside the rim."""
    env = make_env("libero_goal", 8)
    episodes = [roll_out(env, state, careless_m) for state in range(NUM_STATES) for careless_m in (0.0, 0.05)]
    return write_run(tmp_path_factory.mktemp("runs") / "experts", episodes)


@pytest.fixture(scope="module")
def derived(rollouts: Path) -> dict:
    """The derived constraints as a file would hold them."""
    info = load_info(next(iter(sorted((rollouts / "episodes").iterdir()))))
    return dataclasses.asdict(derive_constraints(info.goal_predicates, info.keypoint_names, info.instruction))


@pytest.fixture
def check(rollouts: Path, tmp_path: Path):
    """Checks plain data as a file, and returns the task's report."""

    def run(constraints: dict, **settings) -> dict:
        path = tmp_path / "constraints.json"
        path.write_text(json.dumps(constraints))
        config = ConstraintsCheckConfig(file=path, rollouts=(rollouts,), num_resamples=200, **settings)
        return check_rollouts(config)["tasks"][TASK]

    return run


def replaced(constraints: dict, old: str, new: str, stages: tuple[int, ...] = (0, 1, 2, 3)) -> dict:
    """The same constraints with a piece of text replaced in the expressions of some stages."""
    kept = {"name", "subtask", "thresholds"}
    return {
        **constraints,
        "stages": [
            {k: v if k in kept or v is None or i not in stages else v.replace(old, new) for k, v in stage.items() if v}
            for i, stage in enumerate(constraints["stages"])
        ],
    }


def test_derived_constraints_are_found_usable(rollouts, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["--rollouts", str(rollouts), "--out", str(out), "--num_resamples", "200"]) == 0
    report = json.loads(out.read_text())
    one = report["tasks"][TASK]
    assert report["usable"] and one["reasons"] == []
    assert (one["num_successes"], one["num_failures"], one["num_initial_states"]) == (3, 3, 3)
    assert [stage["num_successes_own"] for stage in one["stages"]] == [3] * 4
    assert [stage["num_failures_own"] for stage in one["stages"]] == [0] * 4
    assert [stage["num_failures_end_here"] for stage in one["stages"]] == [3, 0, 0, 0]
    steps = [stage["median_step"] for stage in one["stages"]]
    assert steps == sorted(steps) and one["share_in_order"] == 1.0
    assert one["ranking"]["auc"] == one["ranking"]["auc_blind"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert one["is_reference"] and one["reads_goal"]
    printed = capsys.readouterr().out
    assert "usable, with" in printed and "whole, goal() taken away" in printed
    assert printed.index("3 initial state(s) only") < printed.index("How it ranks")  # what to mend comes first


def test_a_wrong_keypoint_is_noticed(check, derived):
    found = check(replaced(derived, BOWL, "wine_bottle_1"))  # the bottle is never grasped; the goal is still reached
    assert [reason.split(" is never")[0] for reason in found["reasons"]] == [
        f"stage '{stage['name']}'" for stage in derived["stages"][:3]
    ]
    unknown = check({**replaced(derived, BOWL, "akita_black_bowl_7"), "keypoint_names": ()})
    assert "Did you mean 'akita_black_bowl_1'" in unknown["reasons"][0] and "ranking" not in unknown


def test_a_stage_that_is_never_done_is_noticed(check, derived):
    stages = [dict(stage) for stage in replaced(derived, "", "")["stages"]]
    stages[1]["done_when"] = f'height(keypoint("{BOWL}")) - start(height(keypoint("{BOWL}"))) >= 1.5'  # m
    found = check({**derived, "stages": stages})
    assert len(found["reasons"]) == 1 and ">= 1.5 hold" in found["reasons"][0]


def test_a_reversed_sign_is_noticed(check):
    held = {"name": "keep off", "done_when": "goal(0)", "collision": f"where(grasped({BOWL}), 1, 0)"}
    found = check({"instruction": "put the bowl on the plate", "stages": [held]})
    assert found["ranking"]["auc"]["high"] < 0.5
    assert "failures cost less than successes" in found["reasons"][0]
    assert any("costs successes more" in warning for warning in found["warnings"])


def test_constraints_of_another_task_are_noticed(check, derived):
    stove = derive_constraints([("on", BOWL, STOVE)], derived["keypoint_names"], "put the bowl on the stove")
    found = check(replaced(dataclasses.asdict(stove), "", ""))
    assert any("the constraints are about 'put the bowl on the stove'" in warning for warning in found["warnings"])
    # goal(0) is this task's own, so the stages count as completed; that nothing was carried there still shows
    assert found["stages"][2]["num_successes_completed"] == 3 and found["stages"][2]["num_successes_own"] == 0
    assert any(reason.startswith("stage 'carry") and "never completed" in reason for reason in found["reasons"])


def test_centimetres_are_noticed(check, derived):
    plain = replaced(derived, "", "")
    scaled = [{**stage, "sub_goal": f"100 * ({stage['sub_goal']})"} for stage in plain["stages"]]
    warned = [text for text in check({**derived, "stages": scaled})["warnings"] if "metres are wanted" in text]
    assert [text.split(", sub_goal")[0] for text in warned][0] == f"stage '{scaled[0]['name']}'"
    far = {"name": "near", "done_when": f"horizontal_distance({BOWL}, {PLATE}) <= 0.8", "path": "norm(ee)"}
    with pytest.raises(ConstraintError, match="<= 8' puts 8 beside metres"):
        check({"instruction": "x", "stages": [{**far, "done_when": far["done_when"].replace("0.8", "8")}]})
    assert any("over before it began" in text for text in check({"instruction": "x", "stages": [far]})["warnings"])
    stages = [{**stage, "thresholds": {"path": 9}} for stage in plain["stages"]]
    idle = [note for note in check({**derived, "stages": stages})["notes"] if "never exceeded" in note]
    assert all(f"{stage['name']}, path (9)" in idle[0] for stage in stages)


def test_what_cannot_be_evaluated_is_told_with_expression_and_row(check, derived):
    broken = replaced(derived, "", "")
    broken["stages"][0]["path"] = f"1 / robot_contact({BOWL})"
    found = check(broken)
    assert "robot_contact(akita_black_bowl_1) is inf at row" in found["reasons"][0]
    assert found["reasons"][0].endswith("in 6 of 6 episodes") and "ranking" not in found


def test_a_strip_shows_a_success_and_a_failure(rollouts, tmp_path, capsys):
    path = tmp_path / "strip.webp"
    assert main(["--rollouts", str(rollouts), "--strip", str(path), "--num_resamples", "200"]) == 0
    said = capsys.readouterr().out
    assert "success libero_goal--08--train-0--r000 and failure libero_goal--08--train-0--r001" in said
    assert f"marked 1: {BOWL}, 2: {PLATE}" in said
    with Image.open(path) as picture:
        assert picture.format == "WEBP" and picture.width == 4 * 320 and picture.height > 4 * 320


def test_marks_of_a_strip_sit_on_their_objects(make_env, rollouts):
    from grape.cli.check_strip import _project

    env = make_env("libero_goal", 8, camera_size=256)
    env.reset(InitStateId("train", 0))
    view = env.view()
    trajectory = load_trajectory(rollouts / "episodes" / "libero_goal--08--train-0--r000.npz")
    assert trajectory.images.shape[1:] == (64, 64, 3) and view.image.shape == (256, 256, 3)
    for name in (BOWL, PLATE):
        index = env.task.keypoint_names.index(name)
        [(column, row)] = _project(view, trajectory.facts["keypoints"][0, [index]], trajectory.images.shape[1:])
        seen = np.argwhere(view.segmentation == index + 1) / 4  # in pixels of the stored picture
        assert np.linalg.norm(seen - [row, column], axis=1).min() < 1, "origins lie at the foot of an object"
        assert np.linalg.norm(seen.mean(axis=0) - [row, column]) < 3
