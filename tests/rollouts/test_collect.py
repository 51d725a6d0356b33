"""Collection in the real simulator with a real, tiny policy."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from grape.cli.collect import summarize
from grape.cli.main import EXIT_ERROR, EXIT_USAGE, main
from grape.config.collect import CollectConfig
from grape.config.inputs import CROP_KEY
from grape.envs.libero.actions import to_libero
from grape.rollouts.policy import note_other_crop
from grape.rollouts.store import RolloutStore
from grape.trajectory import Trajectory
from tests.rollouts.conftest import SETTINGS

STEP_ARRAYS = ("images", "action_tokens", "policy_actions", "actions", "states")


def assert_same_episode(got: Trajectory, wanted: Trajectory) -> None:
    assert got.info.init_state_hash == wanted.info.init_state_hash != ""
    assert (got.info.status, got.info.num_steps) == (wanted.info.status, wanted.info.num_steps)
    for name in STEP_ARRAYS:
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)
    for name in wanted.facts:
        np.testing.assert_array_equal(got.facts[name], wanted.facts[name], err_msg=name)
    for name in ("token_logps", "sampler_logps"):
        # Another batch size adds up in another order: a few float32 ulps of values near 10.
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), atol=2e-5)


def test_episodes_are_complete_and_distinct(collected_run: Path) -> None:
    store = RolloutStore(collected_run)
    episodes = [*map(store.load, store.episode_ids())]
    assert [episode.info.episode_id for episode in episodes] == [
        f"libero_spatial--00--rollout-{state}--r{rollout:03d}" for state in range(2) for rollout in range(2)
    ]
    for episode in episodes:
        info = episode.info
        assert (info.status, info.num_steps, info.seed) == ("failure", 5, 0)
        assert info.simulator_settings["versions"]["mujoco"] and info.simulator_settings["max_steps"] == 5
        assert info.policy_settings["temperature"] == 1.0 and info.policy_settings["unnorm_key"] == "libero_spatial"
        assert episode.facts["keypoints"].shape == (6, len(info.keypoint_names), 3)
        assert len(info.checkpoint_hash) == 64
    same_state, other_state = episodes[1], episodes[2]
    assert same_state.info.init_state_hash == episodes[0].info.init_state_hash != other_state.info.init_state_hash
    assert not np.array_equal(same_state.action_tokens, episodes[0].action_tokens)


def test_workers_do_not_change_results(collected_run: Path, tiny_policy_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "two_workers"
    arguments = ["--pretrained_checkpoint", str(tiny_policy_dir), "--run_dir", str(run_dir), "--num_workers", "2"]
    assert main(["collect", *arguments, *SETTINGS]) == 0
    one, two = RolloutStore(collected_run), RolloutStore(run_dir)
    assert one.episode_ids() == two.episode_ids()
    for episode_id in one.episode_ids():
        assert_same_episode(two.load(episode_id), one.load(episode_id))


def test_the_record_replays(collected_run: Path, libero: None) -> None:
    """Each stored picture is what the simulator shows before its action, and the stored action is what it took."""
    from grape.envs.libero import make_libero_env
    from grape.envs.protocol import InitStateId
    from grape.models.preprocessing import prepare_image

    episode = RolloutStore(collected_run).load("libero_spatial--00--rollout-1--r001")
    size = episode.images.shape[1]
    env = make_libero_env("libero_spatial", 0, render_profile="fast", camera_size=64)
    try:
        observation = env.reset(InitStateId.parse(episode.info.init_state_id))
        assert env.init_state_hash == episode.info.init_state_hash
        for step in range(episode.info.num_steps):
            np.testing.assert_array_equal(episode.images[step], prepare_image(observation.image, size))
            np.testing.assert_array_equal(episode.states[step], observation.state)
            for name, value in env.facts().items():
                np.testing.assert_array_equal(episode.facts[name][step], value, err_msg=name)
            action = env.to_simulator_action(episode.policy_actions[step])
            np.testing.assert_array_equal(episode.actions[step], action)
            observation = env.step(action).observation
        np.testing.assert_array_equal(episode.facts["ee_position"][-1], env.facts()["ee_position"])
    finally:
        env.close()


def test_tokens_and_log_probabilities_belong_together(collected_run: Path, tiny_policy_dir: Path) -> None:
    from grape.models import load_policy

    policy = load_policy(tiny_policy_dir, device="cpu")
    episode = RolloutStore(collected_run).load("libero_spatial--00--rollout-0--r000")
    actions = policy.decode_actions(episode.action_tokens, "libero_spatial")
    np.testing.assert_array_equal(episode.policy_actions, actions.astype(np.float32))
    scored = policy.log_prob(
        list(episode.images), [episode.info.instruction] * 5, episode.action_tokens, center_crop=True
    )
    # Decoding with a cache and scoring in one pass add up in another order: float32 rounding at values near 10.
    np.testing.assert_allclose(scored.detach().numpy(), episode.token_logps, atol=1e-4)
    # Restricted to the actions, the same choice is at least as likely as over the whole vocabulary.
    assert (episode.sampler_logps >= episode.token_logps - 1e-5).all()


def test_gripper_by_hand() -> None:
    # The policy's 1 is open, LIBERO's -1 is open; binarised at one half.
    actions = np.array([[0.1, 0, 0, 0, 0, 0, 1.0], [0.2, 0, 0, 0, 0, 0, 0.49], [0.3, 0, 0, 0, 0, 0, 0.51]], np.float32)
    got = to_libero(actions)
    np.testing.assert_array_equal(got[:, -1], [-1, 1, -1])
    np.testing.assert_array_equal(got[:, :-1], actions[:, :-1])
    assert actions[0, -1] == 1.0, "the policy's own action must not be changed"


def test_bad_input_starts_nothing(tiny_policy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*changes: str) -> str:
        run_dir = tmp_path / "run"
        base = ["--pretrained_checkpoint", str(tiny_policy_dir), "--run_dir", str(run_dir)]
        assert main(["collect", *base, *changes]) in (EXIT_ERROR, EXIT_USAGE)
        assert not run_dir.exists()
        return " ".join(capsys.readouterr().err.split())

    assert "Did you mean 'libero_spatial'" in refused("--task_suite_name", "libero_spatail")
    assert "wanted 0 to 9" in refused("--task_ids", "10")
    assert "libero_spatial" in refused("--unnorm_key", "libero_goal")
    assert "these are the test states" in refused("--init_split", "official")
    assert str(tmp_path / "nothing") in refused("--pretrained_checkpoint", str(tmp_path / "nothing"))
    assert "camera_size is 0; libero has 16 to 4096 pixels" in refused("--camera_size", "0")
    simpler = ("--task_suite_name", "simpler_bridge", "--camera_size", "100")
    assert "camera_size is 100; simpler has 48 to 2160 pixels in steps of 3" in refused(*simpler)
    damaged = shutil.copytree(tiny_policy_dir, tmp_path / "damaged")
    content = json.loads((damaged / "config.json").read_text())
    content["norm_stats"]["libero_spatial"]["action"]["q99"].pop()
    (damaged / "config.json").write_text(json.dumps(content))
    assert "differ in length" in refused("--pretrained_checkpoint", str(damaged))


def test_the_next_command_can_be_pasted() -> None:
    shown = summarize(CollectConfig(pretrained_checkpoint="p", run_dir=Path("my run")), [])
    assert shlex.split(shown.partition("next: ")[2]) == ["grape", "score", "my run"]


@pytest.mark.parametrize(
    ("says", "center_crop", "is_noted"),
    [
        ({}, True, False),
        ({CROP_KEY: False}, True, True),
        ({CROP_KEY: False}, False, False),
        ({CROP_KEY: True}, False, True),
    ],
)
def test_a_crop_that_the_policy_was_not_trained_for_is_noted(
    says: dict[str, bool], center_crop: bool, is_noted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    note_other_crop(says, center_crop=center_crop)
    assert (f"pass --center_crop {not center_crop}" in caplog.text) is is_noted


def test_a_saved_policy_still_says_its_crop(
    tiny_policy_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from grape.models import load_policy, save_policy
    from grape.rollouts.session import open_policy

    policy = load_policy(tiny_policy_dir, device="cpu")
    policy.source_config[CROP_KEY] = False
    save_policy(policy, tmp_path / "nano")
    open_policy(CollectConfig(pretrained_checkpoint=str(tmp_path / "nano"), run_dir=tmp_path / "run", device="cpu"))
    assert "pass --center_crop False" in caplog.text
