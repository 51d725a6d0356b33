"""What frozen towers and projector make of pictures: computed once, kept in the host's memory.

With ``--lora_targets llm`` it is the same in the reference's pass, the pass without gradients, the pass with them, and
in every epoch. Values come from micro-batches of the very rows that they are used in, so nothing changes, to the bit.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from grape.models import OpenVLAPolicy
    from grape.trainer.prepare import StepBatch

GB = 10**9
_Rows = tuple[int, int]


class FeatureStore:
    """Features of the example in hand, whole, and of those before it within a bound; the least recently used leave."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_computed = 0
        """Micro-batches that ran through the towers."""
        self._examples: OrderedDict[str, dict[_Rows, Tensor]] = OrderedDict()
        self._batch: StepBatch | None = None

    @property
    def num_bytes(self) -> int:
        """What is held."""
        return sum(features.nbytes for kept in self._examples.values() for features in kept.values())

    def of(self, policy: OpenVLAPolicy, batch: StepBatch, rows: slice) -> Tensor:
        """Features of the given rows of an example, (rows, patches, width) on the policy's device."""
        if batch is not self._batch:
            self._take_in_hand(batch)
        kept = self._examples[next(reversed(self._examples))]
        if (features := kept.get((rows.start, rows.stop))) is not None:
            return features.to(policy.device)
        features = policy.image_features(list(batch.images[rows]), center_crop=batch.center_crop)
        # Device memory must not grow with the trajectory; elsewhere (CPU, and meta in the memory plan) nothing moves.
        kept[rows.start, rows.stop] = features.cpu() if features.device.type == "cuda" else features
        self.num_computed += 1
        self._make_room()
        return features

    def _take_in_hand(self, batch: StepBatch) -> None:
        key = _digest(batch)  # of the pictures themselves: with augmentation each epoch has its own
        self._examples[key] = self._examples.pop(key, {})  # to the end
        self._batch = batch
        self._make_room()

    def _make_room(self) -> None:
        while len(self._examples) > 1 and self.num_bytes > self.max_bytes:
            self._examples.popitem(last=False)


def _digest(batch: StepBatch) -> str:
    digest = hashlib.blake2b(f"{batch.images.shape} {batch.center_crop}".encode(), digest_size=16)
    digest.update(batch.images.tobytes())
    return digest.hexdigest()
