"""A loopback endpoint, a picture with keypoints, and the command that asks about them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grape.cli.main import main
from tests.constraints.proposals.answers_by_hand import NAMES, TASK
from tests.constraints.proposals.chat_server import ChatServer, serving

PIXELS = ((60.0, 120.0), (200.0, 150.0), (280.0, 60.0))


@pytest.fixture(scope="session")
def server() -> Iterator[ChatServer]:
    pytest.importorskip("openai", reason='proposing is not tested: pip install "grape-vla[vlm]"')
    with serving() as chat:
        yield chat


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the surroundings decides who is asked, and nothing is left outside the test's folder."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_LOG", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("GRAPE_CACHE", str(tmp_path / "home-cache"))
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class Shell:
    """Runs ``grape constraints propose`` about the same picture and looks at what it leaves."""

    server: ChatServer
    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def out(self) -> Path:
        return self.folder / "result" / "bowl.json"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def run(self, *flags: str, ask: bool = True) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        endpoint = ["--base_url", self.server.base_url] if ask else []
        where = ["--out", str(self.out), "--cache_dir", str(self.cache)]
        question = ["--task", TASK, "--image", "scene.png", "--keypoints", "keypoints.json", "--model", "by-hand"]
        self.capsys.readouterr()
        code = main(["constraints", "propose", *question, *endpoint, *where, *flags])
        return code, *self.capsys.readouterr()

    def files(self) -> dict[str, bytes]:
        """Everything under the test's folder."""
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def shell(server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    picture = np.tile(np.linspace(80, 120, 320).astype(np.uint8)[None, :, None], (240, 1, 3))
    Image.fromarray(picture).save(tmp_path / "scene.png")
    rows = [
        {"number": i, "name": name, "mask": name, "pixel": pixel, "position_m": [0.1 * i, 0.2, 0.9]}
        for i, (name, pixel) in enumerate(zip(NAMES, PIXELS, strict=True), start=1)
    ]
    (tmp_path / "keypoints.json").write_text(json.dumps({"settings": {}, "keypoints": rows}))
    return Shell(server, tmp_path, capsys)
