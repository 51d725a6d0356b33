"""A policy that acts in Ray actors, behind the interface of ``grape.rollouts.policy.Policy``.

Each actor loads the checkpoint itself and decides for its share of a batch. A decision is a function of its request
alone, whose random numbers it brings along: a share whose actor died is repeated by another one with the same result.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grape.config.collect import CollectConfig
from grape.config.evaluate import EvaluateConfig
from grape.envs.worker import ImageFunction, Refused
from grape.errors import CheckpointError, ConfigError, GrapeError
from grape.rollouts.cluster.connection import NUM_STARTS, Cluster, Setup, first_line, on_this_node
from grape.rollouts.policy import Decision, DecisionRequest, SampledVLA
from grape.rollouts.session import open_policy, policy_name
from grape.rollouts.versions import LIBRARIES, toolkit_versions

logger = logging.getLogger(__name__)

_LOAD_TIMEOUT_S = 1800.0
_ACT_TIMEOUT_S = 600.0
"""For one batch; the first one may compile."""


@dataclass(frozen=True, kw_only=True)
class LoadedPolicy:
    """What the process with the engine has to know of a policy that it does not hold."""

    checkpoint_hash: str
    settings: dict[str, Any]
    image_fn: ImageFunction
    node: str
    """Name of the machine."""
    warnings: tuple[str, ...]
    """Logged while it was opened."""


class PolicyActor:
    """One copy of the policy on some machine of the cluster."""

    def __init__(self, setup: Setup, config: CollectConfig | EvaluateConfig) -> None:
        self._setup, self._config = setup, config
        self._policy: SampledVLA | None = None

    def load(self) -> LoadedPolicy | Refused:
        """Open the checkpoint as one machine does."""
        listener = _Listener()
        logging.getLogger("grape").addHandler(listener)
        try:
            self._setup.apply(toolkit_versions(), {"python", "grape-vla", *LIBRARIES})
            policy = self._policy = open_policy(self._config)
            return LoadedPolicy(
                checkpoint_hash=policy.checkpoint_hash,
                settings=policy.settings,
                image_fn=policy.image_fn(),
                node=platform.node(),
                warnings=tuple(listener.heard),
            )
        except CheckpointError as error:
            detail = f"{error}; each machine reads its own {self._config.pretrained_checkpoint}"
            return Refused(on_this_node(CheckpointError(detail)))
        except GrapeError as error:
            return Refused(on_this_node(error))
        finally:
            logging.getLogger("grape").removeHandler(listener)

    def act(self, requests: Sequence[DecisionRequest]) -> list[Decision] | Refused:
        """Decide for a share of a batch."""
        assert self._policy is not None, "a batch before the checkpoint"
        try:
            return self._policy.act(requests)
        except GrapeError as error:
            return Refused(on_this_node(error))


class _Listener(logging.Handler):
    """Keeps warnings, which the terminal of the command would not show."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@dataclass
class _Slot:
    """One copy's current actor."""

    actor: Any
    loading: Any
    """Ray's reference to what ``load`` returns; ``None`` once that was collected."""
    num_deaths: int = 0
    """Of this copy's actors, in a row, without a decision between them."""


