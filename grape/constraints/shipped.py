"""Stage constraints that come with the toolkit, for tasks whose simulator has no goal definition to derive them from.

One JSON file per task in ``tasks/``, named as in a user's own folder: ``<suite>_<task_id>.json``.
"""

from __future__ import annotations

from pathlib import Path

from grape.constraints.stages import TaskConstraints, load_constraints

FOLDER = Path(__file__).with_name("tasks")


def shipped_constraints(suite: str, task_id: int) -> TaskConstraints | None:
    """A task's constraints, or ``None`` where it has none of its own."""
    path = FOLDER / f"{suite}_{task_id}.json"
    return load_constraints(path) if path.is_file() else None
