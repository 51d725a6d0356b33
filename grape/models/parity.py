"""Comparison with recorded outputs of the reference OpenVLA code (golden folders).

Every check gives one number, its largest difference, and the tolerance it must not exceed. Counted things (ids,
names) have tolerance 0. Where a number may differ at all, the constant beside it says why.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grape.errors import CheckpointError
from grape.models.architecture import read_architecture
from grape.models.checkpoint import build_on_meta, load_policy
from grape.models.policy import OpenVLAPolicy
from grape.models.preprocessing import center_crop, prepare_image

CASES_FILE, VALUES_FILE, PICTURES_FILE = "golden.json", "golden.safetensors", "openvla_preprocessing.npz"
SHAPES_SUFFIX = "_state_dict_shapes.json"

FLOAT32_TOLERANCE = 1e-4
"""Kernels of other versions add up in another order; measured 3e-6."""
ACTION_TOLERANCE = 1e-12
"""Unnormalised actions are computed in float64 from equal ids; only the order of additions may differ."""
CROP_TOLERANCE_LEVELS = 1.0
"""Interpolation in float32 rounds some exact halves to the other side; measured: 1 level in 1 of 20,000 values."""
PICTURE_TOLERANCE_LEVELS = 2.0
"""Mean over a picture; TensorFlow's JPEG decoder uses a faster, less exact transform (docs/parity.md)."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison."""

    name: str
    largest_difference: float
    tolerance: float
    unit: str
    num_compared: int

    @property
    def passed(self) -> bool:
        """Whether the difference is within tolerance; NaN is not."""
        return self.largest_difference <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """All fields and the verdict."""
        return {**dataclasses.asdict(self), "passed": self.passed}


def run_checks(directory: Path, *, attn_implementation: str = "sdpa", device: str = "cpu") -> list[Check]:
    """Run every check whose golden files are in the folder or one level below it.

    Raises:
        CheckpointError: There is no such folder, it holds nothing to compare with, or golden files are damaged.
    """
    checks: list[Check] = []
    if not directory.is_dir():
        raise CheckpointError(f"{directory} {'is a file' if directory.exists() else 'does not exist'}; wanted a folder")
    folders = [directory, *sorted(path for path in directory.iterdir() if path.is_dir())]
    for folder in folders:
        if (folder / CASES_FILE).is_file():
            checks += check_checkpoint(folder, attn_implementation=attn_implementation, device=device)
        if (folder / PICTURES_FILE).is_file():
            checks += check_pictures(folder / PICTURES_FILE)
        for path in sorted(folder.glob(f"*{SHAPES_SUFFIX}")):
            checks.append(check_names(path))
    if not checks:
        raise CheckpointError(
            f"{directory} holds nothing to compare with; wanted {CASES_FILE} beside a checkpoint, {PICTURES_FILE} or "
            f"*{SHAPES_SUFFIX}"
        )
    return checks


def check_checkpoint(folder: Path, *, attn_implementation: str, device: str) -> list[Check]:
    """Compare tokens, pixels, features, logits, log-probabilities and actions, case by case."""
    policy = load_policy(folder, device=device, dtype="float32", attn_implementation=attn_implementation)
    cases, values = _read_cases(folder)
    scales = {
        "prompt_ids": (0.0, "ids"),
        "pixel_values": (0.0, "normalised pixel"),
        "patch_features": (FLOAT32_TOLERANCE, "feature"),
        "projected_patches": (FLOAT32_TOLERANCE, "embedding"),
        "generated_ids": (0.0, "ids"),
        "actions": (ACTION_TOLERANCE, "robot's units"),
        "encoded_action_ids": (0.0, "ids"),
        "token_log_probs": (FLOAT32_TOLERANCE, "nats"),
        "logits": (FLOAT32_TOLERANCE, "logit"),
    }
    differences: dict[str, list[float]] = {name: [] for name in scales}
    for case in cases:
        golden = {name: values[f"{case['index']}.{name}"] for name in _VALUES}
        for compare in (_compare_inputs, _compare_decoding, _compare_teacher_forced):
            for name, difference in compare(policy, case, golden):
                differences[name].append(difference)
    return [
        # np.max, unlike max, lets a NaN through to the verdict.
        Check(
            name=f"{folder.name}/{name}",
            largest_difference=float(np.max(found)),
            tolerance=scales[name][0],
            unit=scales[name][1],
            num_compared=len(found),
        )
        for name, found in differences.items()
    ]


_PICTURES = ("agentview", "policy_image", "center_cropped")
_VALUES = (
    "image", "pixel_values", "prompt_ids", "generated_ids", "action", "tf_normalized_action", "tf_input_ids",
    "tf_token_logps", "tf_action_logits", "patch_features_mean", "projected_first4",
)  # fmt: skip


