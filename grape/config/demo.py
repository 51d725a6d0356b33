"""Settings of ``grape demo``; what the run itself does stands in its plan (``grape/demo/plan.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole preference loop, end to end, with a report."""

    profile: Literal["quick", "full", "simpler"] = "quick"
    """``quick`` reads experiments/demo/quick.json (minutes, few states), ``full`` experiments/demo/plan.json (the
    measured proof in LIBERO), ``simpler`` experiments/demo/plan_simpler.json (the one in SIMPLER)."""
    plan: Path | None = None
    """Another plan file, instead of the profile's."""
    run_dir: Path | None = None
    """Folder of the run; ``None`` is runs/demo-<profile>. An unfinished run in it is continued."""
    num_workers: int = 2
    """Simulator processes, each of about 2 GB. As in ``grape eval``, another number may now and then change a token."""
    device: str = "auto"
    """torch device of the policy, e.g. ``cpu``, ``cuda:0``; ``auto`` takes a GPU if there is one."""
    allow_dirty: bool = False
    """Run a proof although the plan, the code (grape/, finetune.py, constraints.txt) or the policy's folder is not
    committed as it stands, or although another plan has looked at its states; the result says which code it was."""
    result_file: Path | None = None
    """Copy result.json to this path, too, e.g. experiments/demo/result.json."""
