"""``grape score`` on stored episodes, as a user runs it."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grape.cli.main import run_command
from grape.cli.score import score_runs
from grape.config.score import PRESETS, ScoreConfig
from grape.errors import ConfigError, RecordError
from grape.trajectory import EpisodeInfo, Trajectory, save_trajectory

NAMES = ("bowl_1", "plate_1")
NUM_STEPS = 12


def facts_of(progress: int) -> dict[str, np.ndarray]:
    """A bowl grasped at row 4, lifted at 6, over the plate at 8 and placed at 10, as far as ``progress`` goes."""
    rows = np.arange(NUM_STEPS + 1)
    bowl = np.tile([0.2, 0.0, 0.0], (len(rows), 1))
    grasped = (rows >= 4) & (progress >= 1)
    bowl[(rows >= 6) & (progress >= 2), 2] = 0.1
    bowl[(rows >= 8) & (progress >= 3), 0] = 0.6
    placed = (rows >= 10) & (progress >= 4)
    plate = np.tile([0.6, 0.0, 0.0], (len(rows), 1))
    contact = np.stack([grasped, np.zeros_like(grasped)], axis=1)
    return {
        "ee_position": bowl + [0.0, 0.0, 0.05],
        "ee_quaternion": np.tile([1.0, 0, 0, 0], (len(rows), 1)),
        "gripper_opening": np.full(len(rows), 0.08),
        "keypoints": np.stack([bowl, plate], axis=1),
        "grasped": contact,
        "robot_contact": contact,
        "finger_contact": contact,
        "arm_contact": np.zeros(len(rows), bool),
        "goal_satisfied": placed[:, None],
        "ee_force": np.zeros(len(rows)),
        "joint_positions": np.full((len(rows), 2), np.nan),
    }


def episode(
    index: int, progress: int, *, state: int = 0, logp: float = -0.1, status: str | None = None, task: int = 0
) -> Trajectory:
    info = EpisodeInfo(
        simulator="libero", suite="libero_spatial", task_id=task, task_name="bowl", instruction="put it on the plate",
        init_state_id=f"rollout/{state}", init_state_hash=f"hash{state}", rollout_index=index, policy="nano",
        checkpoint_hash="abc", status=status or ("success" if progress == 4 else "failure"), num_steps=NUM_STEPS,  # type: ignore[arg-type]
        error="worker died" if status == "crashed" else None, keypoint_names=NAMES,
        goal_predicates=(("on", "bowl_1", "plate_1"),),
    )  # fmt: skip
    return Trajectory(
        info=info,
        images=np.zeros((NUM_STEPS, 8, 8, 3), np.uint8),
        action_tokens=np.full((NUM_STEPS, 7), 31900, np.int32),
        token_logps=np.full((NUM_STEPS, 7), logp, np.float32),
        sampler_logps=np.full((NUM_STEPS, 7), logp, np.float32),
        policy_actions=np.zeros((NUM_STEPS, 7), np.float32),
        actions=np.zeros((NUM_STEPS, 7), np.float32),
        states=np.zeros((NUM_STEPS, 8), np.float32),
        facts=facts_of(progress),
    )


def write_run(run: Path, episodes: list[Trajectory]) -> Path:
    (run / "episodes").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"format_version": 1, "settings": {}, "details": {}, "versions": {}}))
    for one in episodes:
        save_trajectory(run / "episodes" / f"{one.info.episode_id}.npz", one)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five episodes of one initial state, each one stage further than the last, and a crashed one."""
    episodes = [episode(i, i, logp=-0.1 - 0.01 * i) for i in range(5)]
    return write_run(tmp_path / "run", [*episodes, episode(5, 4, status="crashed")])


