"""``grape constraints propose`` against a real HTTP server, through the real client: what is sent, what comes of it."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grape.cli.main import main
from grape.constraints import load_constraints
from tests.constraints.proposals import answers_by_hand as answers
from tests.constraints.proposals.chat_server import ChatServer, Reply, completion, streamed
from tests.constraints.proposals.conftest import PIXELS, Shell


def sent_picture(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_a_good_answer_becomes_a_file_that_scoring_reads(shell: Shell, server: ChatServer) -> None:
    server.play(completion(answers.GOOD))
    prices = ["--price_per_million_input", "2", "--price_per_million_output", "10"]
    code, shown, _ = shell.run(*prices)
    assert code == 0 and len(server.requests) == 1
    constraints = load_constraints(shell.out)
    assert constraints.source == "by-hand" and constraints.instruction == answers.TASK
    assert constraints.keypoint_names == answers.NAMES
    assert [stage.name for stage in constraints.stages] == ["grasp the bowl", "place it"]
    assert constraints.stages[0].thresholds == {"collision": 2, "path": 0.6}
    assert "1200 in, 300 out" in shown
    assert "cost 0.0054" in shown  # 1200 x 2 + 300 x 10, per million
    assert "then: name it <suite>_<task_id>.json, grape score RUN" in shown  # under another name it is not found
    left = {path.name for path in shell.out.parent.iterdir()}
    assert left == {"bowl.json", "bowl.png", "bowl.prompt.txt", "bowl.proposal.json"}


def test_what_arrives_is_what_is_saved(shell: Shell, server: ChatServer) -> None:
    server.play(completion(answers.GOOD))
    shell.run("--temperature", "0.25", "--seed", "7")
    [request] = server.requests
    assert request.path == "/v1/chat/completions" and request.body["model"] == "by-hand"
    assert request.body["temperature"] == 0.25 and request.body["seed"] == 7 and "stream" not in request.body
    saved = shell.out.with_suffix(".prompt.txt").read_text()
    assert all(text in saved for text in request.texts) and answers.TASK in request.texts[1]
    [url] = request.pictures
    picture = np.asarray(sent_picture(url).convert("RGB")).astype(int)
    assert np.array_equal(picture, np.asarray(Image.open(shell.out.with_suffix(".png")).convert("RGB")))
    plain = Image.open("scene.png").resize(picture.shape[1::-1], Image.Resampling.BICUBIC)
    changed = np.abs(picture - np.asarray(plain).astype(int)).max(axis=2) > 40
    scale = picture.shape[1] / 320
    assert all(changed[int(y * scale), int(x * scale)] for x, y in PIXELS)  # a marker on each keypoint
    assert changed.mean() < 0.2
    assert described(request.texts[1]) == [[round(x * scale), round(y * scale)] for x, y in PIXELS]


def described(text: str) -> list[list[int]]:
    """Pixels of the keypoints in the prompt's JSON object."""
    return [one["pixel"] for one in json.loads(text[text.index("{") : text.rindex("}") + 1])["keypoints"]]


def test_without_a_known_place_nothing_is_drawn(shell: Shell, server: ChatServer, tmp_path) -> None:
    server.play(completion(answers.GOOD))
    flags = ["--task", answers.TASK, "--image", "scene.png", "--keypoint_names", *answers.NAMES, "--model", "by-hand"]
    assert main(["constraints", "propose", *flags, "--base_url", server.base_url]) == 0
    [url] = server.requests[0].pictures
    picture = sent_picture(url)
    plain = Image.open("scene.png").resize(picture.size, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(picture), np.asarray(plain))
    assert described(server.requests[0].texts[1]) == [None, None, None]
    assert load_constraints(tmp_path / "runs/constraints/put_the_bowl_on_the_plate.json").source == "by-hand"
    assert list((tmp_path / "home-cache" / "proposals").glob("*.json"))


@pytest.mark.parametrize("text", [answers.GOOD, answers.FENCED], ids=["bare", "fenced"])
@pytest.mark.parametrize("make", [completion, streamed, lambda text: streamed(text, newline="\r\n")])
def test_streamed_or_not_fenced_or_not_the_result_is_the_same(shell: Shell, server: ChatServer, text, make) -> None:
    server.play(make(text))
    code, shown, _ = shell.run("--stream")  # a server may ignore that it was asked to stream
    assert code == 0 and "1200 in, 300 out" in shown
    assert server.requests[0].body["stream"] is True
    assert server.requests[0].body["stream_options"] == {"include_usage": True}
    assert [stage.name for stage in load_constraints(shell.out).stages] == ["grasp the bowl", "place it"]


@pytest.mark.parametrize("bad", [answers.UNKNOWN_KEYPOINT, answers.NOT_JSON, answers.CODE, "{", "[]"])
def test_an_answer_that_cannot_be_used_is_sent_back_once_with_its_problems(
    shell: Shell, server: ChatServer, bad
) -> None:
    server.play(completion(bad), completion(answers.GOOD))
    code, shown, _ = shell.run()
    assert code == 0 and "had to be repaired" in shown and "2400 in, 600 out" in shown
    first, second = server.requests
    assert second.body["messages"][:2] == first.body["messages"]
    assert second.body["messages"][2] == {"role": "assistant", "content": bad}
    assert [message["role"] for message in second.body["messages"]] == ["system", "user", "assistant", "user"]
    if bad == answers.UNKNOWN_KEYPOINT:
        assert "'bowel'" in second.texts[-1] and "'bowl'" in second.texts[-1]
    assert load_constraints(shell.out).source == "by-hand"


