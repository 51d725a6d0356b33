"""What a run may replace, which folders belong together, and what is told before anything is loaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from grape.errors import ConfigError, PairingError, TrainingError
from grape.models import OpenVLAPolicy, load_policy, new_policy, save_policy
from grape.trainer.loop import train
from tests.trainer import tiny


@pytest.mark.parametrize(
    "name", ["adapters/run/data.txt", "adapters/run/README.md", "adapters/run", "runs/run/adapter/x"]
)
def test_an_adapter_replaces_nothing_but_an_adapter(
    name: str, checkpoint: Path, first_action_id: int, tmp_path: Path
) -> None:
    pairs, config = tiny.make_pairs([(3, 4)], first_action_id), tiny.tiny_config(checkpoint, tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds something else .*{Path(name).name}"):
        train(config, pairs)
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    train(config, pairs)
    train(dataclasses.replace(config, run_root_dir=tmp_path / "more"), pairs)  # finds the adapter of the run before


def test_a_run_folder_that_cannot_be_written(checkpoint: Path, first_action_id: int, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(TrainingError, match="choose another --run_root_dir"):
        train(tiny.tiny_config(checkpoint, tmp_path), tiny.make_pairs([(3, 4)], first_action_id))


def test_an_adapter_on_weights_that_it_was_not_trained_on_is_told(
    checkpoint: Path, first_action_id: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = train(tiny.tiny_config(checkpoint, tmp_path), tiny.make_pairs([(3, 4)], first_action_id))
    other = new_policy("test", instructions=[tiny.INSTRUCTION], norm_stats=tiny.STATISTICS, seed=4)
    save_policy(other, tmp_path / "other")
    caplog.clear()
    load_policy(checkpoint, adapter=adapter, device="cpu")
    assert caplog.text == ""
    load_policy(tmp_path / "other", adapter=adapter, device="cpu")
    trained_on = load_policy(checkpoint, device="cpu").checkpoint_hash
    assert f"hash {trained_on[:12]}, but {tmp_path / 'other'} has {other.checkpoint_hash[:12]}" in caplog.text
    caplog.clear()
    (adapter / "training.json").unlink()  # as the original code's
    load_policy(tmp_path / "other", adapter=adapter, device="cpu")
    assert caplog.text == ""


def test_chosen_and_rejected_the_wrong_way_round_are_refused(
    checkpoint: Path, policy: OpenVLAPolicy, first_action_id: int, tmp_path: Path
) -> None:
    tiny.write_pairs(tmp_path, [(3, 5), (4, 2)], first_action_id, policy.checkpoint_hash)
    config = tiny.tiny_config(checkpoint, tmp_path)
    swapped = dataclasses.replace(
        config, chosen_traj_dir=config.rejected_traj_dir, rejected_traj_dir=config.chosen_traj_dir
    )
    with pytest.raises(PairingError, match="in each of the 2 scored pairs the chosen trajectory has the lower score"):
        train(swapped)
    train(config)


RUN = """
import sys
from grape.cli.main import run_command
run_command(sys.argv[1], sys.argv[2:])
sys.exit(10 + ("torch" in sys.modules))
"""


@pytest.mark.parametrize(
    "command",
    ["train --vla_path x --chosen_traj_dir x --rejected_traj_dir x", "sft --vla_path x --data_root_dir x"],
)
@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--batch_size 0", "batch_size=0: want at least 1"),
        ("--dtype float8", "invalid choice 'float8'"),
        ("--attn_implementation slow", "invalid choice 'slow'"),
    ],
)
def test_wrong_flags_are_told_before_torch_is_loaded(command: str, flag: str, told: str) -> None:
    words = [*command.split(), "--dataset_name", "x", *flag.split()]
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False)
    assert told in done.stderr
    assert done.returncode == 10, done.stderr
