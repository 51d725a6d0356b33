"""SIMPLER's published command lines become those of ``grape eval``, and nothing in them is silently ignored."""

from __future__ import annotations

import shlex

import pytest

from grape.cli.arguments import parse_config
from grape.cli.main import EXIT_USAGE, main
from grape.cli.simpler_eval import translate
from grape.config.evaluate import EvaluateConfig
from grape.errors import ConfigError

TABLE = """--policy-model openvla --ckpt-path some/policy --robot widowx --policy-setup widowx_bridge --control-freq 5
--sim-freq 500 --max-episode-steps 100 --env-name PutCarrotOnPlateInScene-v0 --scene-name bridge_table_1_v1
--rgb-overlay-path real_inpainting/bridge_real_eval_1.png --robot-init-x 0.147 0.147 1 --robot-init-y 0.028 0.028 1
--obj-variation-mode episode --obj-episode-range 0 50 --robot-init-rot-quat-center 0 0 0 1
--robot-init-rot-rpy-range 0 0 1 0 0 1 0 0 1"""
SINK = (
    TABLE.replace("--robot widowx ", "--robot widowx_sink_camera_setup ")
    .replace("PutCarrotOnPlateInScene-v0", "PutEggplantInBasketScene-v0")
    .replace("bridge_table_1_v1", "bridge_table_1_v2")
    .replace("bridge_real_eval_1.png", "bridge_sink.png")
    .replace("--robot-init-x 0.147 0.147 1", "--robot-init-x-range 0.127 0.127 1")
    .replace("--robot-init-y 0.028 0.028 1", "--robot-init-y-range 0.06 0.06 1")
)


def read(command: str) -> tuple[EvaluateConfig, str]:
    arguments, notes = translate(shlex.split(command))
    return parse_config(EvaluateConfig, "eval", arguments), "\n".join(notes)


def test_the_published_commands() -> None:
    config, notes = read(TABLE)
    assert (config.task_suite_name, config.task_ids, config.pretrained_checkpoint) == (
        "simpler_bridge", (0,), "some/policy",
    )  # fmt: skip
    assert (config.first_state, config.num_trials_per_task, config.max_steps) == (0, 24, 100)
    assert config.init_split == "official" and config.center_crop is False
    assert "ids 24 to 49 do not exist" in notes and "each once" in notes
    assert "runs PutCarrotOnPlateInScene-v1" in notes and "not the file real_inpainting" in notes

    config, notes = read(SINK)
    assert (config.task_ids, config.num_trials_per_task) == ((3,), 50) and "do not exist" not in notes
    for number, name in ((1, "StackGreenCubeOnYellowCubeBakedTexInScene"), (2, "PutSpoonOnTableClothInScene")):
        assert read(TABLE.replace("PutCarrotOnPlateInScene", name))[0].task_ids == (number,)


def test_with_its_interpreter_the_original_simulator_is_evaluated() -> None:
    config, notes = read(f"{SINK} --simpler_python other/python")
    assert (config.task_suite_name, config.task_ids) == ("simpler_env_bridge", (3,))
    assert config.num_trials_per_task == 24 and "ids 24 to 49 do not exist" in notes  # ManiSkill 3 has 64
    assert str(config.simpler_python) == "other/python" and "ManiSkill 3" not in notes
    _, notes = read("--ckpt-path p --env-name PutCarrotOnPlateInScene-v1 --simpler_python other/python")
    assert "PutCarrotOnPlateInScene-v1 is ManiSkill 3's; with --simpler_python this runs the original" in notes


def test_what_is_left_out_is_as_the_task_has_it_and_other_flags_are_ours() -> None:
    config, notes = read(
        "--ckpt-path p --env-name PutCarrotOnPlateInScene-v1 --num_workers 3 --center_crop True --logging-dir logs"
    )
    assert (config.num_trials_per_task, config.max_steps, config.num_workers) == (24, None, 3)
    assert config.center_crop is True and str(config.local_log_dir) == "logs" and notes == ""
    varied, _ = read("--ckpt-path p --env-name PutCarrotOnPlateInScene-v1 --task_suite_name simpler_bridge_subject")
    assert (varied.task_suite_name, varied.task_ids) == ("simpler_bridge_subject", (0,))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("--policy-model openvla", "--policy-model rt1", "policy-model is rt1; only openvla"),
        ("PutCarrotOnPlateInScene-v0", "PutCarotOnPlateInScene-v0", "Did you mean 'PutCarrotOnPlateInScene-v1'"),
        ("PutCarrotOnPlateInScene-v0", "PutEggplantInBasketScene-v0", "robot is widowx; only widowx_sink"),
        ("0.147 0.147 1", "0.147 0.2 3", "robot-init-x is 0.147 0.2 3.0; only 0.147 0.147 1.0"),
        ("--control-freq 5", "--control-freq 3", "control-freq is 3"),
        ("bridge_real_eval_1.png", "mine.png", "rgb-overlay-path is mine.png"),
        ("--obj-variation-mode episode", "--obj-variation-mode xy", "obj-variation-mode is xy"),
        ("--obj-episode-range 0 50", "--obj-episode-range 24 50", "has 0 to 23"),
        ("--obj-episode-range 0 50", "--obj-episode-range 5 5", "wanted ids from 0"),
        ("--sim-freq 500", "--sim-freq 500 --enable-raytracing", "enable-raytracing is True; it is not available"),
        ("--sim-freq 500", "--sim-freq 500 --obj-init-x-range 0 1 2", "obj-init-x-range is 0.0 1.0 2.0; it is not"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_reason(old: str, new: str, message: str) -> None:
    assert old in TABLE
    with pytest.raises(ConfigError, match=message):
        read(TABLE.replace(old, new))


def test_flags_without_effect_are_said() -> None:
    notes = read(TABLE + " --tf-memory-limit 3072 --octo-init-rng 0")[1]
    assert "tf-memory-limit is without effect" in notes and "octo-init-rng is without effect" in notes


def test_the_command_says_what_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simpler-eval", *shlex.split(TABLE), "--num_workers", "0"]) == EXIT_USAGE
    shown = capsys.readouterr().err
    assert "the same as: grape eval --pretrained_checkpoint some/policy" in shown and "num_workers is 0" in shown
