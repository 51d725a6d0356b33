"""The one record that passes through the whole pipeline, and its file format.

Axis legend: T steps, H height, W width, K keypoints, G goal predicates. ``facts`` have T + 1 rows:
one before each action and one after the last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from grape.errors import RecordError
from grape.files import write_bytes_atomic

Status = Literal["success", "failure", "crashed"]
FORMAT_VERSION = 1
ACTION_DIM = 7
"""Numbers in an action, the policy's or the simulator's: position (3), rotation (3), gripper."""
STATE_DIM = 8
"""Numbers of proprioception: see ``Trajectory.states``."""


@dataclass(frozen=True, kw_only=True)
class EpisodeInfo:
    """What has to be known about an episode to reproduce, score, pair and train on it."""

    simulator: str
    """Name of the simulator, e.g. ``"libero"``."""
    simulator_settings: dict[str, Any] = field(default_factory=dict)
    """Versions (``mujoco``, ``robosuite``, …), render profile, camera size, settle steps, step limit."""
    suite: str
    task_id: int
    task_name: str
    instruction: str
    """Instruction in the prompt."""
    init_state_id: str
    """``"official/3"`` or ``"<split>/17"``: split and index; unique within the task."""
    init_state_hash: str
    """SHA-256 of the simulator state after settling: equal means equal bit for bit."""
    rollout_index: int = 0
    policy: str
    """Checkpoint path or hub id, or ``"scripted"``."""
    checkpoint_hash: str
    """Content hash of base weights and adapter (``OpenVLAPolicy.checkpoint_hash``)."""
    policy_settings: dict[str, Any] = field(default_factory=dict)
    """temperature, top_p, restrict_to_actions, unnorm_key, center_crop, dtype, prompt style."""
    seed: int = 0
    status: Status
    longest_success_run: int | None = None
    """Most steps in a row with the goal reached; ``None`` where an episode ends with the first such step."""
    num_steps: int
    error: str | None = None
    """Why the episode crashed; ``None`` otherwise."""
    keypoint_names: tuple[str, ...] = ()
    """Names of the K keypoints: movable objects, fixtures and sites (e.g. ``"plate_1"``)."""
    goal_predicates: tuple[tuple[str, ...], ...] = ()
    """G parsed goals, e.g. ``(("on", "akita_black_bowl_1", "plate_1"),)``."""
    wall_time_s: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"status is {self.status!r}; wanted {', '.join(get_args(Status))}")

    @property
    def episode_id(self) -> str:
        """Unique name within a run folder, usable as a file name."""
        state = self.init_state_id.replace("/", "-")
        return f"{self.suite}--{self.task_id:02d}--{state}--r{self.rollout_index:03d}"


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One episode.

    Attributes:
        info: See ``EpisodeInfo``.
        images: (T, H, W, 3) uint8; the picture that the policy saw before acting, upright,
            after JPEG round trip and resize, before any centre crop.
        action_tokens: (T, 7) int32 vocabulary ids exactly as sampled.
        token_logps: (T, 7) float32, nats, full vocabulary, temperature 1.
        sampler_logps: (T, 7) float32, nats, of the restricted, tempered distribution sampled from.
        policy_actions: (T, 7) float32, unnormalised output of the policy.
        actions: (T, 7) float32, as sent to the simulator.
        states: (T, 8) float32 proprioception: end-effector position (m), axis-angle (rad), finger positions (m).
        facts: privileged arrays with T + 1 rows: ``ee_position`` (T+1, 3) m world,
            ``ee_quaternion`` (T+1, 4) xyzw, ``gripper_opening`` (T+1,) m, ``keypoints`` (T+1, K, 3) m world,
            ``keypoint_quaternions`` (T+1, K, 4) xyzw (older LIBERO episodes lack it),
            ``grasped`` (T+1, K) bool, ``robot_contact`` (T+1, K) bool (any robot part touches it),
            ``finger_contact`` (T+1, K) bool, ``arm_contact`` (T+1,) bool (a robot part other than the
            fingers touches anything, or a finger touches the table or floor),
            ``goal_satisfied`` (T+1, G) bool, ``ee_force`` (T+1,) N,
            ``joint_positions`` (T+1, K) rad or m (articulated fixtures; nan elsewhere).
    """

    info: EpisodeInfo
    images: np.ndarray
    action_tokens: np.ndarray
    token_logps: np.ndarray
    sampler_logps: np.ndarray
    policy_actions: np.ndarray
    actions: np.ndarray
    states: np.ndarray
    facts: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        num_steps = self.info.num_steps
        for name in ("images", "action_tokens", "token_logps", "sampler_logps", "policy_actions", "actions", "states"):
            got = len(getattr(self, name))
            if got != num_steps:
                raise RecordError(f"{self.info.episode_id}: {name} has {got} steps, info.num_steps is {num_steps}")
        for name, values in self.facts.items():
            if len(values) != num_steps + 1:
                raise RecordError(f"{self.info.episode_id}: fact {name!r} has {len(values)} rows, not {num_steps + 1}")


