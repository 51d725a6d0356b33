"""The hostile corpus, one answer of each kind, through HTTP and the whole command (all: ../test_hostile.py)."""

from __future__ import annotations

import pytest

from grape.cli.main import main
from tests.constraints.corpus import NAMES, Case, cases, labels
from tests.constraints.proposals.chat_server import ChatServer, completion
from tests.constraints.proposals.conftest import Shell

ONE_OF_EACH = list({case["kind"]: case for case in cases("answers")}.values())


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=labels(ONE_OF_EACH))
def test_a_hostile_answer_ends_in_a_message(shell: Shell, server: ChatServer, case: Case) -> None:
    server.play(completion(case["text"]))
    shell.capsys.readouterr()
    flags = ["--task", "put the bowl on the plate", "--image", "scene.png", "--keypoint_names", *NAMES]
    where = ["--base_url", server.base_url, "--model", "by-hand", "--out", str(shell.out)]
    assert main(["constraints", "propose", *flags, *where]) == 1
    complaint = shell.capsys.readouterr().err
    assert "Traceback" not in complaint and len(complaint) < 8000
    assert complaint.replace("\n", " ").isprintable()  # nothing for the terminal to obey
    assert not shell.out.exists()
    assert len(server.requests) == (2 if case["text"].strip() else 1)
