"""Fetching SIMPLER's assets with ManiSkill's downloader, so that a file that is in place is always a whole one.

On its own that downloader removes what is there, then unpacks into place: stopped in between, it leaves half a folder
that looks like a download. Here each archive is unpacked into a folder beside, checked there, and moved file by file.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from urllib.error import HTTPError

from grape.envs.simpler.assets import asset_root, bridge_files, missing_files, name_files, robot_files
from grape.envs.simpler.suites import SIMPLER_SUITES
from grape.errors import MissingDependencyError
from grape.optional import require

SILENCE_S = 60.0
"""A server that says nothing for so long is given up."""


def _all_bridge_files(root: Path) -> list[Path]:
    files = [file for tasks in SIMPLER_SUITES.values() for task in tasks for file in bridge_files(root, task)]
    return list(dict.fromkeys(files))


SOURCES: dict[str, Callable[[Path], list[Path]]] = {
    "bridge_v2_real2sim": _all_bridge_files,
    "widowx250s": robot_files,
}
"""ManiSkill's name of each download -> the files that have to come of it."""


def download_assets() -> Path:
    """Fetch the archives of which a file is missing, saying before what, how much and where to.

    Returns:
        The folder that now has all of them.

    Raises:
        MissingDependencyError: ManiSkill is not installed, a download failed, or an archive lacks a file.
    """
    root = asset_root()
    wanted = [uid for uid, files in SOURCES.items() if missing_files(files(root))]
    if not wanted:
        return root
    downloader = require("mani_skill.utils.download_asset", extra="simpler")
    urls = {uid: downloader.DATA_SOURCES[uid].url for uid in wanted}
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)  # ManiSkill's downloader sets none, and would wait for ever
    try:
        root.mkdir(parents=True, exist_ok=True)
        for uid, url in urls.items():
            target = root / downloader.DATA_SOURCES[uid].target_path
            print(f"{uid}: {_size(url)} from {url} to {target}", file=sys.stderr)
        for uid in wanted:
            _fetch(downloader, uid, root)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MissingDependencyError(
            f"SIMPLER's assets could not be downloaded to {root} ({error}); what arrived whole is kept, and "
            "`grape assets simpler` fetches the rest. Without a network copy that folder from a machine that has it, "
            "or name another one with MS_ASSET_DIR"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return root


def _size(url: str) -> str:
    """What the server says of the archive's size.

    Raises:
        OSError: It cannot be reached.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
            length = answer.headers.get("Content-Length")
    except HTTPError:  # not every server answers such a question; the download itself will tell
        length = None
    return f"{int(length) / 1e6:.1f} MB" if length else "an unknown size"


def _fetch(downloader: ModuleType, uid: str, root: Path) -> None:
    """Download one archive and put its files in place; files of the user's own beside them stay.

    Raises:
        OSError: The download broke off or has another checksum than ManiSkill's record, or a file cannot be written.
        BadZipFile, zlib.error: The archive is damaged.
        MissingDependencyError: The archive is whole and lacks a file.
    """
    with tempfile.TemporaryDirectory(dir=root, prefix=".incoming-") as name:
        incoming = Path(name)
        source = dataclasses.replace(downloader.DATA_SOURCES[uid], output_dir=name)
        try:
            downloader.download(source)
        finally:
            urllib.request.urlcleanup()  # the archive, where the downloader did not come to removing it
        if missing := missing_files(SOURCES[uid](incoming)):
            raise MissingDependencyError(
                f"{source.url} is no archive of {uid} for this version: it lacks {name_files(incoming, missing)}; "
                "nothing of it was put in place"
            )
        for path in sorted(incoming.rglob("*")):
            if path.is_file():
                target = root / path.relative_to(incoming)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