def test_scores_rank_by_progress_and_leave_the_crashed_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    assert run_command("score", [str(run), "--out", str(out), "--plot", str(tmp_path / "terms.png")]) == 0
    scores = json.loads(out.read_text())
    by_index = [scores["episodes"][episode(i, i).info.episode_id] for i in range(5)]
    assert [one["r_ext"] for one in by_index] == sorted(one["r_ext"] for one in by_index)
    assert by_index[4]["r_ext"] == pytest.approx(4.0, abs=0.2)
    assert [sum(stage["completed"] for stage in one["stages"]) for one in by_index] == [0, 1, 2, 3, 4]
    assert [stage["first_step"] for stage in by_index[4]["stages"]] == [0, 4, 6, 8]
    assert [stage["first_step"] for stage in by_index[1]["stages"]] == [0, 4, None, None]
    assert by_index[4]["score"] == max(one["score"] for one in by_index)
    assert by_index[2]["r_self"] == pytest.approx(-0.12 * 7 * NUM_STEPS, rel=1e-6)
    assert scores["unscored"] == {episode(5, 4).info.episode_id: "crashed: worker died"}
    assert set(scores["statistics"]["libero_spatial/0"]) == {"r_self", "r_ext", "i_success"}
    printed = capsys.readouterr().out
    assert "5 episodes scored, 1 crashed" in printed
    assert "4/5, lift: on bowl_1 plate_1 3/5, carry: on bowl_1 plate_1 2/5, place: on bowl_1 plate_1 1/5" in printed
    assert (tmp_path / "terms.png").read_bytes().startswith(b"\x89PNG")


def test_a_score_is_the_sum_of_its_stored_parts(run: Path) -> None:
    for preset, settings in PRESETS.items():
        scores = score_runs(ScoreConfig(runs=(run,), preset=preset, guided_cost=settings))
        for one in scores["episodes"].values():
            assert one["score"] == pytest.approx(sum(one["weighted"].values()) + one["success_shift"])
        assert sum(scores["report"]["libero_spatial/0"]["variance_share"].values()) == pytest.approx(1.0)


def test_scoring_again_with_other_settings_needs_only_the_flags(run: Path) -> None:
    before = {path: path.read_bytes() for path in (run / "episodes").iterdir()}
    assert run_command("score", [str(run)]) == 0
    assert run_command("score", [str(run), "--preset", "release", "--lambda_success", "7", "--tau_path", "1", "2"]) == 0
    default, release = (json.loads((run / "scores" / f"{name}.json").read_text()) for name in ("default", "release"))
    assert release["settings"] == json.loads(
        json.dumps(
            {"reward": "guided_cost", "preset": "release", "objective": "task_completion", "constraints_dir": None}
            | dataclasses.asdict(dataclasses.replace(PRESETS["release"], lambda_success=7.0, tau_path=(1.0, 2.0)))
        )
    )
    name = episode(4, 4).info.episode_id
    assert release["episodes"][name]["weighted"]["i_success"] == 7
    assert default["episodes"][name]["weighted"]["i_success"] == pytest.approx(2.0)  # 1 success of 5: (1 - 0.2) / 0.4
    assert {path: path.read_bytes() for path in (run / "episodes").iterdir()} == before


