"""How the policy and the simulators of one machine share its cores."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def cores_left_by(num_workers: int) -> Iterator[None]:
    """Give torch the cores that the simulators leave, at least one: threads that fight for cores stall both."""
    torch = sys.modules.get("torch")  # absent where a scripted policy acts
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) - num_workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
