"""The tasks of the original SIMPLER: four of the WidowX, twenty-one of the Google Robot.

Read from SimplerEnv at commit 4ab7178 (``simpler_env/__init__.py``) and ManiSkill2_real2sim at commit 16a9ba9.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from grape.envs.guards import find_task
from grape.envs.protocol import TaskSpec
from grape.envs.simpler.tasks import BRIDGE_TASKS, BridgeTask
from grape.envs.simpler_env.published import PUBLISHED, Published

BRIDGE_SUITE = "simpler_env_bridge"
GOOGLE_SUITE = "simpler_env_google"


@dataclass(frozen=True, kw_only=True)
class Robot:
    """What is the same for all tasks of a robot."""

    camera: str
    image_height: int
    image_width: int
    """Pixels; the published picture sizes."""
    measures_fingers_in_m: bool
    """Else in rad."""
    is_gripper_relative: bool


ROBOTS: dict[str, Robot] = {
    BRIDGE_SUITE: Robot(
        camera="3rd_view_camera",
        image_height=480,
        image_width=640,
        measures_fingers_in_m=True,
        is_gripper_relative=False,
    ),
    GOOGLE_SUITE: Robot(
        camera="overhead_camera",
        image_height=512,
        image_width=640,
        measures_fingers_in_m=False,
        is_gripper_relative=True,
    ),
}
"""By suite."""


@dataclass(frozen=True, kw_only=True)
class OriginalTask:
    """One name of ``simpler_env.make`` and what is known about it beforehand."""

    name: str
    instruction: str
    """Of the environment; with a word in <> where it depends on the initial state."""
    max_steps: int
    """As published: 60 or 120 at 5 Hz, 80, 113 or 200 at 3 Hz."""
    goal: tuple[str, ...]
    objects: tuple[str, ...]
    """Attributes of the environment that hold the keypoints; ``drawer`` is the drawer's link."""
    keypoint_names: tuple[str, ...]
    published: Published | None = None
    """Initial states of the published evaluation of the Google Robot; ``None`` where there is none."""
    bridge: BridgeTask | None = None
    """For the sampling of further states of the WidowX tasks."""
    is_sampled: bool = True
    """Further states than the published ones can be drawn."""
    changes_instruction: bool = False

    @property
    def num_official(self) -> int:
        """How many different initial states are published."""
        if self.bridge is not None:
            return self.bridge.num_official
        return 0 if self.published is None else len(self.published)


def _bridge(position: int, name: str) -> OriginalTask:
    """The same task as on ManiSkill 3: words, limits and objects are the original's there."""
    task = BRIDGE_TASKS[position]
    if task.scene == "sink":  # 8 positions and 3 orientations of the eggplant; ManiSkill 3 has 8 and 8
        task = replace(task, num_official=24, base_orientations=(0, 1, 2))
    return OriginalTask(
        name=name,
        instruction=task.instruction,
        max_steps=task.max_steps,
        goal=(task.goal, *task.keypoint_names),
        objects=("episode_source_obj", "episode_target_obj"),
        keypoint_names=task.keypoint_names,
        bridge=task,
    )


def _pick(name: str, instruction: str = "pick coke can") -> OriginalTask:
    return OriginalTask(
        name=f"google_robot_pick_{name}",
        instruction=instruction,
        max_steps=80,
        goal=("lifted", "object"),
        objects=("obj",),
        keypoint_names=("object",),
        published=PUBLISHED.get(f"google_robot_pick_{name}"),
    )


def _move_near(name: str) -> OriginalTask:
    return OriginalTask(
        name=name,
        instruction="move <object> near <target>",
        max_steps=80,
        goal=("near", "object", "target"),
        objects=("episode_source_obj", "episode_target_obj"),
        keypoint_names=("object", "target"),
        published=PUBLISHED[name],
        is_sampled=False,
    )


def _drawer(verb: str, which: str) -> OriginalTask:
    name = f"google_robot_{verb}_{which}_drawer" if which else f"google_robot_{verb}_drawer"
    return OriginalTask(
        name=name,
        instruction=f"{verb} {which or '<which>'} drawer",
        max_steps=113,
        goal=("opened" if verb == "open" else "closed", "drawer"),
        objects=("drawer",),
        keypoint_names=("drawer",),
        published=PUBLISHED[name],
        is_sampled=False,
    )


def _place(what: str, which: str) -> OriginalTask:
    which_ = f"{which}_" if which else ""
    name = f"google_robot_place_{what + '_' if what else ''}in_closed_{which_}drawer"
    return OriginalTask(
        name=name,
        instruction=f"open {which or '<which>'} drawer",
        max_steps=200,
        goal=("in", "object", "drawer"),
        objects=("obj", "drawer"),
        keypoint_names=("object", "drawer"),
        published=PUBLISHED.get(name),
        changes_instruction=True,  # after 100 steps: place <object> into <which> drawer
    )


TASKS: dict[str, tuple[OriginalTask, ...]] = {
    BRIDGE_SUITE: (
        _bridge(0, "widowx_carrot_on_plate"),
        _bridge(1, "widowx_stack_cube"),
        _bridge(2, "widowx_spoon_on_towel"),
        _bridge(3, "widowx_put_eggplant_in_basket"),
    ),
    GOOGLE_SUITE: (
        _pick("coke_can"),
        _pick("horizontal_coke_can"),
        _pick("vertical_coke_can"),
        _pick("standing_coke_can"),
        _pick("object", "pick <object>"),
        _move_near("google_robot_move_near_v0"),
        _move_near("google_robot_move_near_v1"),
        _move_near("google_robot_move_near"),
        *(_drawer("open", which) for which in ("", "top", "middle", "bottom")),
        *(_drawer("close", which) for which in ("", "top", "middle", "bottom")),
        *(_place("", which) for which in ("", "top", "middle", "bottom")),
        _place("apple", "top"),
    ),
}
"""Every suite and its tasks: the WidowX's in GRAPE's order, the Google Robot's in ``simpler_env.ENVIRONMENTS``'."""


def original_task(suite: str, task_id: int) -> OriginalTask:
    """One task's definition.

    Raises:
        ConfigError: The suite or the task does not exist.
    """
    return find_task(TASKS, suite, task_id)


def simpler_env_task(suite: str, task_id: int) -> TaskSpec:
    """Describe a task without its simulator.

    Raises:
        ConfigError: The suite or the task does not exist.
    """
    task = original_task(suite, task_id)
    return TaskSpec(
        suite=suite,
        task_id=task_id,
        name=task.name,
        instruction=task.instruction,
        max_steps=task.max_steps,
        goal_predicates=(task.goal,),
        keypoint_names=task.keypoint_names,
        num_official_states=task.num_official,
        changes_instruction=task.changes_instruction,
    )


def task_names(suite: str) -> tuple[str, ...]:
    """Names for ``simpler_env.make`` of a suite's tasks, in order.

    Raises:
        ConfigError: The suite does not exist.
    """
    original_task(suite, 0)
    return tuple(task.name for task in TASKS[suite])
