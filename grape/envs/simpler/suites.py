"""Every suite of SIMPLER's side: the four tasks, and their variants along the axes of generalisation.

GRAPE (arXiv 2411.19309) evaluates unseen objects (subject), unseen sizes and physics (physical) and unseen wording
(semantic) in SIMPLER. We know of no list of its objects and wordings; those here are ours. A variant is a suite of its
own, so that its episodes are never paired or compared with those of another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from grape.envs.guards import find_task
from grape.envs.protocol import TaskSpec
from grape.envs.simpler.tasks import BRIDGE_TASKS, SUITE, BridgeTask, Variation

_CARROT, _EGGPLANT = ("carrot", "bridge_carrot_generated_modified"), ("eggplant", "eggplant")
_GREEN, _YELLOW = ("green_cube", "baked_green_cube_3cm"), ("yellow_cube", "baked_yellow_cube_3cm")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to vary all four tasks; rows are in the order of ``BRIDGE_TASKS``."""

    variation: Variation
    instructions: tuple[str, ...] = tuple(task.instruction for task in BRIDGE_TASKS)
    objects: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = tuple(task.objects for task in BRIDGE_TASKS)

    def tasks(self) -> tuple[BridgeTask, ...]:
        """The varied tasks."""
        return tuple(
            replace(task, instruction=instruction, objects=objects, variation=self.variation)
            for task, instruction, objects in zip(BRIDGE_TASKS, self.instructions, self.objects, strict=True)
        )


VARIANTS: dict[str, Variant] = {
    "subject": Variant(
        variation=Variation(axis="subject"),
        instructions=(
            "put eggplant on plate",
            "stack the yellow block on the green block",
            "put the carrot on the towel",
            "put carrot into yellow basket",
        ),
        objects=(
            (_EGGPLANT, BRIDGE_TASKS[0].objects[1]),
            (_YELLOW, _GREEN),
            (_CARROT, BRIDGE_TASKS[2].objects[1]),
            (_CARROT, BRIDGE_TASKS[3].objects[1]),
        ),
    ),
    "physical_small": Variant(variation=Variation(axis="physical", scale=0.8)),
    "physical_large": Variant(variation=Variation(axis="physical", scale=1.2)),
    "physical_slippery": Variant(variation=Variation(axis="physical", friction=0.4)),
    "physical_heavy": Variant(variation=Variation(axis="physical", mass=3.0)),
    "semantic": Variant(
        variation=Variation(axis="semantic"),
        instructions=(
            "lift the carrot and set it down on the plate",
            "place the green cube on top of the yellow cube",
            "lay the spoon down on the cloth",
            "move the eggplant over to the yellow basket and drop it in",
        ),
    ),
    "common_sense": Variant(
        variation=Variation(axis="common sense"),
        instructions=(
            "serve the vegetable that rabbits like on the dish",
            "build a tower with the block in the colour of lemons at the bottom",
            "put the thing that soup is eaten with on the piece of fabric",
            "put the purple vegetable where washed dishes are left to dry",
        ),
    ),
}
"""By the end of the suite's name."""

SIMPLER_SUITES: dict[str, tuple[BridgeTask, ...]] = {SUITE: BRIDGE_TASKS} | {
    f"{SUITE}_{name}": variant.tasks() for name, variant in VARIANTS.items()
}
"""Every suite's name and its tasks."""

VARIED_SUITE: dict[str, str] = {f"{SUITE}_{name}": SUITE for name in VARIANTS}
"""Suite of a variant -> the suite whose tasks it varies."""


def bridge_task(suite: str, task_id: int) -> BridgeTask:
    """One task's definition.

    Raises:
        ConfigError: The suite or the task does not exist.
    """
    return find_task(SIMPLER_SUITES, suite, task_id)


def simpler_task(suite: str, task_id: int) -> TaskSpec:
    """Describe a task without starting the simulator, and without having it installed.

    Raises:
        ConfigError: The suite or the task does not exist.
    """
    task = bridge_task(suite, task_id)
    return TaskSpec(
        suite=suite,
        task_id=task_id,
        name=task.environment,
        instruction=task.instruction,
        max_steps=task.max_steps,
        goal_predicates=((task.goal, *task.keypoint_names),),
        keypoint_names=task.keypoint_names,
        num_official_states=task.num_official,
    )


def task_names(suite: str) -> tuple[str, ...]:
    """ManiSkill's ids of a suite's tasks, in order.

    Raises:
        ConfigError: The suite does not exist.
    """
    bridge_task(suite, 0)
    return tuple(task.environment for task in SIMPLER_SUITES[suite])
