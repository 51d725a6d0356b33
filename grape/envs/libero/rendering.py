"""Pictures from LIBERO's agent view, on demand and under explicit settings."""

from __future__ import annotations

import atexit
import gc
import weakref
from typing import Any, Literal

import numpy as np

from grape.envs.guards import refuse_tensorflow
from grape.envs.libero.package import EGL_HELP
from grape.errors import ConfigError, SimulatorError, did_you_mean
from grape.scene import Camera

RenderProfile = Literal["faithful", "fast"]

RENDER_PROFILES: dict[str, dict[str, Any]] = {
    "faithful": {"num_samples": None, "reflections": True},
    "fast": {"num_samples": 0, "reflections": False},
}
"""``num_samples``: multisampling per pixel, ``None`` for the scene's own (4)."""

CAMERA = "agentview"
CAMERA_SIZES = range(16, 4097)
"""Height and width of the picture, pixels."""


class AgentView:
    """Renders one camera of one simulation."""

    def __init__(self, sim: Any, *, profile: str, size: int) -> None:
        """Create the rendering context.

        It evaluates the simulation's dynamics once, so the caller has to preserve the warm start.

        Raises:
            SimulatorError: The rendering backend does not work on this machine, or not beside TensorFlow.
        """
        import mujoco
        from robosuite.utils.binding_utils import MjRenderContextOffscreen

        refuse_tensorflow("LIBERO")
        settings = RENDER_PROFILES[profile]
        visual = sim.model._model.vis
        if settings["num_samples"] is not None:
            visual.quality.offsamples = settings["num_samples"]  # read when the context is created, not later
        visual.global_.offwidth = visual.global_.offheight = size
        try:
            self._context = MjRenderContextOffscreen(sim, device_id=-1)
        except (ImportError, RuntimeError, AttributeError, mujoco.FatalError) as error:
            raise SimulatorError(f"cannot create a rendering context ({error}); {EGL_HELP}") from error
        self._context.vopt.geomgroup[0] = 0  # collision shapes
        self._context.vopt.geomgroup[1] = 1  # what is meant to be seen
        if not settings["reflections"]:
            self._context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._camera_id = sim.model.camera_name2id(CAMERA)
        self._size = size
        self._sim = sim
        # Registered after EGL's own hook, hence run before it: a context outlives its display only with an error.
        atexit.register(_close_if_alive, weakref.ref(self))

    def picture(self) -> np.ndarray:
        """(size, size, 3) uint8: the current scene, turned by 180 degrees so that it is upright, as OpenVLA saw it."""
        self._context.gl_ctx.make_current()  # another environment of this process may have rendered since
        self._context.render(self._size, self._size, camera_id=self._camera_id)
        return np.ascontiguousarray(self._context.read_pixels(self._size, self._size)[::-1, ::-1])

    def depth_and_geoms(self) -> tuple[np.ndarray, np.ndarray]:
        """What the pixels of ``picture`` show: (size, size) float32, m along the camera's z axis, 0 where there is
        nothing; and (size, size) int32, numbers of geoms, -1 where there is none."""
        import mujoco

        context, model = self._context, self._sim.model._model
        sites = context.vopt.sitegroup.copy()
        context.vopt.sitegroup[:] = 0  # markers, transparent in the picture, would hide what is behind them
        try:
            context.gl_ctx.make_current()
            context.render(self._size, self._size, camera_id=self._camera_id, segmentation=True)
        finally:
            context.vopt.sitegroup[:] = sites
        things, buffer = context.read_pixels(self._size, self._size, depth=True, segmentation=True)
        geoms = np.where(things[..., 0] == mujoco.mjtObj.mjOBJ_GEOM, things[..., 1], -1).astype(np.int32)
        near, far = (getattr(model.vis.map, name) * model.stat.extent for name in ("znear", "zfar"))
        depth_m = np.where(buffer < 1.0, near / (1.0 - buffer * (1.0 - near / far)), 0.0).astype(np.float32)
        return np.ascontiguousarray(depth_m[::-1, ::-1]), np.ascontiguousarray(geoms[::-1, ::-1])

    def camera(self) -> Camera:
        """The camera of ``picture``. Turning OpenGL's rows, which begin below, by 180 degrees mirrors the picture: what
        is right of the camera is on the left, hence the negative focal length."""
        model, data = self._sim.model._model, self._sim.data._data
        focal, centre = self._size / 2 / np.tan(np.radians(model.cam_fovy[self._camera_id]) / 2), self._size / 2
        camera_to_world = np.eye(4)
        # MuJoCo's cameras have y up and look along -z
        camera_to_world[:3, :3] = data.cam_xmat[self._camera_id].reshape(3, 3) * [1, -1, -1]
        camera_to_world[:3, 3] = data.cam_xpos[self._camera_id]
        return Camera(
            intrinsics=np.array([[-focal, 0, centre], [0, focal, centre], [0, 0, 1]]), camera_to_world=camera_to_world
        )

    def close(self) -> None:
        """Free the rendering context; calling it twice is fine."""
        self._context = None
        self._sim._render_context_offscreen = None
        gc.collect()  # context and simulation refer to each other, and the context is freed by its finaliser


def _close_if_alive(reference: weakref.ref[AgentView]) -> None:
    view = reference()
    if view is not None:
        view.close()


def check_render_settings(profile: str, size: int) -> None:
    """Refuse settings that cannot be honoured.

    Raises:
        ConfigError: Unknown profile, or a size that is not positive.
    """
    if profile not in RENDER_PROFILES:
        raise ConfigError(f"unknown render profile {profile!r}.{did_you_mean(profile, RENDER_PROFILES)}")
    if size not in CAMERA_SIZES:
        raise ConfigError(f"got camera_size={size}, wanted {CAMERA_SIZES[0]} to {CAMERA_SIZES[-1]} pixels")
