"""``grape assets``: the files that a simulator needs and its package does not bring."""

from __future__ import annotations

from grape.cli.arguments import parse_config
from grape.config.assets import AssetsConfig
from grape.envs.suites import SIMULATORS
from grape.errors import ConfigError, did_you_mean


def main(argv: list[str] | None = None) -> int:
    """Download what is missing, check all of it, and say where it is."""
    name = parse_config(AssetsConfig, "assets", argv).simulator
    if name not in SIMULATORS:
        raise ConfigError(f"unknown simulator {name!r}.{did_you_mean(name, SIMULATORS)}")
    download = SIMULATORS[name].download_assets
    if download is None:
        print(f"{name} brings its assets with its package; there is nothing to download")
        return 0
    print(f"{name} has every file that its tasks need, checked one by one, in {download()}")
    return 0
