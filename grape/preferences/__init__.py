"""From scored episodes to preference pairs: pure data in, pure data out."""

from grape.preferences.consistency import check_same_policy, check_same_simulator
from grape.preferences.pairing import pair_episodes
from grape.preferences.records import Leftover, PairingReport, PlannedPair, ScoredEpisode

__all__ = [
    "Leftover",
    "PairingReport",
    "PlannedPair",
    "ScoredEpisode",
    "check_same_policy",
    "check_same_simulator",
    "pair_episodes",
]
