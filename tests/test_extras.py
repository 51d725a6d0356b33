"""Each extra of pyproject.toml brings what error messages promise of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import grape

PACKAGE = Path(grape.__file__).parent
DISTRIBUTIONS = {
    "tensorflow": "tensorflow-cpu",
    "tensorflow_datasets": "tensorflow-datasets",
    "mani_skill": "mani-skill",
    "imageio_ffmpeg": "imageio",  # its extra ffmpeg
    "yaml": "peft",  # which requires it
}
"""Module to the distribution that brings it, where the names differ."""


def promises() -> set[tuple[str, str]]:
    """(top-level module, extra) of every call of ``require`` with a constant module."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                [extra] = [keyword.value for keyword in node.keywords if keyword.arg == "extra"]
                if isinstance(node.args[0], ast.Constant) and isinstance(extra, ast.Constant):
                    found.add((str(node.args[0].value).split(".")[0], str(extra.value)))
    return found


@pytest.fixture(scope="module")
def extras(repository: Path) -> dict[str, set[str]]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    table = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {name: {re.split(r"[\[<>=]", one)[0] for one in wanted} for name, wanted in table.items()}


def test_what_is_required_is_in_its_extra(extras: dict[str, set[str]]) -> None:
    assert ("matplotlib", "plot") in promises() and len(promises()) > 3
    empty = {
        (module, extra)
        for module, extra in promises()
        if DISTRIBUTIONS.get(module, module) not in extras.get(extra, set())
    }
    assert empty == set()


def test_all_brings_every_extra_for_users(repository: Path, extras: dict[str, set[str]]) -> None:
    text = (repository / "pyproject.toml").read_text()
    [inside] = re.findall(r'all = \["grape-vla\[([^\]]+)\]"\]', text)
    assert set(inside.split(",")) == extras.keys() - {"all", "dev", "flash-attn"}
