"""Building ManiSkill's environment, and the few things about it that have to be done its own way.

``domain`` is an instance of ManiSkill's task class, without gymnasium's wrappers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grape.envs.simpler.package import VULKAN_HELP, import_tasks, quiet
from grape.envs.simpler.placement import PublishedPoses
from grape.envs.simpler.tasks import BridgeTask, published
from grape.errors import SimulatorError
from grape.scene import Camera

CAMERA = "3rd_view_camera"
CAMERA_HEIGHT = 480
CAMERA_WIDTH = 640
_FOCAL_LENGTH, _CENTRE = 623.588, (319.501, 239.545)
"""Of the Logitech C920, pixels at 640×480, as ManiSkill has them."""


def make_domain(task: BridgeTask, *, camera_height: int) -> Any:
    """Build the scene, on the CPU.

    Raises:
        MissingDependencyError: ManiSkill or the assets are not installed.
        SimulatorError: There is no usable Vulkan driver, or this ManiSkill has another task under that name.
    """
    module = import_tasks(task)
    _forget_earlier_scenes(module)
    with quiet():
        try:
            domain = getattr(module, task.class_name)(
                obs_mode="rgb+segmentation",  # the only one it has: the background is a picture
                sim_backend="physx_cpu",
                render_backend="sapien_cpu",
                sensor_configs=_camera_settings(camera_height),
            )
        except RuntimeError as error:
            raise SimulatorError(f"{task.environment} cannot be built ({error}); {VULKAN_HELP}") from error
    domain._rgb_overlay_images = dict(domain._rgb_overlay_images)  # its own: the next environment changes the class's
    domain.get_obs = _no_observation  # pictures on demand, not at each step
    _check_identity(domain, task)
    _vary(domain, task)
    return domain


def published_poses(domain: Any, task: BridgeTask) -> PublishedPoses:
    """ManiSkill's poses of the task's objects; what a variant moves begins as far above the table as the original."""
    positions = domain.xyz_configs.numpy().astype(np.float64)
    positions[:, 0, 2] += _half_height_m(domain, task) - _half_height_m(domain, published(task))
    return PublishedPoses(
        positions=positions,
        quaternions=domain.quat_configs.numpy().astype(np.float64),
    )


def begin_episode(domain: Any, positions: np.ndarray, quaternions: np.ndarray) -> bool:
    """Build the scene anew and reset ManiSkill's way with given poses; a function of these alone.

    Without building anew, objects settle around wherever the previous episode left the arm, and the settled state
    depends on the order of earlier episodes even with arm and objects parked first: in the last bits for the spoon, by
    18 cm for one eggplant. It takes 0.2 s.

    Args:
        domain: The environment.
        positions: (O, 3) m, world, before settling.
        quaternions: (O, 4) wxyz.

    Returns:
        Whether the task is solved already.
    """
    poses = domain.xyz_configs, domain.quat_configs
    domain.xyz_configs, domain.quat_configs = (
        poses[0].new_tensor(positions[None]),
        poses[1].new_tensor(quaternions[None]),
    )
    try:
        with quiet():
            _, info = domain.reset(seed=0, options={"reconfigure": True, "episode_id": 0})
    finally:
        domain.xyz_configs, domain.quat_configs = poses
    return bool(info["success"][0])


def picture(domain: Any) -> np.ndarray:
    """(H, W, 3) uint8: what the camera sees, before SIMPLER's background."""
    return np.ascontiguousarray(domain._get_obs_sensor_data()[CAMERA]["rgb"][0].numpy(), dtype=np.uint8)


