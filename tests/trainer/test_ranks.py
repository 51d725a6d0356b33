"""Runs of several processes: equal to one process, sharded or not, resumed by another number, and stopped as one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grape.config.sft import SFTConfig
from grape.config.train import TrainConfig
from grape.errors import ConfigError, TrainingError
from grape.models import load_policy
from grape.trainer import sft
from grape.trainer.checkpoint import CheckpointStore
from grape.trainer.distributed import Ranks, lost_rank
from grape.trainer.gradient import StepScorer
from grape.trainer.loop import train
from grape.trainer.metrics import read_metrics
from grape.trainer.sharding import Lockstep, check_sharding
from tests.trainer import tiny
from tests.trainer.kill_and_resume import adapter_tensors, last_step, logged
from tests.trainer.two_ranks import BAD_PAIR, log_probs, sft_episodes

LENGTHS = [(5, 9), (6, 6), (11, 4), (3, 8), (7, 7)]
"""Five pairs, four examples to a step: in the last step of an epoch one process has no example."""
TRAJECTORY: dict[str, Any] = {"epoch": 2, "max_grad_norm": 0.5, "image_aug": True, "lora_dropout": 0.1, "save_steps": 2}
WINDOW: dict[str, Any] = {"objective": "window", "window_size": 3, "micro_batch_size": 6}  # a window is one pass
CASES = {
    "trajectory": TRAJECTORY | {"batch_size": 2},
    "sharded": TRAJECTORY | {"batch_size": 2, "shard_base": True},
    "window": WINDOW | {"grad_accumulation_steps": 2},
    "sharded-window": WINDOW | {"grad_accumulation_steps": 2, "shard_base": True, "gradient_checkpointing": "on"},
    "resumed": TRAJECTORY | {"batch_size": 2, "resume": True},
    "apart": TRAJECTORY | {"batch_size": 2, "resume": True},
    "overflow": WINDOW | {"shard_base": True},
    "hang": TRAJECTORY | {"rank_timeout_s": 2.0},
}
LIMIT_S = 60
"""Within which the others of a process that was killed have to be gone; they take less than a second."""


@dataclasses.dataclass(kw_only=True)
class World:
    """Where the runs of one and of two processes are."""

    root: Path
    checkpoint: Path
    first_action_id: int

    def config(self, name: str, **changes: Any) -> TrainConfig:
        return tiny.tiny_config(self.checkpoint, self.root / name, **changes)

    def run_dir(self, name: str) -> Path:
        return self.config(name).run_dir

    def report(self, name: str, rank: int) -> dict[str, Any]:
        return json.loads((self.root / f"{name}-{rank}.json").read_text())

    def pairs(self) -> tiny.MemoryPairs:
        return tiny.make_pairs(LENGTHS, self.first_action_id)

    def sft_config(self, name: str, **changes: Any) -> SFTConfig:
        return SFTConfig(
            vla_path=str(self.checkpoint), data_root_dir=self.root, dataset_name="tiny", labels="tokens", lora_rank=2,
            run_root_dir=self.root / name, run_name="run", max_steps=3, learning_rate=1e-2, device="cpu", **changes,
        )  # fmt: skip

    def copy_at_step(self, source: str, target: str, step: int) -> None:
        """The run folder as it was after that step."""
        shutil.copytree(self.root / source, self.root / target)
        for later in CheckpointStore(self.run_dir(target) / "checkpoints").steps():
            if later > step:
                shutil.rmtree(self.run_dir(target) / "checkpoints" / f"step-{later:08d}")


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def as_json(config: SFTConfig) -> str:
    values = dataclasses.asdict(config)
    return json.dumps({name: str(value) if isinstance(value, Path) else value for name, value in values.items()})


@pytest.fixture(scope="module")
def world(repository: Path, checkpoint: Path, first_action_id: int, tmp_path_factory: pytest.TempPathFactory) -> World:
    """All cases, by one process here and by two processes."""
    world = World(root=tmp_path_factory.mktemp("ranks"), checkpoint=checkpoint, first_action_id=first_action_id)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train(world.config("one-trajectory", **TRAJECTORY, batch_size=4), world.pairs())
    train(world.config("one-window", **WINDOW, batch_size=4), world.pairs())
    sft.fine_tune(world.sft_config("one-sft", batch_size=6), sft_episodes(first_action_id))  # type: ignore[arg-type]
    torch.set_num_threads(before)
    for name in ("resumed", "apart"):
        world.copy_at_step("one-trajectory", name, 2)

    common = {"lengths": LENGTHS, "first_action_id": first_action_id}
    configs = [("sft", as_json(world.sft_config("sft", batch_size=3)))]
    configs += [(name, tiny.config_to_json(world.config(name, **changes))) for name, changes in CASES.items()]
    cases = [
        common | {"name": name, "config": text, "port": port}
        for (name, text), port in zip(configs, free_ports(len(configs)), strict=True)
    ]
    (world.root / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "tests.trainer.two_ranks", str(world.root / "cases.json")]
    done = subprocess.run(
        command, cwd=repository, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return world


def assert_same_run(world: World, name: str, wanted: str) -> None:
    """Weights and logged metrics.

    float32 sums over two processes have another order than over one, and differ by some 1e-7 of a gradient; Adam
    divides by the gradient's size, which makes more of it where a gradient is near zero. Weights move by about 1e-2
    per step here, so 1e-5 is a thousandth of a step.
    """
    first, second = adapter_tensors(world.run_dir(wanted) / "adapter"), adapter_tensors(world.run_dir(name) / "adapter")
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=1e-5)
    for row, expected in zip(logged(world.config(name)), logged(world.config(wanted)), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["trajectory", "sharded", "window", "sharded-window", "resumed"])
def test_two_processes_equal_one(world: World, name: str) -> None:
    wanted = "one-window" if "window" in name else "one-trajectory"
    steps = [row["step"] for row in read_metrics(world.run_dir(wanted))]
    assert steps == [1, 2, 3, 4]
    start = adapter_tensors(world.run_dir(wanted) / "checkpoints" / f"step-{steps[-1]:08d}" / "adapter")
    assert max(value.abs().max().item() for key, value in start.items() if "lora_B" in key) > 1e-2  # it started at 0
    assert_same_run(world, name, wanted)
    if name == "resumed":  # it went on, rather than start again
        assert json.loads((world.run_dir(name) / "run.json").read_text())["num_processes"] == 2
        assert "seconds" in world.report(name, 0) and "error" not in world.report(name, 0)


def test_supervised_training_equals_one_process(world: World) -> None:
    one, two = world.sft_config("one-sft", batch_size=6), world.sft_config("sft", batch_size=3)
    wanted, got = adapter_tensors(one.run_dir / "adapter"), adapter_tensors(two.run_dir / "adapter")
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=1e-5)  # as in assert_same_run
    assert [row["step"] for row in read_metrics(two.run_dir)] == [1, 2, 3]


def test_a_sharded_process_holds_half_of_the_base(world: World) -> None:
    whole = world.report("trajectory", 0)
    assert whole["held_bytes"] == whole["base_bytes"]
    for rank in (0, 1):
        report = world.report("sharded", rank)
        assert report["base_bytes"] == whole["base_bytes"]
        # Each tensor is cut along its first axis; one of odd length, such as a class token, is a row more in process 0.
        assert report["held_bytes"] == pytest.approx(report["base_bytes"] / 2, rel=0.02)


def test_the_adapter_of_a_sharded_run_acts_the_same_in_one_process(world: World) -> None:
    adapter = world.run_dir("sharded") / "adapter"
    policy = load_policy(world.checkpoint, adapter=str(adapter), device="cpu")
    # The same kernels on the same numbers; 1e-5 nats is float32's rounding of a sum of 7 log-probabilities.
    for rank in (0, 1):
        assert world.report("sharded", rank)["log_probs"] == pytest.approx(log_probs(policy, world.pairs()), abs=1e-5)


def test_one_process_goes_on_with_a_sharded_run_of_two(world: World) -> None:
    world.copy_at_step("sharded", "gone-on", 2)
    config = world.config("gone-on", **TRAJECTORY, batch_size=4, resume=True)
    with pytest.raises(ConfigError, match="batch_size x grad_accumulation_steps x processes: 4 then, 2 now"):
        train(dataclasses.replace(config, batch_size=2), world.pairs())
    train(config, world.pairs())
    assert_same_run(world, "gone-on", "one-trajectory")


def test_machines_that_do_not_share_the_run_folder_are_refused(world: World) -> None:
    for rank in (0, 1):
        error = world.report("apart", rank)["error"]
        assert "process 0: step 2" in error and "process 1: step 0" in error and "one shared run folder" in error


def test_a_process_that_fails_tells_the_others_and_leaves_none_waiting(world: World) -> None:
    errors = [world.report("overflow", rank)["error"] for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert f"pair {BAD_PAIR:06d}--tiny" in errors[0] and "not finite" in errors[0]


def test_a_process_that_hangs_ends_the_run(world: World) -> None:
    report = world.report("hang", 0)
    assert "another process of this run has not answered for 2 s (--rank_timeout_s)" in report["error"]
    assert "no checkpoint was due before it" in report["error"] and "--resume True" in report["error"]
    assert report["seconds"] < LIMIT_S
    assert "another process of this run has gone" in world.report("hang", 1)["error"]  # once it ran again


def test_a_killed_process_ends_the_run_and_the_run_can_go_on(repository: Path, world: World) -> None:
    settings: dict[str, Any] = {"epoch": 12, "save_steps": 1, "learning_rate": 1e-3, "micro_batch_size": 8}
    lengths = [(3, 4), (4, 3), (3, 3)]  # two steps in an epoch
    pairs = tiny.make_pairs(lengths, world.first_action_id)
    straight = world.config("straight", **settings, batch_size=2)
    train(straight, pairs)
    broken = world.config("broken", **settings)
    victim, at_step = random.randint(0, 1), random.randint(2, 12)
    logs = world.root / "logs"
    arguments = [tiny.config_to_json(broken), json.dumps(lengths), str(world.first_action_id)]
    agent = start_torchrun(repository, logs, arguments)
    wait_for(lambda: last_step(broken) >= at_step, agent)
    os.kill(int((broken.run_dir / f"pid-{victim}").read_text()), signal.SIGKILL)
    agent.communicate(timeout=LIMIT_S)
    assert agent.returncode != 0

    [told] = [path.read_text() for path in logs.rglob(f"{1 - victim}/stderr.log")]
    store = CheckpointStore(broken.run_dir / "checkpoints")
    latest = store.load_latest()  # checks the files against the manifest
    assert latest is not None and latest.step == store.steps()[-1]
    assert at_step - 1 <= latest.step < 24  # a step is logged before it is saved
    assert f"the last good checkpoint, step {latest.step}, is kept" in told
    assert "grape train: training stopped: another process of this run has gone" in told
    assert "continue with --resume True" in told and "Traceback" not in told

    train(dataclasses.replace(broken, resume=True, batch_size=2), pairs)
    assert_same_run(world, "broken", "straight")


def start_torchrun(repository: Path, logs: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--redirects=3"]
    command += [f"--log-dir={logs}", "-m", "tests.trainer.two_ranks", *arguments]
    return subprocess.Popen(command, cwd=repository, env=environment(), stderr=subprocess.DEVNULL, text=True)


def wait_for(reached: Any, agent: subprocess.Popen[str]) -> None:
    while not reached():
        assert agent.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)


def test_sharding_needs_processes_and_says_so() -> None:
    with pytest.raises(ConfigError, match="shard_base=True with one process.*torchrun"):
        check_sharding(Ranks(rank=0, world_size=1, device=torch.device("cpu")))


def test_a_full_device_ends_a_sharded_run(world: World) -> None:
    policy = load_policy(world.checkpoint, device="cpu")
    lockstep = Lockstep(Ranks(rank=0, world_size=1, device=policy.device), StepScorer(policy, world.config("full")))
    full = pytest.raises(TrainingError, match="process 0 has no device memory left.*smaller --micro_batch_size")
    with full, lockstep.step():
        raise torch.OutOfMemoryError("CUDA out of memory")  # as torch raises it; there is no GPU here


def test_other_errors_of_torch_are_not_taken_for_a_lost_process() -> None:
    assert lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), limit="1 s") is None
