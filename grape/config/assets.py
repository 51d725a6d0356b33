"""Settings of ``grape assets``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class AssetsConfig:
    """Download what a simulator's package does not bring; what is there already is kept."""

    simulator: Annotated[str, tyro.conf.Positional]
    """The simulator, e.g. simpler."""
