"""``grape constraints`` finds its subcommands and helps with their names."""

from __future__ import annotations

import pytest

from grape.cli.constraints import SUBCOMMANDS
from grape.cli.main import EXIT_USAGE, main


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_of_every_subcommand(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["constraints", name, "--help"]) == 0
    assert f"grape constraints {name}" in capsys.readouterr().out


def test_without_a_subcommand_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["constraints"]) == EXIT_USAGE
    shown = capsys.readouterr().out
    assert all(name in shown and summary in shown for name, (_, summary) in SUBCOMMANDS.items())


def test_a_wrong_name_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["constraints", "propsoe"]) == EXIT_USAGE
    assert "Did you mean 'propose'?" in capsys.readouterr().err


def test_a_wrong_flag_is_a_usage_error() -> None:
    assert main(["constraints", "propose", "--tsak", "x"]) == EXIT_USAGE