def test_after_two_unusable_answers_it_says_where_they_are(shell: Shell, server: ChatServer) -> None:
    server.play(completion(answers.NOT_JSON), completion(answers.UNKNOWN_KEYPOINT))
    code, shown, complaint = shell.run()
    assert code == 1 and len(server.requests) == 2 and "bowel" in complaint and "2400 in, 600 out" in shown
    entries = sorted(shell.cache.iterdir())
    assert len(entries) == 2 and all(str(path) in complaint for path in entries)
    texts = {json.loads(path.read_text())["answer"]["text"] for path in entries}
    assert texts == {answers.NOT_JSON, answers.UNKNOWN_KEYPOINT}
    assert not shell.out.exists()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (completion(None, refusal="I will not."), "the model refused: I will not."),
        (completion("", finish_reason="content_filter"), "content filter"),
        (completion(None), "without text"),
        (completion("   "), "without text"),
        (completion('{"stages": [', finish_reason="length"), "token limit"),
        (Reply(pieces=[b'{"choices": []}']), "no choice"),
        (Reply(pieces=[b'{"choices": null, "usage": []}']), "no choice"),
        (Reply(pieces=[b'{"choices": [7]}']), "no choice"),
        (Reply(pieces=[b"[]"]), "sent list, wanted a chat completion"),
        (Reply(pieces=[b'{"error": {"message": "overloaded"}}']), "overloaded"),
        (Reply(pieces=[b'data: {"error": {"message": "overloaded"}}\n\n']), "overloaded"),
    ],
)
def test_no_answer_is_a_clear_failure(shell: Shell, server: ChatServer, reply: Reply, said: str) -> None:
    server.play(reply)
    code, _, complaint = shell.run()
    assert code == 1 and said in complaint and "Traceback" not in complaint
    assert len(server.requests) == 1 and not shell.out.exists()


def test_a_file_that_is_there_is_kept_unless_told_otherwise(shell: Shell, server: ChatServer) -> None:
    server.play(completion(answers.GOOD))
    shell.out.parent.mkdir()
    shell.out.write_text("mine")
    code, _, complaint = shell.run()
    assert code == 1 and "--overwrite" in complaint and shell.out.read_text() == "mine" and server.requests == []
    assert shell.run("--overwrite")[0] == 0 and load_constraints(shell.out).source == "by-hand"


def on_one_line(complaint: str) -> str:
    """Without the frame that the command line puts around what is wrong with a setting."""
    return " ".join(complaint.split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--suite"),
        (["--suite", "libero_goal"], "--task_id"),
        (["--task", "x", "--image", "scene.png"], "--keypoint_names"),
        (["--task", "x", "--image", "keypoints.json", "--keypoint_names", "a"], "as a picture"),
        (["--task", "x", "--image", "scene.png", "--keypoint_names", "a", "a"], "different names"),
        (["--task", "x", "--image", "scene.png", "--keypoint_names", 'a"b'], "letters, digits"),
        (["--task", "x", "--image", "scene.png", "--keypoint_names", "up"], "a word of the language"),
        (["--task", "x", "--image", "scene.png", "--keypoint_names", "a__b"], "letters, digits"),
        (["--task", "x" * 501, "--image", "scene.png", "--keypoint_names", "a"], "at most 500"),
        (["--task", "x\ny", "--image", "scene.png", "--keypoint_names", "a"], "on one line"),
        (["--task", "x", "--image", "scene.png", "--keypoints", "scene.png"], "no list of keypoints"),
        (["--task", "x", "--image", "scene.png", "--keypoints", "huge.json"], "no list of keypoints"),
        (["--task", "x", "--image", "small.png", "--keypoints", "keypoints.json"], "another picture"),
        (["--suite", "libero_goal", "--task_id", "3", "--keypoint_names", "a"], "the simulator's"),
        (["--suite", "libero_gaol", "--task_id", "3"], "libero_goal"),
    ],
)
def test_a_question_that_cannot_be_asked(shell: Shell, server: ChatServer, flags, said) -> None:
    Image.new("RGB", (64, 48)).save("small.png")
    Path("huge.json").write_text(f'[{{"name": "a", "pixel": [1{"0" * 400}, 0]}}]')
    shell.capsys.readouterr()
    server.play(completion(answers.GOOD))
    assert main(["constraints", "propose", "--model", "by-hand", "--base_url", server.base_url, *flags]) != 0
    assert said in on_one_line(shell.capsys.readouterr().err) and server.requests == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--offline", "--refresh"], "choose one"),
        (["--timeout_s", "0"], "timeout_s=0"),
        (["--timeout_s", "nan"], "timeout_s=nan"),
        (["--max_retries", "-1"], "max_retries=-1"),
        (["--price_per_million_input", "1"], "both prices"),
        (["--model", "bddl"], "would pass for"),
        (["--out", "x.yaml"], ".json"),
        (["--base_url", "localhost:8000"], "http://"),
        (["--base_url", "http://user:secret-pw@host/v1"], "OPENAI_API_KEY"),
        (["--base_url", "http://[::1/v1"], "http://"),
        (["--base_url", "http://host:port/v1"], "http://"),
        (["--base_url", "http://.../v1"], "http://"),
        (["--base_url", "http://host\n/v1"], "http://"),
        (["--out", "scene.json"], "scene.png would be replaced"),
        (["--out", "keypoints.json", "--overwrite"], "keypoints.json would be replaced"),
    ],
)
def test_a_setting_that_cannot_be_honoured(shell: Shell, server: ChatServer, flags, said) -> None:
    server.play(completion(answers.GOOD))
    code, _, complaint = shell.run(*flags)
    assert code != 0 and said in on_one_line(complaint) and server.requests == [] and "secret-pw" not in complaint
