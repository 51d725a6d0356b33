"""Fixtures around the tiny policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grape.files import CACHE_VARIABLE
from grape.models import OpenVLAPolicy, save_policy
from tests.models.tiny_policy import INSTRUCTIONS, make_policy


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def policy() -> OpenVLAPolicy:
    return make_policy()


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (len(INSTRUCTIONS), 28, 28, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path, policy: OpenVLAPolicy) -> Path:
    save_policy(policy, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"
