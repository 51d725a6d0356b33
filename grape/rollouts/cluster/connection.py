"""Starting Ray here, or joining a cluster, for the length of a run, and what every actor of a run is told."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from grape.config.collect import LOCAL_CLUSTER, CollectConfig
from grape.config.evaluate import EvaluateConfig
from grape.errors import ConfigError, GrapeError
from grape.optional import require

NUM_STARTS = 4
"""An actor that dies this often in a row without having done anything is not started again."""
FORWARDED_VARIABLES = (
    *("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "PYOPENGL_PLATFORM", "LP_NUM_THREADS", "LIBERO_CONFIG_PATH"),
    *("MS_ASSET_DIR", "VK_DRIVER_FILES", "VK_ICD_FILENAMES", "GRAPE_WARNED_OF_MUJOCO"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM"),
)
"""What simulators and checkpoints look for in the environment. No token is among them: Ray shows arguments in logs."""
START_HELP = (
    "start one with `ray start --head --port=6379`, and `ray start --address=HEAD:6379` on the other machines; or take "
    "--ray_address local (docs/clusters.md)"
)
_OBJECT_STORE_BYTES = 256 * 2**20  # pictures on their way are all that is ever in it
_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an actor has to share with the process that started it."""

    versions: Mapping[str, str]
    """Of Python and libraries, as ``library_versions`` has them."""
    environment: Mapping[str, str]

    def apply(self, installed: Mapping[str, str], names: set[str]) -> None:
        """Set the environment variables of this process, after comparing versions.

        Args:
            installed: Versions in this process.
            names: Which of them matter for what this actor does.

        Raises:
            ConfigError: One differs.
        """
        for name in sorted(names & (self.versions.keys() | installed.keys())):
            got, wanted = installed.get(name, "none"), self.versions.get(name, "none")
            if got != wanted:
                raise ConfigError(
                    f"{name} is {got} here, but {wanted} where the command runs: episodes would differ between "
                    "machines; install the same everywhere"
                )
        os.environ.update(self.environment)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A connection to Ray."""

    ray: ModuleType
    setup: Setup
    gpus_per_policy_actor: float


@contextlib.contextmanager
def connect(config: CollectConfig | EvaluateConfig, versions: Mapping[str, str]) -> Iterator[Cluster]:
    """Start Ray, or join a cluster; what was started is stopped on exit, a joined cluster is left alone.

    A connection that this process has already is taken as it is, and kept.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: No cluster answers, it runs other versions of Ray or Python, or has too little room.
    """
    assert config.ray_address is not None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
    ray = require("ray", extra="ray")
    if ":" in config.ray_address:
        _check_listening(config.ray_address)
    is_ours = not ray.is_initialized()
    try:
        if is_ours:
            with _signals_as_before():
                _init(ray, config)
        gpus = check_room(ray.cluster_resources(), config)
        environment = {name: os.environ[name] for name in FORWARDED_VARIABLES if name in os.environ}
        yield Cluster(ray=ray, setup=Setup(versions=versions, environment=environment), gpus_per_policy_actor=gpus)
    finally:
        if is_ours:
            ray.shutdown()


def _init(ray: ModuleType, config: CollectConfig | EvaluateConfig) -> None:
    address = config.ray_address
    assert address is not None
    settings: dict[str, Any] = {}
    if address == LOCAL_CLUSTER:
        # As without Ray, the number of simulators is the user's choice, not the number of cores.
        num_cpus = config.num_workers + config.num_policy_actors
        settings = {"num_cpus": num_cpus, "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
        # Simulators see the GPUs, which they may render on, as they do without Ray.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"ray_address {address}: cannot connect ({error}); {START_HELP}") from error


def _check_listening(address: str) -> None:
    """Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(f"ray_address {address}: no Ray cluster answers there ({error}); {START_HELP}") from error


def check_room(room: Mapping[str, float], config: CollectConfig | EvaluateConfig) -> float:
    """Compare with what the whole cluster has; returns the GPUs of each policy actor.

    Raises:
        ConfigError: It is too small.
    """
    gpus = config.gpus_per_policy_actor
    if gpus is None:
        gpus = 1.0 if room.get("GPU", 0) > 0 and config.device != "cpu" else 0.0
    wanted = {"CPU": config.num_workers + config.num_policy_actors, "GPU": config.num_policy_actors * gpus}
    for kind, count in wanted.items():
        if count > room.get(kind, 0):
            raise ConfigError(
                f"{config.num_workers} simulators and {config.num_policy_actors} policy actors take {count:g} {kind}s, "
                f"but the cluster has {room.get(kind, 0):g}; lower --num_workers, --num_policy_actors or "
                "--gpus_per_policy_actor, or add machines (`ray status` lists them)"
            )
    return gpus


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM, with which a command stops as it does for Ctrl-C."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def on_this_node(error: GrapeError) -> GrapeError:
    """The same error with the name of the machine on which it arose."""
    return type(error)(f"{error} (on node {platform.node()})")


def first_line(error: BaseException) -> str:
    """Ray's messages fill a screen."""
    detail = str(error).partition("Worker exit detail: ")[2] or str(error)
    return detail.strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
