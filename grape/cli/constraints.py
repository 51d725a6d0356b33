"""``grape constraints SUBCOMMAND …``: writing stage constraints, imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from grape.errors import did_you_mean

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "propose": ("grape.cli.constraints_propose:main", "ask a vision-language model for a task's stages"),
    "keypoints": ("grape.cli.constraints_keypoints:main", "find keypoints in a picture and number them on it"),
    "check": ("grape.cli.constraints_check:main", "try constraints on stored rollouts before they are trusted"),
}
"""Subcommand -> (``module:function`` taking ``argv`` and returning an exit code, one line of help)."""

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else EXIT_USAGE
    name, *rest = arguments
    if name not in SUBCOMMANDS:
        print(f"grape constraints: unknown subcommand {name!r}.{did_you_mean(name, SUBCOMMANDS)}", file=sys.stderr)
        return EXIT_USAGE
    module, _, function = SUBCOMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), function)(rest) or 0


def usage() -> str:
    """The list of subcommands."""
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in SUBCOMMANDS.items()]
    head = ["usage: grape constraints SUBCOMMAND [--flag value …]", "", "subcommands (each with its own --help):"]
    return "\n".join([*head, *lines])
