"""``grape assets simpler``: ManiSkill's downloader against a real server, whose archives are made of the test assets.

ManiSkill's own table says where archives come from: the tests change that, and do not fetch its published archives.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from grape.cli.main import EXIT_ERROR, main
from grape.envs.simpler.assets import BRIDGE, ROBOT, check_assets
from grape.envs.simpler.tasks import BRIDGE_TASKS
from tests.conftest import SIMPLER_ASSETS

ARCHIVES = {
    "bridge_v2_real2sim": (BRIDGE, "bridge.zip", BRIDGE.name),
    "widowx250s": (ROBOT, "robot.zip", "WidowX-0.2.0"),
}
"""ManiSkill's name -> folder, archive, and the archive's only folder: the robot's has another name, as on GitHub."""
pytestmark = pytest.mark.usefixtures("simpler")


@dataclass
class Server:
    """What is served, and what has been asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    breaks_off: set[str] = field(default_factory=set)
    """Sent by half, as where a connection is lost."""
    sent: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    if not SIMPLER_ASSETS.is_dir():
        pytest.skip("SIMPLER's assets (../shared/simpler_assets) are not beside this checkout")
    folder, made = tmp_path_factory.mktemp("archives"), {}
    for source, name, top in ARCHIVES.values():
        with zipfile.ZipFile(folder / name, "w") as archive:
            for path in sorted((SIMPLER_ASSETS / "data" / source).rglob("*")):
                archive.write(path, Path(top) / path.relative_to(SIMPLER_ASSETS / "data" / source))
        made[name] = (folder / name).read_bytes()
    return made


@pytest.fixture
def server(archives: dict[str, bytes]) -> Iterator[Server]:
    state = Server(files=dict(archives))

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.files[self.path[1:]])))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            name = self.path[1:]
            state.sent.append(name)
            data = state.files[name]
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data[: len(data) // 2] if name in state.breaks_off else data)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield state
        running.shutdown()


@pytest.fixture
def root(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty asset folder, for which ManiSkill's table names the server."""
    import mani_skill
    from mani_skill.utils.download_asset import DATA_SOURCES

    monkeypatch.setattr(mani_skill, "ASSET_DIR", tmp_path / "assets" / "data")
    for uid, (_, name, _) in ARCHIVES.items():
        checksum = hashlib.sha256(server.files[name]).hexdigest() if DATA_SOURCES[uid].checksum else None
        source = replace(DATA_SOURCES[uid], url=f"{server.url}/{name}", checksum=checksum)
        monkeypatch.setitem(DATA_SOURCES, uid, source)
    return tmp_path / "assets" / "data"


def files_below(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_it_says_what_it_fetches_checks_it_and_fetches_nothing_twice(server, root, capsys):
    assert main(["assets", "simpler"]) == 0
    shown = capsys.readouterr()
    for folder, name, _ in ARCHIVES.values():
        assert f"{len(server.files[name]) / 1e6:.1f} MB from {server.url}/{name} to {root / folder}" in shown.err
    assert f"every file that its tasks need, checked one by one, in {root}" in shown.out
    for task in BRIDGE_TASKS:
        check_assets(root, task)
    assert files_below(root) == files_below(SIMPLER_ASSETS / "data"), "something is left over or behind"
    assert server.sent == ["bridge.zip", "robot.zip"]
    assert main(["assets", "simpler"]) == 0
    assert server.sent == ["bridge.zip", "robot.zip"]


def test_a_download_that_breaks_off_leaves_nothing_half_and_is_continued(server, root, capsys):
    server.breaks_off.add("robot.zip")
    assert main(["assets", "simpler"]) == EXIT_ERROR
    shown = capsys.readouterr().err
    assert "retrieval incomplete" in shown and "what arrived whole is kept" in shown
    assert files_below(root) == {f for f in files_below(SIMPLER_ASSETS / "data") if f.startswith(BRIDGE.as_posix())}
    server.breaks_off.clear()
    assert main(["assets", "simpler"]) == 0
    assert server.sent == ["bridge.zip", "robot.zip", "robot.zip"]


def test_what_is_missing_is_completed_and_the_user_s_own_files_stay(server, root):
    assert main(["assets", "simpler"]) == 0
    (root / BRIDGE / "custom/models/my_cup").mkdir()
    own = root / BRIDGE / "custom/models/my_cup/collision.obj"
    own.write_text("mine")
    (root / BRIDGE / "stages/bridge_table_1_v1.glb").write_bytes(b"")  # as a full disk leaves it
    assert main(["assets", "simpler"]) == 0
    assert server.sent == ["bridge.zip", "robot.zip", "bridge.zip"]
    check_assets(root, BRIDGE_TASKS[0])
    assert own.read_text() == "mine"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda files: files.update({"bridge.zip": files["bridge.zip"] + b"x"}), "SHA-256"),
        (lambda files: files.update({"robot.zip": files["robot.zip"][:-100]}), "not a zip file"),
        (lambda files: files.update({"robot.zip": files["bridge.zip"]}), "lacks robots/widowx/wx250s.urdf"),
    ],
    ids=["another checksum", "cut short at its source", "another archive"],
)
def test_an_archive_that_is_not_what_it_should_be_is_refused(server, root, capsys, damage, said):
    damage(server.files)
    assert main(["assets", "simpler"]) == EXIT_ERROR
    assert said in capsys.readouterr().err
    assert not files_below(root / ROBOT)


def test_without_a_network_it_says_so_and_what_to_do(server, root, capsys, monkeypatch):
    from mani_skill.utils.download_asset import DATA_SOURCES

    with socket.socket() as unused:  # a port at which nobody listens
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/bridge.zip"
        monkeypatch.setitem(DATA_SOURCES, "bridge_v2_real2sim", replace(DATA_SOURCES["bridge_v2_real2sim"], url=url))
        assert main(["assets", "simpler"]) == EXIT_ERROR
    shown = capsys.readouterr().err
    assert "Connection refused" in shown and "Without a network copy that folder" in shown and "MS_ASSET_DIR" in shown
    assert files_below(root) == set()


def test_a_simulator_without_downloads_says_so(capsys):
    assert main(["assets", "libero"]) == 0
    assert "nothing to download" in capsys.readouterr().out
    assert main(["assets", "simplr"]) == EXIT_ERROR
    assert "Did you mean 'simpler'" in capsys.readouterr().err
