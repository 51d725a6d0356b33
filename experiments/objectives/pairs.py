"""The pairs that ``grape pair`` makes from a run under each objective, and those between two successes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from grape.cli.pair import ScoredRun
from grape.cli.score import score_runs
from grape.config.pair import PairingSettings
from grape.config.score import OBJECTIVES, PRESETS, GuidedCostConfig, ScoreConfig, guided_cost_settings
from grape.preferences import PairingReport, ScoredEpisode, pair_episodes
from grape.rollouts.store import RolloutStore

SUCCESS_VS_SUCCESS = "success_vs_success"
"""Not a strategy of ``grape pair``: best against worst, and so on, among the successes of a state alone."""
PAIRINGS = {
    "best_vs_worst": PairingSettings(),
    "top_2_vs_bottom_2": PairingSettings(strategy="top_m_vs_bottom_m", m=2),
    "success_vs_failure": PairingSettings(strategy="success_vs_failure", max_pairs_per_state=2),
    SUCCESS_VS_SUCCESS: PairingSettings(),
}


def thresholds_alone(objective: str) -> GuidedCostConfig:
    """The default preset with the objective's τ and nothing else of it: how GRAPE (arXiv 2411.19309) does it."""
    return dataclasses.replace(PRESETS["default"], **OBJECTIVES[objective].replaced)


VARIANTS = {objective: guided_cost_settings("default", objective) for objective in OBJECTIVES} | {
    f"{objective}, thresholds alone": thresholds_alone(objective) for objective in ("safety", "efficiency")
}
"""What is compared: name -> settings of the guided cost."""


def score_under(settings: GuidedCostConfig, run: Path) -> ScoredRun:
    """A run scored as by ``grape score``; no file is written."""
    scores = score_runs(ScoreConfig(runs=(run,), guided_cost=settings))
    return ScoredRun(RolloutStore(run), run / "scores", scores)


def make_pairs(episodes: Sequence[ScoredEpisode], pairing: str, settings: PairingSettings) -> PairingReport:
    """What ``grape pair`` makes with these settings; of the successes alone if the pairing is that."""
    if pairing == SUCCESS_VS_SUCCESS:
        episodes = [episode for episode in episodes if episode.success]
    return pair_episodes(episodes, settings)


def join(reports: Sequence[PairingReport]) -> PairingReport:
    """Several reports' pairs as one, numbered anew."""
    pairs = [pair for report in reports for pair in report.pairs]
    named = [dataclasses.replace(pair, pair_id=f"{i:06d}{pair.pair_id[6:]}") for i, pair in enumerate(pairs)]
    return dataclasses.replace(reports[0], pairs=tuple(named), leftovers=())
