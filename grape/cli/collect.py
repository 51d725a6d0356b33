"""``grape collect``: roll a policy out and store every step."""

from __future__ import annotations

import shlex
import sys
from collections import Counter

from grape.cli.arguments import parse_config
from grape.cli.interruption import resumable
from grape.config.collect import OFFICIAL_SPLIT, CollectConfig
from grape.trajectory import EpisodeInfo


def main(argv: list[str] | None = None) -> int:
    config = parse_config(CollectConfig, "collect", argv)
    with resumable("collect", argv, config.run_dir):
        episodes = collect(config)
    print(summarize(config, episodes))
    return 0


def collect(config: CollectConfig) -> list[EpisodeInfo]:
    """Run what the folder does not hold yet and return the headers of all its episodes."""
    from grape.rollouts import session

    if config.init_split == OFFICIAL_SPLIT:
        print("warning: collecting on the official test states: do not test what is trained on these", file=sys.stderr)
    return session.run(config, "collect", details=("policy", "num_workers", "device", "simpler_python"))


def summarize(config: CollectConfig, episodes: list[EpisodeInfo]) -> str:
    """What was collected, in words, and the next step."""
    count = Counter(episode.status for episode in episodes)
    lines = [
        f"{len(episodes)} episodes in {config.run_dir}: "
        f"{count['success']} succeeded, {count['failure']} failed, {count['crashed']} crashed"
    ]
    if count["crashed"]:
        lines.append("crashed episodes are never scored or paired; the same command with --resume runs them again")
    lines.append("next: " + shlex.join(["grape", "score", str(config.run_dir)]))
    return "\n".join(lines)
