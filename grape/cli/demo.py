"""``grape demo``: the whole loop, end to end, with a report."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Sequence

from grape.cli.arguments import parse_config
from grape.cli.main import run_command
from grape.cli.score import parse_arguments
from grape.config.collect import CollectConfig
from grape.config.demo import DemoConfig
from grape.config.evaluate import EvaluateConfig
from grape.config.model import MergeConfig
from grape.config.pair import PairConfig
from grape.config.sft import SFTConfig, check_sft_config
from grape.config.states import StatesConfig
from grape.config.train import TrainConfig, check_train_config
from grape.demo.driver import run_demo
from grape.errors import ConfigError
from grape.rlds.writer import check_dataset_name

CHECKS: dict[str, Callable[[list[str]], object]] = {
    "eval": lambda argv: parse_config(EvaluateConfig, "eval", argv),
    "collect": lambda argv: parse_config(CollectConfig, "collect", argv),
    "score": parse_arguments,
    "pair": lambda argv: check_dataset_name(parse_config(PairConfig, "pair", argv).dataset_name),
    "train": lambda argv: check_train_config(parse_config(TrainConfig, "train", argv)),
    "merge": lambda argv: parse_config(MergeConfig, "merge", argv),
    "sft": lambda argv: check_sft_config(parse_config(SFTConfig, "sft", argv)),
    "states": lambda argv: parse_config(StatesConfig, "states", argv),
}
"""The commands of the demo's stages -> what refuses their flags before they read a file."""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run, or continue, the demo."""
    run_demo(parse_config(DemoConfig, "demo", argv), run_command, check_command)
    return 0


def check_command(name: str, argv: Sequence[str]) -> None:
    """Read a stage's command line as the command itself would.

    Raises:
        ConfigError: The command would refuse it; the message names the flag.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            CHECKS[name](list(argv))
    except SystemExit as stop:  # tyro shows the error in a frame (a title, the error, where to find help), then leaves
        error = shown.getvalue().partition("\n")[2].partition("For full helptext")[0]
        message = re.sub(r"[╭╮╰╯│─]|-{3,}", " ", error)
        raise ConfigError(" ".join(message.split())) from stop
