"""What the processes of ``test_ranks.py`` run.

``two_ranks.py CASES_FILE`` forks two processes, which load libraries once between them, goes through the cases, and
writes what each process saw beside that file. ``two_ranks.py CONFIG LENGTHS FIRST_ACTION_ID`` is one ``grape train`` on
pairs in memory, for torchrun.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.tensor import DTensor

from grape.cli import main as cli
from grape.config.sft import SFTConfig
from grape.errors import GrapeError
from grape.models import OpenVLAPolicy
from grape.models.sampling import evaluation_mode
from grape.trainer import loop, sft
from grape.trainer.run import TrainingRun
from tests.trainer import tiny

BAD_PAIR = 1
"""Of the case ``overflow``: its log-probability is not finite in the process that meets it."""


def rank() -> int:
    return int(os.environ["RANK"])


def sft_episodes(first_action_id: int) -> tiny.MemoryPairs:
    return tiny.MemoryPairs([tiny.make_episode(seed, 5 + seed, first_action_id) for seed in range(3)])  # type: ignore[arg-type]


def log_probs(policy: OpenVLAPolicy, pairs: tiny.MemoryPairs) -> list[float]:
    """Of the first pair's chosen steps."""
    episode = pairs.pairs[0].chosen
    images, words = list(episode.decode_images(range(len(episode)))), [episode.instruction] * len(episode)
    assert episode.action_tokens is not None
    with torch.no_grad(), evaluation_mode(policy.model):
        return policy.log_prob(images, words, episode.action_tokens).sum(dim=-1).tolist()


@contextlib.contextmanager
def measured(report: dict[str, Any], pairs: tiny.MemoryPairs) -> Iterator[None]:
    """Note what the process holds of the base after its last step, and what the policy says then."""
    train_steps = loop.train_steps

    def then_measure(run: TrainingRun, *arguments: Any) -> None:
        train_steps(run, *arguments)
        base = [value for value in run.policy.model.parameters() if not value.requires_grad]
        report["base_bytes"] = sum(value.nbytes for value in base)
        held = [value.to_local() if isinstance(value, DTensor) else value for value in base]
        report["held_bytes"] = sum(value.nbytes for value in held)
        report["log_probs"] = log_probs(run.policy, pairs)

    with mock.patch.object(loop, "train_steps", then_measure):
        yield


@contextlib.contextmanager
def overflowing(pairs: tiny.MemoryPairs) -> Iterator[None]:
    """One pair's log-probabilities are NaN where gradients are on."""
    real, bad = OpenVLAPolicy.log_prob, pairs.pairs[BAD_PAIR].chosen.action_tokens
    assert bad is not None

    def log_prob(self: OpenVLAPolicy, images: Any, instructions: Any, tokens: Any, **settings: Any) -> torch.Tensor:
        values = real(self, images, instructions, tokens, **settings)
        return values * float("nan") if (tokens[0] == bad[0]).all() and torch.is_grad_enabled() else values

    with mock.patch.object(OpenVLAPolicy, "log_prob", log_prob):
        yield


@contextlib.contextmanager
def hanging(folder: Path) -> Iterator[None]:
    """Process 1 stops (SIGSTOP) at its second step; it goes on when process 0 has given up."""
    real, pid_file = loop.train_step, folder / "pid"

    def train_step(run: TrainingRun, *arguments: Any) -> dict[str, float]:
        if rank() == 1 and run.step == 1:
            pid_file.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(run, *arguments)

    with mock.patch.object(loop, "train_step", train_step):
        try:
            yield
        finally:
            if rank() == 0:
                os.kill(int(pid_file.read_text()), signal.SIGCONT)


def run_case(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = {"case": case["name"]}
    if case["name"] == "sft":
        values = json.loads(case["config"])
        sft.fine_tune(SFTConfig(**values | {key: Path(values[key]) for key in ("data_root_dir", "run_root_dir")}),
                  sft_episodes(case["first_action_id"]))  # type: ignore[arg-type]  # fmt: skip
        return report
    config, pairs = tiny.config_from_json(case["config"]), tiny.make_pairs(case["lengths"], case["first_action_id"])
    if case["name"] == "apart" and rank() == 1:  # a machine that does not share the run folder
        config = dataclasses.replace(config, run_root_dir=folder / "elsewhere")
    trouble: dict[str, Any] = {"overflow": lambda: overflowing(pairs), "hang": lambda: hanging(folder)}
    with measured(report, pairs), trouble.get(case["name"], contextlib.nullcontext)():
        started = time.monotonic()
        try:
            loop.train(config, pairs)
        except GrapeError as error:
            report["error"] = str(error)
        report["seconds"] = time.monotonic() - started
    return report


def run_cases(path: Path) -> None:
    for case in json.loads(path.read_text()):
        os.environ["MASTER_PORT"] = str(case["port"])
        report = run_case(case, path.parent)
        (path.parent / f"{case['name']}-{rank()}.json").write_text(json.dumps(report))


def fork_ranks(path: Path) -> int:
    """Two processes that find each other as torchrun's do; returns how many failed."""
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    children = []
    for number in range(2):
        if child := os.fork():
            children.append(child)
            continue
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(number)
        try:
            run_cases(path)
        except BaseException:  # a forked child must never return into the parent's code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def train_in_memory(arguments: list[str] | None) -> int:
    assert arguments is not None
    config = tiny.config_from_json(arguments[0])
    config.run_dir.mkdir(parents=True, exist_ok=True)
    (config.run_dir / f"pid-{rank()}").write_text(str(os.getpid()))
    loop.train(config, tiny.make_pairs(json.loads(arguments[1]), int(arguments[2])))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        sys.exit(fork_ranks(Path(sys.argv[1])))
    else:
        cli.COMMANDS["train"] = ("tests.trainer.two_ranks:train_in_memory", "on pairs in memory")
        sys.exit(cli.run_command("train", sys.argv[1:]))
