"""SIMPLER's four WidowX tasks on the bridge set-up, in the order in which GRAPE reports them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SUITE = "simpler_bridge"


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How a variant of a task differs from it, beside its instruction and its objects. Factors: 1 changes nothing."""

    axis: str
    """``"subject"``, ``"physical"``, ``"semantic"`` or ``"common sense"``."""
    scale: float = 1.0
    """Of the moved object's lengths; its mass follows with the cube."""
    friction: float = 1.0
    """Of the coefficients of both objects, and of the sink; not of robot and table."""
    mass: float = 1.0
    """Of the moved object."""


@dataclass(frozen=True, kw_only=True)
class BridgeTask:
    """What ManiSkill's environment and the sampling of further initial states need to know about a task."""

    environment: str
    """ManiSkill's id, e.g. ``"PutCarrotOnPlateInScene-v1"``."""
    scene: str
    """``"flat_table"`` or ``"sink"``."""
    instruction: str
    """What SIMPLER tells the policy; the same words as ManiSkill's ``get_language_instruction``."""
    max_steps: int
    """Actions per episode at 5 Hz, as published."""
    num_official: int
    """How many different initial states are published; larger ids would repeat them."""
    goal: str
    """``"on"`` or ``"in"``."""
    objects: tuple[tuple[str, str], tuple[str, str]]
    """Keypoint name and model id: what is moved, then where it belongs."""
    base_orientations: tuple[int, ...]
    """Which published orientations sampled states start from."""
    yaw_range_rad: tuple[float, float]
    """Turn of the moved object about the vertical that is added to them."""
    min_separation_m: float
    """Horizontal distance of the two objects' centres in sampled states."""
    variation: Variation | None = None
    """What differs from the published task of the same ``environment``; ``None`` for that one itself."""

    @property
    def class_name(self) -> str:
        """Of its class in ``mani_skill.envs.tasks.digital_twins.bridge_dataset_eval.put_on_in_scene``."""
        return self.environment.removesuffix("-v1")

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.objects)


BRIDGE_TASKS: tuple[BridgeTask, ...] = (
    BridgeTask(
        environment="PutCarrotOnPlateInScene-v1",
        scene="flat_table",
        instruction="put carrot on plate",
        max_steps=60,
        num_official=24,
        goal="on",
        objects=(("carrot", "bridge_carrot_generated_modified"), ("plate", "bridge_plate_objaverse_larger")),
        base_orientations=(0,),
        yaw_range_rad=(0.0, np.pi / 2),
        min_separation_m=0.12,
    ),
    BridgeTask(
        environment="StackGreenCubeOnYellowCubeBakedTexInScene-v1",
        scene="flat_table",
        instruction="stack the green block on the yellow block",
        max_steps=60,
        num_official=24,
        goal="on",
        objects=(("green_cube", "baked_green_cube_3cm"), ("yellow_cube", "baked_yellow_cube_3cm")),
        base_orientations=(0,),
        yaw_range_rad=(0.0, 0.0),
        min_separation_m=0.08,
    ),
    BridgeTask(
        environment="PutSpoonOnTableClothInScene-v1",
        scene="flat_table",
        instruction="put the spoon on the towel",
        max_steps=60,
        num_official=24,
        goal="on",
        objects=(("spoon", "bridge_spoon_generated_modified"), ("towel", "table_cloth_generated_shorter")),
        base_orientations=(0,),
        yaw_range_rad=(0.0, np.pi / 2),
        min_separation_m=0.12,
    ),
    BridgeTask(
        environment="PutEggplantInBasketScene-v1",
        scene="sink",
        instruction="put eggplant into yellow basket",
        max_steps=120,
        num_official=64,
        goal="in",
        objects=(("eggplant", "eggplant"), ("basket", "dummy_sink_target_plane")),
        base_orientations=tuple(range(8)),
        yaw_range_rad=(-np.pi / 8, np.pi / 8),
        min_separation_m=0.0,
    ),
)


def published(task: BridgeTask) -> BridgeTask:
    """The task that a variant varies; a published one is its own."""
    return next(one for one in BRIDGE_TASKS if one.environment == task.environment)