class RayPolicy:
    """The policy of a configuration, in ``num_policy_actors`` copies."""

    def __init__(self, cluster: Cluster, config: CollectConfig | EvaluateConfig) -> None:
        """Start the actors and wait until each has loaded the checkpoint.

        Raises:
            CheckpointError: One cannot be loaded on the machine that is named, or another one lies there.
            ConfigError: A setting cannot be honoured, or a machine has other versions of the libraries.
        """
        self._ray = cluster.ray
        remote = self._ray.remote(num_cpus=1, num_gpus=cluster.gpus_per_policy_actor, max_restarts=0)(PolicyActor)
        there = at_absolute_paths(config)
        self._start: Callable[[], Any] = lambda: remote.remote(cluster.setup, there)
        self._slots: list[_Slot] = []
        self._loaded: LoadedPolicy | None = None
        print(
            f"loading {config.pretrained_checkpoint} in {config.num_policy_actors} policy actors (`ray status` shows "
            "whether the cluster has room)",
            file=sys.stderr,
        )
        try:
            for _ in range(config.num_policy_actors):
                actor = self._start()
                self._slots.append(_Slot(actor, actor.load.remote()))
            for slot in self._slots:
                while not self._is_loaded(slot, timeout_s=_LOAD_TIMEOUT_S):
                    pass
        except BaseException:
            self.close()
            raise
        assert self._loaded is not None
        for text in self._loaded.warnings:
            logger.warning("%s", text)
        self.name = policy_name(config)
        self.checkpoint_hash, self.settings = self._loaded.checkpoint_hash, self._loaded.settings

    def image_fn(self) -> ImageFunction:
        assert self._loaded is not None
        return self._loaded.image_fn

    def act(self, requests: Sequence[DecisionRequest]) -> list[Decision]:
        """Split the batch over the copies that are there, and repeat what died with an actor.

        Raises:
            CheckpointError: The network's output is not finite.
            ConfigError: Actors die again and again.
        """
        decisions: dict[int, Decision] = {}
        while missing := [row for row in range(len(requests)) if row not in decisions]:
            slots = self._ready_slots()
            shares = [share.tolist() for share in np.array_split(missing, min(len(slots), len(missing)))]
            calls = [
                (slot, share, slot.actor.act.remote([requests[row] for row in share]))
                for slot, share in zip(slots, shares, strict=False)  # the last ones may have nothing to do
            ]
            for slot, share, call in calls:
                decided = self._answer(slot, call, _ACT_TIMEOUT_S)
                if decided is not None:
                    slot.num_deaths = 0
                    decisions.update(zip(share, decided, strict=True))
        return [decisions[row] for row in range(len(requests))]

    def close(self) -> None:
        """Kill the actors; calling it twice is fine."""
        for slot in self._slots:
            self._ray.kill(slot.actor)

    def _ready_slots(self) -> list[_Slot]:
        """Those that have loaded the checkpoint; waits for one where none has."""
        while not (ready := [slot for slot in self._slots if self._is_loaded(slot, timeout_s=0)]):
            self._ray.wait([slot.loading for slot in self._slots], num_returns=1, timeout=_LOAD_TIMEOUT_S)
        return ready

    def _is_loaded(self, slot: _Slot, *, timeout_s: float) -> bool:
        if slot.loading is None:
            return True
        if timeout_s == 0 and not self._ray.wait([slot.loading], timeout=0)[0]:
            return False
        loaded = self._answer(slot, slot.loading, timeout_s or _ACT_TIMEOUT_S)
        if loaded is None:
            return False
        slot.loading = None
        first = self._loaded = self._loaded or loaded
        for name in ("checkpoint_hash", "settings"):
            got, wanted = getattr(loaded, name), getattr(first, name)
            if got != wanted:
                raise CheckpointError(
                    f"{name} is {got} on node {loaded.node}, but {wanted} on node {first.node}: bring the same files "
                    "to each machine, and give the policy actors the same kind of device"
                )
        return True

    def _answer(self, slot: _Slot, call: Any, timeout_s: float) -> Any:
        """The answer of a call; ``None`` where its actor is gone, and another one has been started."""
        try:
            answer = self._ray.get(call, timeout=timeout_s)
        except self._ray.exceptions.RayTaskError:
            raise  # our own mistake, with the actor's traceback
        except self._ray.exceptions.RayError as error:
            self._replace(slot, first_line(error))
            return None
        if isinstance(answer, Refused):
            raise answer.error
        return answer

    def _replace(self, slot: _Slot, reason: str) -> None:
        slot.num_deaths += 1
        self._ray.kill(slot.actor)
        if slot.num_deaths >= NUM_STARTS:
            raise ConfigError(
                f"a policy actor was lost {NUM_STARTS} times before it decided anything, at last because {reason}; "
                "perhaps for memory: look at `ray status` and at Ray's logs (/tmp/ray/session_latest/logs on each "
                "machine), then continue with --resume"
            )
        logger.warning("a policy actor was lost (%s); another one is started, its batch is repeated", reason)
        slot.actor = self._start()
        slot.loading = slot.actor.load.remote()


def at_absolute_paths(config: CollectConfig | EvaluateConfig) -> CollectConfig | EvaluateConfig:
    """The same settings for processes in other folders; what is no path here, such as a hub id, stays as it is."""

    def place(path: str) -> str:
        return str(Path(path).absolute()) if Path(path).exists() else path

    adapter = None if config.adapter is None else place(config.adapter)
    return dataclasses.replace(config, pretrained_checkpoint=place(config.pretrained_checkpoint), adapter=adapter)