_STEP_ARRAYS = ("action_tokens", "token_logps", "sampler_logps", "policy_actions", "actions", "states")


def save_trajectory(path: Path, trajectory: Trajectory) -> None:
    """Write one episode to one file, atomically. Frames are stored as PNG, hence without loss."""
    frames = [encode_png(image) for image in trajectory.images]
    header = {"format_version": FORMAT_VERSION, **dataclasses.asdict(trajectory.info)}
    arrays: dict[str, np.ndarray] = {name: getattr(trajectory, name) for name in _STEP_ARRAYS}
    arrays |= {f"facts/{name}": values for name, values in trajectory.facts.items()}
    arrays["frame_bytes"] = np.frombuffer(b"".join(frames), dtype=np.uint8)
    arrays["frame_sizes"] = np.array([len(frame) for frame in frames], dtype=np.int64)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes_atomic(path, buffer.getvalue())


def load_info(path: Path) -> EpisodeInfo:
    """Read an episode's header alone."""
    with _open_record(path) as archive:
        return _parse_header(path, archive)


def load_trajectory(path: Path, *, images: bool = True) -> Trajectory:
    """Read one episode back.

    Args:
        path: An episode's file.
        images: Decode the frames; without, they are (T, 0, 0, 3).

    Raises:
        RecordError: The file is missing, damaged or of another format version.
    """
    with _open_record(path) as archive:
        info = _parse_header(path, archive)
        facts = {name.removeprefix("facts/"): archive[name] for name in archive.files if name.startswith("facts/")}
        return Trajectory(
            info=info,
            images=_read_frames(archive)
            if images and info.num_steps
            else np.zeros((info.num_steps, 0, 0, 3), np.uint8),
            facts=facts,
            **{name: archive[name] for name in _STEP_ARRAYS},
        )


@contextlib.contextmanager
def _open_record(path: Path) -> Iterator[Any]:
    """Open an episode file; whatever damage shows while it is read becomes a ``RecordError``."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            yield archive
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordError(
            f"{path} is not a whole episode file ({error}); delete it and collect with --resume"
        ) from error


def _read_frames(archive: Any) -> np.ndarray:
    if len(archive["frame_sizes"]) == 0:
        return np.zeros((0, 0, 0, 3), np.uint8)
    blob = archive["frame_bytes"].tobytes()
    ends = np.cumsum(archive["frame_sizes"])
    starts = ends - archive["frame_sizes"]
    return np.stack([_decode_png(blob[start:end]) for start, end in zip(starts, ends, strict=True)])


def _parse_header(path: Path, archive: Any) -> EpisodeInfo:
    header = json.loads(archive["header"].tobytes().decode())
    version = header.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise RecordError(f"{path} has format version {version}, this release reads {FORMAT_VERSION}")
    header["keypoint_names"] = tuple(header["keypoint_names"])
    header["goal_predicates"] = tuple(tuple(predicate) for predicate in header["goal_predicates"])
    return EpisodeInfo(**header)


def encode_png(image: np.ndarray) -> bytes:
    """An (H, W, 3) uint8 picture as a PNG file's content: nothing is lost."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _decode_png(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
