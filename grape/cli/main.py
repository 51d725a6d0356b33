"""``grape COMMAND …``: one command per stage of the pipeline, imported only when it is asked for."""

from __future__ import annotations

import errno
import importlib
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence

import grape
from grape.errors import GrapeError, did_you_mean

COMMANDS: dict[str, tuple[str, str]] = {
    "collect": ("grape.cli.collect:main", "roll a policy out in a simulator and store the trajectories"),
    "score": ("grape.cli.score:main", "score stored trajectories with the guided cost"),
    "constraints": ("grape.cli.constraints:main", "propose stage constraints, find keypoints for them, check them"),
    "pair": ("grape.cli.pair:main", "pair chosen with rejected trajectories and write two RLDS data sets"),
    "export": ("grape.cli.export:main", "write stored trajectories as one RLDS data set"),
    "train": ("grape.cli.train:main", "trajectory-wise preference optimization (TPO) of a LoRA adapter"),
    "finetune": ("grape.cli.train:main", "the same as train, under the published name"),
    "sft": ("grape.cli.sft:main", "supervised fine-tuning from an RLDS data set"),
    "eval": ("grape.cli.evaluate:main", "success rates with intervals on named initial states"),
    "simpler-eval": ("grape.cli.simpler_eval:main", "eval of one WidowX task under SIMPLER's published flags"),
    "compare": ("grape.cli.compare:main", "paired comparison of two evaluations"),
    "merge": ("grape.cli.merge:main", "merge an adapter into its base checkpoint"),
    "init-checkpoint": ("grape.cli.init_checkpoint:main", "write a checkpoint with random weights, of any size"),
    "parity": ("grape.cli.parity:main", "check a checkpoint against recorded outputs of the reference code"),
    "experts": ("grape.cli.experts:main", "scripted demonstrations with privileged state"),
    "states": ("grape.cli.states:main", "distance of test states to the nearest used ones"),
    "assets": ("grape.cli.assets:main", "download what a simulator's package does not bring"),
    "demo": ("grape.cli.demo:main", "the whole loop, end to end, with a report"),
}
"""Command name -> (``module:function`` taking ``argv`` and returning an exit code, one line of help)."""

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 2, 130, 141
TRACEBACK_VARIABLE = "GRAPE_TRACEBACK"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 well, 1 refused or failed, 2 wrong usage, 130 interrupted,
    141 nobody reads on."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        print(f"grape-vla {grape.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"grape: unknown command {name!r}.{did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return EXIT_USAGE
    return run_command(name, rest)


def run_command(name: str, argv: Sequence[str]) -> int:
    """Run the command ``name`` and turn what a user can cause into one line and an exit code."""
    try:
        code = load_command(name)(list(argv)) or 0
        sys.stdout.flush()  # here, where a reader who has left, such as head, is no error
        return code
    except GrapeError as error:
        return _refuse(name, str(error))
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        return EXIT_BROKEN_PIPE
    except PermissionError as error:
        return _refuse(
            name, f"{error.filename or 'a file'}: permission denied; change its rights, or name another place"
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _refuse(name, f"the disk is full ({error.filename or error.strerror}); what was finished is kept")
    except KeyboardInterrupt:
        print(f"\ngrape {name}: interrupted; what was finished is kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as stop:  # tyro and argparse leave this way after --help or a wrong flag
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return EXIT_ERROR
        return stop.code or 0


def load_command(name: str) -> Callable[[list[str] | None], int]:
    """Import a command's function."""
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), function)


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    head = ["usage: grape COMMAND [--flag value …]", "", "commands (grape COMMAND --help lists the flags):"]
    return "\n".join([*head, *lines, "", f"{TRACEBACK_VARIABLE}=1 shows where an error came from."])


def _reader_has_left() -> bool:
    """Whether it is our own output that nobody reads; what is left of it is then dropped, without a complaint."""
    poll = select.poll()
    poll.register(sys.__stdout__ or sys.stdout, 0)  # errors alone, which are always told
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _refuse(name: str, message: str) -> int:
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    print(f"grape {name}: {message}", file=sys.stderr)
    return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
