"""``grape sft``: supervised fine-tuning from an RLDS data set, or training of new weights."""

from __future__ import annotations

import logging

from grape.cli.arguments import parse_config, resume_command
from grape.config.sft import SFTConfig, check_sft_config


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, train, and say where the result is."""
    config = parse_config(SFTConfig, "sft", argv)
    check_sft_config(config)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from grape.trainer.sft import fine_tune  # torch and transformers: seconds that --help and wrong flags need not take

    try:
        result = fine_tune(config)
    except KeyboardInterrupt:
        print(f"\nContinue with:\n  {resume_command('sft', argv)}")
        raise
    print(f"{'Adapter' if config.trains_adapter else 'Checkpoint'}: {result}")
    return 0
