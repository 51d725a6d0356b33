"""A frozen base that is spread over the processes of a run (FSDP2), and how they keep in step then.

Each process holds its part of every layer of the base. A layer is put together in each process just before it runs,
forward and backward, and taken apart after it; that takes all processes at once, so all have to make the same passes.
The adapter is whole in each process, so its gradients, its files and the optimiser are the same with and without.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from grape.errors import ConfigError, TrainingError
from grape.trainer.prepare import StepBatch
from grape.trajectory import ACTION_DIM

if TYPE_CHECKING:
    from grape.models import OpenVLAPolicy
    from grape.models.openvla import OpenVLA
    from grape.trainer.distributed import Ranks
    from grape.trainer.gradient import StepScorer

DONE, SCORE, GRADIENT = range(3)
"""What a process wants next: nothing more in this step, a pass without gradients, a pass forward and backward."""


def check_sharding(ranks: Ranks) -> None:
    """Refuse what cannot be sharded.

    Raises:
        ConfigError: There is one process, or torch is too old.
    """
    if ranks.world_size == 1:
        raise ConfigError(
            "shard_base=True with one process: there is nobody to share the base with; start several with torchrun "
            "--nproc-per-node, or leave it out (a run goes on either way)"
        )
    from torch.distributed import fsdp

    shard = getattr(fsdp, "fully_shard", None)  # public since torch 2.6
    if shard is None or "ignored_params" not in inspect.signature(shard).parameters:
        raise ConfigError(
            f"shard_base=True needs a torch whose fully_shard has ignored_params (2.7 or newer), this is "
            f"{torch.__version__}; install a newer one, or leave it out"
        )


def shard_base(policy: OpenVLAPolicy, adapter: Iterable[Tensor], ranks: Ranks) -> None:
    """Spread the base over the processes, layer by layer; the device never holds more than its part and one layer.

    Args:
        policy: With its adapter, all in the host's memory. What reads whole weights has to do so before.
        adapter: The trained weights; moved to the device, and left whole.
        ranks: The processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    whole = set(adapter)
    # The root is peft's wrapper: peft calls what is below it past the hooks.
    for module in (*layers(policy.network), policy.model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)  # type: ignore[arg-type]
    for parameter in whole:
        parameter.data = parameter.data.to(ranks.device)


def layers(network: OpenVLA) -> list[nn.Module]:
    """What is put together as a whole when it runs; blocks that never run never are."""
    vision, llama = network.vision_backbone, network.language_model.model
    blocks = [*vision.featurizer.blocks, *vision.fused_featurizer.blocks]
    return [*blocks, vision, network.projector, llama.embed_tokens, *llama.layers, network.language_model.lm_head]


class Lockstep:
    """Keeps the passes of the processes paired.

    Pairs differ in length and in what is cached, and in a run's last step a process may have no example at all. So
    before each pass the processes agree on one: without gradients while any process wants such a one, else forward and
    backward while any does. Who wants another, or nothing more, takes part with a picture of its own whose gradient
    counts zero. A process whose examples failed goes on that way to the end of the step, where it tells the others.

    Every pass has to be a call of ``policy.model``, and each that has gradients is followed by its own backward pass
    before the next.
    """

    def __init__(self, ranks: Ranks, scorer: StepScorer) -> None:
        """Watch the calls of a sharded policy's model."""
        self._ranks = ranks
        self._scorer = scorer
        self._idle_batch = _idle_batch(scorer)
        self._watching = False
        self._unfinished: Tensor | None = None
        scorer.policy.model.register_forward_pre_hook(self._before_pass, prepend=True)
        scorer.policy.model.register_forward_hook(self._after_pass)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Make this process's passes of one optimiser step inside; leaves when all processes have made theirs.

        Raises:
            TrainingError: The device's memory is full: the others wait inside the pass, so it cannot be made again.
        """
        self._watching, self._unfinished = True, None
        try:
            yield
            if self._unfinished is not None:  # the example failed between its two passes, the others are in the second
                (self._unfinished * 0).sum().backward()
            while (agreed := self._agree(DONE)) != DONE:
                self._idle_pass(agreed)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"process {self._ranks.rank} has no device memory left, and with --shard_base True a pass cannot be "
                f"made again by one process alone; go on with --resume True on more processes, or start anew with a "
                f"smaller --micro_batch_size ({error})"
            ) from error
        finally:
            self._watching = False

    def _before_pass(self, module: nn.Module, inputs: object) -> None:
        if not self._watching:
            return
        assert self._unfinished is None, "a pass with gradients was not followed by its backward pass"
        wanted = GRADIENT if torch.is_grad_enabled() else SCORE
        while (agreed := self._agree(wanted)) != wanted:
            self._idle_pass(agreed)

    def _after_pass(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if self._watching and output.requires_grad:
            self._unfinished = output
            output.register_hook(self._backward_begins)

    def _backward_begins(self, gradient: Tensor) -> None:
        self._unfinished = None

    def _agree(self, wanted: int) -> int:
        wishes = torch.zeros(GRADIENT + 1)
        wishes[wanted] = 1
        self._ranks.sum_values(wishes)
        return next((kind for kind in (SCORE, GRADIENT) if wishes[kind] > 0), DONE)

    def _idle_pass(self, kind: int) -> None:
        self._watching = False
        with torch.set_grad_enabled(kind == GRADIENT):
            step_logps = self._scorer.score(self._idle_batch, slice(0, 1))
        if kind == GRADIENT:
            (step_logps * 0).sum().backward()
        self._watching = True


def _idle_batch(scorer: StepScorer) -> StepBatch:
    policy = scorer.policy
    return StepBatch(
        images=np.zeros((1, policy.image_size, policy.image_size, 3), np.uint8),
        instructions=[""],
        tokens=np.full((1, ACTION_DIM), policy.action_tokenizer.first_id),
        num_chosen=1,
        center_crop=False,
        label="no example",
    )
