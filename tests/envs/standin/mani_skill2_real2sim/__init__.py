"""Stands in for ManiSkill2_real2sim; see README.md."""

from pathlib import Path

ASSET_DIR = Path(__file__).parent / "data"