def test_constraints_from_a_folder_replace_the_derived_ones(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "constraints"
    folder.mkdir()
    stages = [{"name": "hold", "done_when": "grasped(bowl_1)", "path": "norm(ee - previous(ee))"}]
    (folder / "libero_spatial_0.json").write_text(json.dumps({"instruction": "x", "stages": stages, "source": "hand"}))
    scores = score_runs(ScoreConfig(runs=(run,), constraints_dir=folder))
    first = next(iter(scores["episodes"].values()))
    assert [stage["name"] for stage in first["stages"]] == ["hold"]
    assert first["constraints"] == "hand"
    assert "libero_spatial_0.json is about 'x', the episodes about" in capsys.readouterr().out


def test_a_damaged_episode_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sorted((run / "episodes").iterdir())[2]
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\0" * 100, _flip(whole)):
        path.write_bytes(damaged)
        assert run_command("score", [str(run)]) == 1
        assert path.name in capsys.readouterr().err
    assert not (run / "scores").exists()


def _flip(data: bytes) -> bytes:
    """One damaged byte inside the compressed facts."""
    at = data.index(b"facts/keypoints.npy") + 60
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def test_what_cannot_be_scored_is_told_why(tmp_path: Path, run: Path) -> None:
    with pytest.raises(RecordError, match="no run.json"):
        score_runs(ScoreConfig(runs=(tmp_path,)))
    empty = write_run(tmp_path / "empty", [episode(0, 4, status="crashed")])
    with pytest.raises(RecordError, match=r"no finished episode in .*empty \(1 crashed\)"):
        score_runs(ScoreConfig(runs=(empty,)))
    twin = write_run(tmp_path / "twin", [episode(0, 0)])
    with pytest.raises(RecordError, match="both hold"):
        score_runs(ScoreConfig(runs=(run, twin)))
    outcomes = write_run(tmp_path / "outcomes", [])
    (outcomes / "episodes" / "a.json").write_text("{}")
    with pytest.raises(RecordError, match="the outcome of a alone"):
        score_runs(ScoreConfig(runs=(outcomes,)))
    with pytest.raises(ConfigError, match="no run"):
        score_runs(ScoreConfig(runs=()))


def test_episodes_without_a_policy_are_scored_without_its_term(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = write_run(tmp_path / "scripted", [episode(0, 4, logp=float("nan")), episode(1, 2, logp=float("nan"))])
    assert run_command("score", [str(scripted)]) == 1
    assert "score it with --lambda_self 0" in capsys.readouterr().err
    assert run_command("score", [str(scripted), "--lambda_self", "0"]) == 0
    scores = json.loads((scripted / "scores" / "default.json").read_text())
    assert [one["r_self"] for one in scores["episodes"].values()] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--preset", "relase"], 1, "Did you mean 'release'"),
        (["--lambda_ext", "much"], 2, "lambda_ext"),
        (["--beta_path", "-1"], 2, "beta_path"),
        (["--lambda_self", "1e308"], 2, "lambda_self"),  # weighted by it, scores are infinite
        (["--constraints_dir", "nowhere"], 1, "nowhere"),
        (["--constraints_dir", "."], 1, "none of these tasks; wanted libero_spatial_0.json"),
        (["--objective"], 2, "usage: grape score"),
    ],
)
def test_a_wrong_flag_is_told(
    run: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert run_command("score", [str(run), *arguments]) == code
    captured = capfd.readouterr()
    assert message in captured.err + captured.out


@pytest.mark.parametrize("out", ["folder", "file/scores.json"])
def test_where_scores_cannot_go_is_one_line(
    run: Path, tmp_path: Path, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    assert run_command("score", [str(run), "--out", str(tmp_path / out)]) == 1
    assert f"grape score: {tmp_path / out} could not be written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "run"]


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"format_version": 1, "settings": []}'])
def test_a_damaged_run_is_not_scored(run: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "run.json").write_text(content)
    assert run_command("score", [str(run)]) == 1
    assert "run.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("keep_the_first", [True, False])
def test_a_copied_or_renamed_episode_is_named(
    run: Path, keep_the_first: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "episodes" / f"{episode(0, 0).info.episode_id}.npz"
    other = path.with_stem(episode(0, 0, state=7).info.episode_id)
    (shutil.copy if keep_the_first else shutil.move)(path, other)
    assert run_command("score", [str(run)]) == 1
    assert f"{other} holds the episode {path.stem}" in capsys.readouterr().err


def test_the_next_command_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spaced = write_run(tmp_path / "my run", [episode(0, 4), episode(1, 2)])
    assert run_command("score", [str(spaced)]) == 0
    printed = capsys.readouterr().out.partition("pair with: ")[2]
    scores = str(spaced / "scores" / "default.json")
    assert shlex.split(printed)[:5] == ["grape", "pair", str(spaced), "--scores", scores]


def test_scoring_needs_neither_torch_nor_a_simulator(run: Path) -> None:
    code = (
        "import sys; from grape.cli.main import run_command\n"
        f"assert run_command('score', [{str(run)!r}]) == 0\n"
        "assert not {'torch', 'tensorflow', 'libero', 'robosuite', 'mujoco'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