def _read_cases(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        cases = json.loads((folder / CASES_FILE).read_text())
        values = load_file(folder / VALUES_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"golden files in {folder} cannot be read: {error}") from error
    keys = {"index", "instruction", "unnorm_key"}
    if not isinstance(cases, list) or not all(isinstance(case, dict) and keys <= case.keys() for case in cases):
        raise CheckpointError(
            f"{folder / CASES_FILE} is damaged; wanted a list of cases with {', '.join(sorted(keys))}"
        )
    missing = [
        f"{case['index']}.{name}" for case in cases for name in _VALUES if f"{case['index']}.{name}" not in values
    ]
    if missing or not cases:
        raise CheckpointError(f"{folder / VALUES_FILE} lacks {', '.join(missing[:3]) or 'all cases'}")
    return cases, values


Golden = dict[str, Tensor]
Differences = Iterator[tuple[str, float]]


def _compare_inputs(policy: OpenVLAPolicy, case: dict[str, Any], golden: Golden) -> Differences:
    yield "prompt_ids", _count_unequal(policy.prompt_ids(case["instruction"]), golden["prompt_ids"].tolist())
    pixels = policy.image_transform([golden["image"].numpy()])
    yield "pixel_values", _largest(pixels[0], golden["pixel_values"])
    with torch.inference_mode():
        features = policy.network.vision_backbone(pixels.to(policy.device))
        projected = policy.network.projector(features)
    yield "patch_features", _largest(features[0].mean(dim=0), golden["patch_features_mean"])
    yield "projected_patches", _largest(projected[0, : len(golden["projected_first4"])], golden["projected_first4"])


def _compare_decoding(policy: OpenVLAPolicy, case: dict[str, Any], golden: Golden) -> Differences:
    # The goldens decode over the whole vocabulary.
    batch = policy.act(
        [golden["image"].numpy()], [case["instruction"]], unnorm_key=case["unnorm_key"], restrict_to_actions=False
    )
    tokens = batch.tokens[0].tolist()
    generated = policy.prompts.action_prefix_ids(case["instruction"]) + tokens
    yield "generated_ids", _count_unequal(generated, golden["generated_ids"].tolist())
    actions = policy.decode_actions(batch.tokens[0], case["unnorm_key"])
    yield "actions", _largest(torch.from_numpy(actions), golden["action"])


def _compare_teacher_forced(policy: OpenVLAPolicy, case: dict[str, Any], golden: Golden) -> Differences:
    tokens = golden["tf_input_ids"][-8:-1]  # 7 action tokens, then the end token
    encoded = policy.action_tokenizer.encode(golden["tf_normalized_action"].numpy())
    yield "encoded_action_ids", _count_unequal(encoded.tolist(), tokens.tolist())
    observation = [golden["image"].numpy()], [case["instruction"]], tokens[None]
    with torch.inference_mode():
        logits = policy.action_logits(policy.forward_inputs(*observation), include_end_token=True)[0]
        log_probs = policy.log_prob(*observation, include_end_token=True)[0]
    yield "token_log_probs", _largest(log_probs, golden["tf_token_logps"])
    yield "logits", _largest(logits[:, -golden["tf_action_logits"].shape[1] :], golden["tf_action_logits"])


def check_pictures(path: Path) -> list[Check]:
    """Compare policy images (mean, in grey levels) and centre crops (largest, in grey levels).

    Raises:
        CheckpointError: The file is damaged, or a picture is missing or no picture.
    """
    pictures = _read_pictures(path)
    numbers = sorted({name.split(".")[0] for name in pictures})
    prepared, cropped = [], []
    for number in numbers:
        policy_image = pictures[f"{number}.policy_image"]
        size = policy_image.shape[0]
        upright = np.ascontiguousarray(pictures[f"{number}.agentview"][::-1, ::-1])  # LIBERO's picture is upside down
        prepared.append(_levels(prepare_image(upright, size), policy_image, np.mean))
        cropped.append(_levels(center_crop(policy_image, size), pictures[f"{number}.center_cropped"], np.max))
    return [
        Check(
            name=name,
            largest_difference=float(np.max(found)),
            tolerance=tolerance,
            unit=unit,
            num_compared=len(found),
        )
        for name, found, tolerance, unit in (
            ("policy_image", prepared, PICTURE_TOLERANCE_LEVELS, "grey levels, mean over a picture"),
            ("center_crop", cropped, CROP_TOLERANCE_LEVELS, "grey levels"),
        )
    ]


def _read_pictures(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            pictures = dict(arrays)
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    wanted = {f"{name.split('.')[0]}.{kind}" for name in pictures for kind in _PICTURES}
    wrong = sorted(name for name in wanted if name not in pictures or not _is_picture(pictures[name]))
    if wrong or not pictures:
        raise CheckpointError(
            f"{path}: {', '.join(wrong[:3]) or 'every picture'} is missing, or no uint8 (height, width, 3)"
        )
    return pictures


def _is_picture(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3


def check_names(path: Path) -> Check:
    """Compare all tensor names and shapes of a published checkpoint with the network's, in both directions.

    Raises:
        CheckpointError: The file is damaged, or its shapes are no OpenVLA's.
    """
    try:
        published = {name: tuple(map(operator.index, shape)) for name, shape in json.loads(path.read_text()).items()}
        architecture = read_architecture({}, published)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; wanted an object of tensor names and shapes") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    network = build_on_meta(architecture)
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    unequal = set(published.items()) ^ set(ours.items())
    return Check(
        name=f"{path.name.removesuffix(SHAPES_SUFFIX)}/names_and_shapes",
        largest_difference=float(len({name for name, _ in unequal})),
        tolerance=0.0,
        unit="tensors missing, left over or of another shape",
        num_compared=len(published),
    )


def _largest(ours: Tensor, golden: Tensor) -> float:
    if ours.shape != golden.shape:
        return float("nan")
    return float((ours.cpu().double() - golden.double()).abs().max())


def _levels(ours: np.ndarray, golden: np.ndarray, reduce: Callable[..., Any]) -> float:
    return float(reduce(np.abs(ours.astype(int) - golden.astype(int))))


def _count_unequal(ours: list[int], golden: list[int]) -> float:
    return float(sum(a != b for a, b in zip(ours, golden, strict=False)) + abs(len(ours) - len(golden)))
