"""``grape train``, and ``finetune.py`` under its published name: trajectory-wise preference optimization."""

from __future__ import annotations

import logging

from grape.cli.arguments import parse_config, resume_command
from grape.config.train import TrainConfig, check_train_config


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, train, and say where the adapter is."""
    config = parse_config(TrainConfig, "train", argv)
    check_train_config(config)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from grape.trainer.loop import train  # torch and transformers: seconds that --help and wrong flags need not take

    try:
        adapter_dir = train(config)
    except KeyboardInterrupt:
        print(f"\nContinue with:\n  {resume_command('train', argv)}")
        raise
    print(f"Adapter: {adapter_dir} (and {config.adapter_tmp_dir / config.effective_run_name})")
    return 0
