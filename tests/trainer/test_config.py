"""The published command, the fields of the published configuration, and that every field is used."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import grape
from grape.cli.arguments import parse_config
from grape.config.checks import RANGES
from grape.config.sft import SFTConfig
from grape.config.train import TrainConfig, check_train_config
from grape.errors import ConfigError
from grape.models import OpenVLAPolicy, load_policy
from grape.trainer.metrics import read_metrics
from tests.trainer import tiny

PUBLISHED_FLAGS = {
    "vla_path": "openvla/openvla-7b",
    "dataset_name": "rlds_np_rollout",
    "chosen_traj_dir": "data/chosen",
    "rejected_traj_dir": "data/rejected",
    "run_root_dir": "logs",
    "adapter_tmp_dir": "adapters",
    "lora_rank": "32",
    "batch_size": "1",
    "grad_accumulation_steps": "1",
    "learning_rate": "2e-5",
    "image_aug": "False",
    "wandb_project": "project",
    "wandb_entity": "entity",
    "save_steps": "1000",
}
"""The README command of the published release, in its order."""

OTHER_PUBLISHED_FIELDS = {"max_steps", "shuffle_buffer_size", "epoch", "use_lora", "lora_dropout", "use_quantization"}


def flags(**changes: object) -> list[str]:
    return [word for name, value in (PUBLISHED_FLAGS | changes).items() for word in (f"--{name}", str(value))]


REFERENCE_FREE = {"reference_free": True, "length_normalised": True}


def published() -> TrainConfig:
    return parse_config(TrainConfig, "train", flags())


def test_the_published_command_parses_and_is_honoured() -> None:
    config = published()
    check_train_config(config)
    assert (config.vla_path, config.dataset_name) == ("openvla/openvla-7b", "rlds_np_rollout")
    assert (config.chosen_traj_dir, config.rejected_traj_dir) == (Path("data/chosen"), Path("data/rejected"))
    assert (config.lora_rank, config.learning_rate, config.save_steps, config.image_aug) == (32, 2e-5, 1000, False)
    assert config.run_dir == Path("logs/openvla-7b+rlds_np_rollout+b1+lr-2e-05+lora-r32+dropout-0.0")


def test_every_published_field_exists() -> None:
    assert PUBLISHED_FLAGS.keys() | OTHER_PUBLISHED_FIELDS <= {field.name for field in dataclasses.fields(TrainConfig)}


def attributes_read() -> set[str]:
    """Names read as ``….name``, or named in a table of names, anywhere in the trainer's code."""
    root = Path(grape.__file__).parent
    names: set[str] = set()
    for path in [*(root / "trainer").glob("*.py"), root / "cli" / "train.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
    source = (root / "config" / "train.py").read_text()
    return names | set(re.findall(r"config\.(\w+)", source)) | set(re.findall(r"self\.(\w+)", source))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TrainConfig)])
def test_every_field_is_read(name: str) -> None:
    assert name in attributes_read(), f"{name} is a dead option"


