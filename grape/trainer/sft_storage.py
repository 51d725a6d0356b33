"""How a supervised run is logged, saved, found again and exported."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from grape.config.checks import run_defining_settings
from grape.config.inputs import CROP_KEY
from grape.models import save_policy
from grape.models.adapter import save_adapter
from grape.models.folder import TRAINING_FILE
from grape.rlds import write_statistics
from grape.trainer.checkpoint import write_directory
from grape.trainer.continuation import describe_run, open_log, read_state, take_up
from grape.trainer.metrics import MetricsLogger
from grape.trainer.sft_run import SFTRun

_LOG = logging.getLogger(__name__)
ADAPTER_FOLDER, CHECKPOINT_FOLDER = "adapter", "checkpoint"


def start_logger(run: SFTRun) -> MetricsLogger:
    """Write run.json and open the metrics."""
    _LOG.info(
        "SFT: %d frames of %d episodes to train on, %d to validate on, %d steps (%d frames each), %.2f M weights, %s, "
        "into %s", run.order.frames_per_epoch, len(run.order.lengths), len(run.validation), run.num_steps,
        run.frames_per_step, sum(value.numel() for value in run.parameters.values()) / 1e6, run.ranks.device,
        run.config.run_dir,
    )  # fmt: skip
    return open_log(run, describe(run))


def describe(run: SFTRun) -> dict[str, Any]:
    """Settings, versions and sizes of a run, as JSON values."""
    details = {
        "num_episodes": len(run.order.lengths),
        "num_frames": run.order.frames_per_epoch,
        "frames_per_step": run.frames_per_step,
        "center_crop": run.center_crop,
        CROP_KEY: run.policy.source_config[CROP_KEY],
        "device": str(run.ranks.device),
        "autocast_dtype": str(run.autocast_dtype),
    }
    return describe_run(run, details)


def save(run: SFTRun) -> None:
    """Write a complete checkpoint with its result so far; the first process does it."""
    if not run.ranks.first:
        return
    state = {
        "weights": {name: value.detach().cpu() for name, value in run.parameters.items()},
        "optimizer": run.optimizer.state_dict(),
        "step": run.step,  # learning rate, data position, augmentation, noise and dropout are functions of it
        "settings": run_defining_settings(run.config),
        "identity": _identity(run),
    }
    run.checkpoints.save(run.step, state, export=lambda folder: _export_intermediate(run, folder))
    if run.config.adapter_tmp_dir is not None:
        newest = run.config.adapter_tmp_dir / run.config.effective_run_name
        write_directory(newest, lambda folder: export_adapter(run, folder))


def _export_intermediate(run: SFTRun, folder: Path) -> None:
    if run.config.trains_adapter:
        export_adapter(run, folder / ADAPTER_FOLDER)
    else:
        save_policy(run.policy, folder / CHECKPOINT_FOLDER, dtype=run.config.save_dtype)


def export_adapter(run: SFTRun, directory: Path) -> None:
    """Write the adapter in peft's format, with where it comes from and the statistics that it was trained with."""
    save_adapter(run.policy, directory)
    (directory / TRAINING_FILE).write_text(json.dumps(describe(run) | {"steps_done": run.step}, indent=1))
    if run.new_statistics:
        write_statistics(directory, run.new_statistics)


def export_result(run: SFTRun) -> Path:
    """Write the run's result: the adapter (and, where asked, the merged checkpoint), or the checkpoint."""
    config = run.config
    result = config.run_dir / (ADAPTER_FOLDER if config.trains_adapter else CHECKPOINT_FOLDER)
    if not run.ranks.first:
        return result
    if config.trains_adapter:
        write_directory(result, lambda folder: export_adapter(run, folder))
        if not config.save_merged:
            return result
        run.policy.merge_adapter()
    save_policy(run.policy, config.run_dir / CHECKPOINT_FOLDER, dtype=config.save_dtype, overwrite=True)
    return result


def resume(run: SFTRun) -> None:
    """Take up the last good checkpoint of the run folder, where that is asked for and there is one.

    Raises:
        ConfigError: It belongs to a run with other settings or data.
    """
    state = read_state(run.config, run.checkpoints)
    if state is not None:
        take_up(run, state, state["weights"], identity=_identity(run), stored_identity=state["identity"])


def _identity(run: SFTRun) -> dict[str, Any]:
    return {
        "content hash of the weights at the start": run.base_hash,
        "digest of the data set": run.data_digest,
        "batch_size x grad_accumulation_steps x processes": run.frames_per_step,
    }
