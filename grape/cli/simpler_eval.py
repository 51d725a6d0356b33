"""``grape simpler-eval``: ``grape eval`` of one WidowX task under SIMPLER's published flags.

On ManiSkill 3, or with ``--simpler_python`` in the original SIMPLER.

Each flag is honoured, found to say what the task has anyway, said to be without effect, or refused with the reason.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from grape.cli import evaluate
from grape.envs.protocol import TaskSpec
from grape.envs.simpler.setups import SETUPS, Setup
from grape.envs.simpler.tasks import BRIDGE_TASKS, SUITE
from grape.envs.simpler_env import BRIDGE_SUITE as ORIGINAL_SUITE
from grape.envs.suites import suite_task
from grape.errors import ConfigError, did_you_mean

UPRIGHT = [0.0, 0.0, 1.0] * 3
"""Roll, pitch and yaw: from 0 to 0 in one step."""


def main(argv: list[str] | None = None) -> int:
    """Translate the command line, say what differs, and evaluate."""
    arguments, notes = translate(sys.argv[1:] if argv is None else argv)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"the same as: {shlex.join(['grape', 'eval', *arguments])}", file=sys.stderr)
    return evaluate.main(arguments)


def translate(argv: list[str]) -> tuple[list[str], list[str]]:
    """Published flags as those of ``grape eval``, and what there is to say about them.

    Raises:
        ConfigError: A flag asks for what this simulator does not have.
    """
    given, own = make_parser().parse_known_args(argv)
    said = {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in own if word.startswith("--")}
    suite = ORIGINAL_SUITE if "simpler_python" in said else SUITE
    notes: list[str] = []
    task_id = find_task(given.env_name, suite, notes)
    _check_setup(given, SETUPS[BRIDGE_TASKS[task_id].scene], notes)
    first, count = state_range(given.obj_episode_range, suite_task(suite, task_id), notes)
    flags = {
        "pretrained_checkpoint": given.ckpt_path,
        "task_suite_name": suite,
        "task_ids": task_id,
        "first_state": first,
        "num_trials_per_task": count,
        "max_steps": given.max_episode_steps,
        "center_crop": False,  # the published evaluation has no crop
        "local_log_dir": given.logging_dir,
        "run_id_note": given.additional_env_save_tags,
    }
    kept = {name: value for name, value in flags.items() if value is not None and name not in said}
    return [word for name, value in kept.items() for word in (f"--{name}", str(value))] + own, notes


def make_parser() -> argparse.ArgumentParser:
    """The published flags; what is left out is as the task has it."""
    parser = argparse.ArgumentParser(
        prog="grape simpler-eval", allow_abbrev=False, epilog="All other flags go to grape eval."
    )
    parser.add_argument("--policy-model", default="openvla", help="openvla")
    parser.add_argument("--ckpt-path", required=True, help="folder in OpenVLA's published layout, or hub id")
    parser.add_argument("--env-name", required=True, help="e.g. PutCarrotOnPlateInScene-v0")
    parser.add_argument("--policy-setup", help="widowx_bridge")
    parser.add_argument("--robot", help="widowx, or widowx_sink_camera_setup at the sink")
    parser.add_argument("--scene-name", help="bridge_table_1_v1, or bridge_table_1_v2 at the sink")
    parser.add_argument("--rgb-overlay-path", type=Path, help="bridge_real_eval_1.png, or bridge_sink.png at the sink")
    parser.add_argument("--control-freq", type=int, help="Hz")
    parser.add_argument("--sim-freq", type=int, help="Hz")
    parser.add_argument("--max-episode-steps", type=int, help="actions per episode; else the task's own")
    for axis in "xy":
        names = (f"--robot-init-{axis}", f"--robot-init-{axis}-range")
        parser.add_argument(*names, type=float, nargs=3, metavar=("MIN", "MAX", "NUM"), help="m")
    parser.add_argument("--robot-init-rot-quat-center", type=float, nargs=4, metavar=("X", "Y", "Z", "W"))
    parser.add_argument("--robot-init-rot-rpy-range", type=float, nargs=9, metavar="ANGLE", help="rad")
    parser.add_argument("--obj-variation-mode", help="episode")
    parser.add_argument("--obj-episode-range", type=int, nargs=2, metavar=("FIRST", "END"), help="ids, END left out")
    for axis in "xy":
        parser.add_argument(f"--obj-init-{axis}-range", type=float, nargs=3, help="not available here")
    parser.add_argument("--obs-camera-name", help="3rd_view_camera")
    parser.add_argument("--action-scale", type=float, help="1")
    parser.add_argument("--enable-raytracing", action="store_true", help="not available here")
    parser.add_argument("--additional-env-build-kwargs", nargs="+", help="not available here")
    parser.add_argument("--additional-env-save-tags", help="added to the name of the run folder")
    parser.add_argument("--logging-dir", help="the run folder is made in here")
    parser.add_argument("--tf-memory-limit", type=int, help="without effect")
    parser.add_argument("--octo-init-rng", type=int, help="without effect")
    return parser


def find_task(env_name: str, suite: str, notes: list[str]) -> int:
    """Position of a task in either suite, by the name of its environment in the original SIMPLER or in ManiSkill 3.

    Raises:
        ConfigError: There is no such task.
    """
    names = [task.environment for task in BRIDGE_TASKS]
    current = env_name.removesuffix("-v0") + "-v1" if env_name.endswith("-v0") else env_name
    if current not in names:
        raise ConfigError(f"env-name {env_name!r} is none of the WidowX tasks.{did_you_mean(current, names)}")
    if suite == ORIGINAL_SUITE and current == env_name:
        notes.append(f"{env_name} is ManiSkill 3's; with --simpler_python this runs the original, whose figures differ")
    if suite == SUITE and current != env_name:
        notes.append(
            f"{env_name} is the original SIMPLER's; this runs {current} of ManiSkill 3, whose figures may differ "
            "(--simpler_python runs the original)"
        )
    return names.index(current)


def state_range(wanted: list[int] | None, task: TaskSpec, notes: list[str]) -> tuple[int, int]:
    """First published state and their number: never more than there are.

    Raises:
        ConfigError: The range is empty, or wholly beyond the last state.
    """
    num_official = task.num_official_states
    assert num_official is not None, "each of these tasks knows"
    first, end = wanted or (0, num_official)
    if not 0 <= first < min(end, num_official):
        raise ConfigError(
            f"obj-episode-range is {first} {end}; wanted ids from 0, and {task.name} has 0 to {num_official - 1}"
        )
    if end > num_official:
        notes.append(
            f"ids {num_official} to {end - 1} do not exist: in the original SIMPLER they wrap round and repeat "
            f"earlier ones, so ids {first} to {num_official - 1} are evaluated, each once"
        )
    return first, min(end, num_official) - first


def _check_setup(given: argparse.Namespace, setup: Setup, notes: list[str]) -> None:
    """Refuse what the task does not have; what is not given is as the task has it."""
    x, y = setup.robot_xy_m
    fixed: list[tuple[str, object, Iterable[object]]] = [
        ("policy-model", given.policy_model, ["openvla"]),
        ("policy-setup", given.policy_setup, ["widowx_bridge"]),
        ("robot", given.robot, [setup.robot]),
        ("scene-name", given.scene_name, [setup.scene_name]),
        ("rgb-overlay-path", given.rgb_overlay_path and given.rgb_overlay_path.name, [setup.overlay]),
        ("control-freq", given.control_freq, [5]),
        ("sim-freq", given.sim_freq, [500]),
        ("robot-init-x", given.robot_init_x, [[x, x, 1.0]]),
        ("robot-init-y", given.robot_init_y, [[y, y, 1.0]]),
        ("robot-init-rot-quat-center", given.robot_init_rot_quat_center, [[0.0, 0.0, 0.0, 1.0]]),
        ("robot-init-rot-rpy-range", given.robot_init_rot_rpy_range, [UPRIGHT]),
        ("obj-variation-mode", given.obj_variation_mode, ["episode"]),
        ("obj-init-x-range", given.obj_init_x_range, []),
        ("obj-init-y-range", given.obj_init_y_range, []),
        ("obs-camera-name", given.obs_camera_name, ["3rd_view_camera"]),
        ("action-scale", given.action_scale, [1.0]),
        ("enable-raytracing", given.enable_raytracing or None, []),
        ("additional-env-build-kwargs", given.additional_env_build_kwargs, []),
    ]
    for name, value, known in fixed:
        allowed = list(known)
        if value is not None and value not in allowed:
            wanted = f"only {_words(allowed[0])} is" if allowed else "it is not"
            raise ConfigError(f"{name} is {_words(value)}; {wanted} available for this task")
    if given.rgb_overlay_path is not None:
        notes.append(
            f"the background is {setup.overlay} of the installed assets, not the file {given.rgb_overlay_path}"
        )
    for name in ("tf_memory_limit", "octo_init_rng"):
        if getattr(given, name) is not None:
            notes.append(f"{name.replace('_', '-')} is without effect: there is neither TensorFlow nor Octo here")


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
