"""Damaged golden files end in an error that names them; no golden data is needed for that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from grape.cli.main import EXIT_ERROR, main
from grape.models import new_policy, save_policy

SHAPES, PICTURES = "x_state_dict_shapes.json", "openvla_preprocessing.npz"
PATCHES = "vision_backbone.featurizer.patch_embed.proj.weight"


def refusal(directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["parity", str(directory)]) == EXIT_ERROR
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    ["{ no json", "[]", "7", "{}", '{"a": 3}', '{"a": ["x"]}', json.dumps({PATCHES: [3]})],
)
def test_shapes(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / SHAPES).write_text(content)
    assert SHAPES in refusal(tmp_path, capsys)


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path / 'missing'} does not exist" in refusal(tmp_path / "missing", capsys)
    (tmp_path / "a_file").touch()
    assert f"{tmp_path / 'a_file'} is a file" in refusal(tmp_path / "a_file", capsys)


def test_bytes_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / SHAPES).write_bytes(b"\xff\xfe\xfa")
    assert SHAPES in refusal(tmp_path, capsys)


def picture(dtype: type = np.uint8, channels: int = 3) -> np.ndarray:
    return np.zeros((16, 16, channels), dtype)


def write_pictures(path: Path, **changes: np.ndarray) -> None:
    pictures = {"agentview": picture(), "policy_image": picture(), "center_cropped": picture(), **changes}
    np.savez_compressed(path, **{f"0.{name}": value for name, value in pictures.items()})


def test_whole_pictures_are_compared(tmp_path: Path) -> None:
    write_pictures(tmp_path / PICTURES)
    assert main(["parity", str(tmp_path)]) == 0  # black pictures stay black


@pytest.mark.parametrize("length", [0, 10, 100, 400, -10])
def test_truncated_pictures(length: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / PICTURES)
    whole = (tmp_path / PICTURES).read_bytes()
    (tmp_path / PICTURES).write_bytes(whole[:length])
    assert PICTURES in refusal(tmp_path, capsys)


def test_another_kind_of_array_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / PICTURES, "wb") as file:
        np.save(file, picture())
    assert PICTURES in refusal(tmp_path, capsys)


def test_a_changed_byte_in_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / PICTURES)
    data = bytearray((tmp_path / PICTURES).read_bytes())
    start = data.index(b"0.agentview.npy") + 60
    data[start : start + 8] = b"\xff" * 8
    (tmp_path / PICTURES).write_bytes(data)
    assert PICTURES in refusal(tmp_path, capsys)


@pytest.mark.parametrize(
    "change",
    [
        {"policy_image": picture(np.float32)},
        {"agentview": picture(channels=4)},
        {"center_cropped": np.zeros(3, np.uint8)},
        {"policy_image": np.array([{}], dtype=object)},
    ],
)
def test_arrays_that_are_no_pictures(
    change: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / PICTURES, **change)
    assert PICTURES in refusal(tmp_path, capsys)


def test_a_missing_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / PICTURES, **{"0.agentview": picture()})
    shown = refusal(tmp_path, capsys)
    assert PICTURES in shown and "0.center_cropped, 0.policy_image" in shown


@pytest.mark.parametrize("content", ["{}", "[]", "[3]", '[{"index": 0}]'])
def test_cases(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    save_policy(new_policy("test"), tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "golden.json").write_text(content)
    save_file({"x": np.zeros(1)}, tmp_path / "checkpoint" / "golden.safetensors")
    assert "golden" in refusal(tmp_path, capsys)