def test_every_field_is_documented() -> None:
    source = (Path(grape.__file__).parent / "config" / "train.py").read_text()
    [body] = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(following, ast.Expr), f"{ast.unparse(node)} has no docstring"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_lora": False}, "the same model with the adapter off"),
        ({"use_quantization": True, "shard_base": True}, "4-bit weights are not spread"),
        ({"batch_size": 0}, "batch_size=0: want at least 1"),
        ({"max_steps": 0}, "max_steps=0: want at least 1, or None"),
        ({"dtype": "float16"}, "dtype='float16': want auto, float32 or bfloat16"),
        ({"objective": "windows"}, "objective='windows': want trajectory, window or step"),
        ({"loss": "dpo"}, "loss='dpo': want sigmoid, ipo, hinge or robust"),
        ({"loss": "robust"}, "loss='robust' with label_smoothing=0.0: rDPO corrects for a known rate"),
        (
            {"loss": "ipo", "label_smoothing": 0.1},
            "loss='ipo' with label_smoothing=0.1: this loss has no smoothed form",
        ),
        ({"loss": "hinge", "label_smoothing": 0.1}, "this loss has no smoothed form; take --loss sigmoid"),
        (REFERENCE_FREE | {"loss": "ipo"}, "loss='ipo' with reference_free=True: 1 / (2 beta) is how far"),
        ({"reference_free": True}, "reference_free=True with length_normalised=False: without a reference the longer"),
        ({"reference_free": True, "objective": "window"}, "add --length_normalised True"),
        ({"simpo_gamma": 0.5}, "simpo_gamma=0.5 with reference_free=False: the target margin is SimPO's"),
        (REFERENCE_FREE | {"simpo_gamma": 0.5, "loss": "hinge"}, "the hinge has its margin already"),
        (REFERENCE_FREE | {"simpo_gamma": float("nan")}, "simpo_gamma=nan: want 0 or more"),
        ({"length_normalised": True, "objective": "step"}, "a single step has no length"),
        ({"beta": 0.0}, "beta=0.0: want more than 0"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0"),
        ({"warmup_steps": -1}, "warmup_steps=-1: want 0 or more"),
        ({"wandb_project": None}, "wandb_entity without wandb_project"),
        ({"weight_decay": float("nan")}, "weight_decay=nan: want 0 or more"),
        ({"sft_weight": float("nan")}, "sft_weight=nan: want 0 or more"),
        ({"learning_rate": float("inf")}, "learning_rate=inf: want more than 0, and finite"),
        ({"lora_alpha": 0}, "lora_alpha=0: want at least 1"),
        ({"run_name": ".."}, "run_name='..': want the name of one folder"),
        ({"run_name": "a/b"}, "run_name='a/b': want the name of one folder"),
        ({"adapter_tmp_dir": Path("x/../logs")}, "one would replace the other"),
        ({"run_root_dir": Path("adapters/same"), "run_name": "same"}, "one would replace the other"),
        ({"adapter_tmp_dir": Path("logs/same"), "run_name": "same"}, "one would replace the other"),
    ],
    ids=str,
)
def test_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_train_config(dataclasses.replace(published(), **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "robust", "label_smoothing": 0.1},
        {"loss": "ipo", "length_normalised": True},
        {"loss": "hinge", "objective": "window"},
        {"objective": "step", "label_smoothing": 0.1, "sft_weight": 1.0},
        {"objective": "step", "reference_free": True, "simpo_gamma": 0.5},
        REFERENCE_FREE | {"simpo_gamma": 0.5, "loss": "robust", "label_smoothing": 0.1},
        REFERENCE_FREE | {"loss": "hinge"},
    ],
    ids=str,
)
def test_losses_that_make_sense_are_let_through(changes: dict[str, Any]) -> None:
    check_train_config(dataclasses.replace(published(), **changes))


@pytest.mark.parametrize("kind", [TrainConfig, SFTConfig])
def test_every_number_has_a_range(kind: type) -> None:
    numbers = {name for name, hint in get_type_hints(kind).items() if {int, float} & {hint, *get_args(hint)}}
    checked = [name for _, _, names in RANGES for name in names]
    assert numbers - set(checked) == set()
    assert len(checked) == len(set(checked))


def run_finetune(repository: Path, launcher: list[str], **changes: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"WANDB_MODE": "offline", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, "finetune.py", *flags(**changes)],
        cwd=repository, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_the_published_command_trains(
    repository: Path, checkpoint: Path, policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path
) -> None:
    tiny.write_pairs(tmp_path, [(3, 5), (4, 2)], first_action_id, policy.checkpoint_hash)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node", "1"]
    folders = {"chosen_traj_dir": tmp_path / "chosen", "rejected_traj_dir": tmp_path / "rejected"}
    outputs = {"run_root_dir": tmp_path / "runs", "adapter_tmp_dir": tmp_path / "adapters"}
    done = run_finetune(repository, torchrun, vla_path=checkpoint, dataset_name="tiny", **folders, **outputs)
    assert done.returncode == 0, done.stderr[-3000:]
    [run_dir] = (tmp_path / "runs").glob("tiny+tiny+b1+*")
    assert [row["step"] for row in read_metrics(run_dir)] == [1, 2]
    settings = json.loads((run_dir / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (32, 32, 0.0)
    assert settings["init_lora_weights"] == "gaussian"
    assert (tmp_path / "adapters" / run_dir.name / "adapter_model.safetensors").exists()
    assert list(run_dir.rglob("*.wandb")), "W&B was asked for"
    load_policy(checkpoint, adapter=str(run_dir / "adapter"), device="cpu")


def test_missing_data_is_refused_in_one_line(repository: Path, tmp_path: Path) -> None:
    done = run_finetune(repository, [], run_root_dir=tmp_path / "runs", chosen_traj_dir=tmp_path / "nothing")
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("grape train: ")]
    assert "nothing" in line
    assert "Traceback" not in done.stderr


def test_the_run_name_can_be_chosen() -> None:
    config = tiny.tiny_config(Path("x"), Path("root"), run_name="mine")
    assert config.run_dir == Path("root/runs/mine")