def look(domain: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``picture``; (H, W) float32 depth along the camera's z axis, m, 0 where nothing is; (H, W) numbers of things.

    Depth comes in whole mm. Where the photograph is, it is that of the simulation's own table and walls.
    """
    image = picture(domain)
    textures = domain._sensors[CAMERA].get_obs(rgb=False, position=False)
    depth_mm, numbers = (textures[name][0, ..., 0].numpy() for name in ("depth", "segmentation"))
    return image, depth_mm.astype(np.float32) / 1000, numbers


def camera(domain: Any) -> Camera:
    """The camera of ``picture``."""
    parameters = domain._sensors[CAMERA].get_params()
    intrinsics, extrinsics = (parameters[name][0].numpy().astype(float) for name in ("intrinsic_cv", "extrinsic_cv"))
    camera_to_world = np.eye(4)
    camera_to_world[:3, :3] = extrinsics[:3, :3].T
    camera_to_world[:3, 3] = -extrinsics[:3, :3].T @ extrinsics[:3, 3]
    return Camera(intrinsics=intrinsics, camera_to_world=camera_to_world)


def state_arrays(domain: Any) -> dict[str, np.ndarray]:
    """Everything that ManiSkill's physics and bookkeeping depend on and that can be read, by name."""
    state = domain.get_state_dict()
    arrays = {f"actor/{name}": value for name, value in state["actors"].items()}
    arrays |= {f"articulation/{name}": value for name, value in state["articulations"].items()}
    controllers = domain.agent.controller.controllers
    arrays |= {f"target_qpos/{name}": controller._target_qpos for name, controller in controllers.items()}
    arrays["target_pose"] = controllers["arm"]._target_pose.raw_pose
    arrays |= {"elapsed_steps": domain.elapsed_steps, "consecutive_grasp": domain.consecutive_grasp}
    arrays |= {f"episode_stats/{name}": value for name, value in domain.episode_stats.items()}
    return {name: value.numpy().copy() for name, value in arrays.items()}


def _forget_earlier_scenes(module: Any) -> None:
    """ManiSkill collects what the background must not cover, and the background itself, in class attributes: a second
    environment in one process would show things of its own that the first one's numbers point to."""
    base = next(kind for kind in module.BaseBridgeEnv.__mro__ if "_rgb_overlay_images" in vars(kind))
    base._rgb_overlay_images = {}
    base._objects_to_remove_from_greenscreen = []


def _camera_settings(height: int) -> dict[str, Any]:
    if height == CAMERA_HEIGHT:
        return {}
    scale = height / CAMERA_HEIGHT
    focal, (x, y) = _FOCAL_LENGTH * scale, (value * scale for value in _CENTRE)
    intrinsic = np.array([[focal, 0, x], [0, focal, y], [0, 0, 1]])
    return {CAMERA: {"width": round(CAMERA_WIDTH * scale), "height": height, "intrinsic": intrinsic}}


def _no_observation(info: Any = None, unflattened: bool = False) -> dict[str, Any]:
    return {}


def _vary(domain: Any, task: BridgeTask) -> None:
    """Have a variant's objects built from the next reset on, each of which builds the scene anew."""
    variation = task.variation
    if variation is None:
        return
    moved, target = (model for _, model in task.objects)
    if task.objects != published(task).objects:
        hidden = [name for name in domain.obj_names if name not in domain.objects_excluded_from_greenscreening]
        domain.obj_names, domain.source_obj_name, domain.target_obj_name = [moved, target], moved, target
        domain.objects_excluded_from_greenscreening = [name for name in (moved, target) if name not in hidden]
    domain.objs.clear()
    domain.obj_static_friction *= variation.friction
    domain.obj_dynamic_friction *= variation.friction
    domain.model_db[moved] |= {
        "density": domain.model_db[moved]["density"] * variation.mass,
        "scales": [variation.scale],  # for the goal, which measures boxes
    }
    build = domain._build_actor_helper

    def build_scaled(model_id: str, **settings: Any) -> Any:
        return build(model_id, scale=variation.scale if model_id == moved else 1.0, **settings)

    domain._build_actor_helper = build_scaled


def _half_height_m(domain: Any, task: BridgeTask) -> float:
    """Of what is moved, upright."""
    box = domain.model_db[task.objects[0][1]]["bbox"]
    scale = 1.0 if task.variation is None else task.variation.scale
    return float(box["max"][2] - box["min"][2]) / 2 * scale


def _check_identity(domain: Any, task: BridgeTask) -> None:
    task = published(task)
    got = (
        domain.get_language_instruction()[0],
        tuple(domain.objs),
        len(domain.xyz_configs) * len(domain.quat_configs),
        domain.control_freq,
    )
    wanted = (task.instruction, tuple(model for _, model in task.objects), task.num_official, 5)
    if got != wanted:
        raise SimulatorError(
            f"the installed ManiSkill's {task.environment} has {got}, wanted {wanted}: it is another task; "
            "install mani-skill 3.0.1"
        )
