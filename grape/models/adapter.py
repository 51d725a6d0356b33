"""LoRA adapters: adding, loading, saving, switching off and merging, all in peft's own format."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from grape.config.inputs import CROP_KEY
from grape.errors import CheckpointError, ConfigError
from grape.models.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAINING_FILE, read_json
from grape.models.openvla import is_unused, lora_target_pattern
from grape.models.quantization import refuse_quantized, silence_bitsandbytes

if TYPE_CHECKING:
    from grape.models.policy import OpenVLAPolicy

MAX_DEFAULT_ALPHA = 32  # GRAPE's alpha = min(rank, 32)
_LOG = logging.getLogger(__name__)


def add_adapter(
    policy: OpenVLAPolicy, lora_rank: int, alpha: float | None, dropout: float, targets: str, init: str
) -> nn.Module:
    """Wrap the network in a ``PeftModel`` with a fresh, trainable adapter. See ``OpenVLAPolicy.with_adapter``."""
    peft = _import_peft()
    from grape.models.lora import use_light_lora

    if isinstance(policy.model, peft.PeftModel):
        raise ConfigError("the policy already has an adapter; merge it first (OpenVLAPolicy.merge_adapter)")
    if lora_rank < 1:
        raise ConfigError(f"lora_rank is {lora_rank}; wanted at least 1")
    config = peft.LoraConfig(
        r=lora_rank,
        lora_alpha=min(lora_rank, MAX_DEFAULT_ALPHA) if alpha is None else alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=lora_target_pattern(policy.config, targets),
        init_lora_weights=init,  # type: ignore[arg-type]
        base_model_name_or_path=policy.name,
    )
    use_light_lora(config)
    return peft.get_peft_model(policy.network, config)  # type: ignore[arg-type]


def take_over_training_record(policy: OpenVLAPolicy, directory: Path) -> None:
    """Note the crop that an adapter was trained for, and warn where it was trained on other weights.

    Adapters of the original code say neither.

    Raises:
        CheckpointError: Its training.json is damaged.
    """
    path = directory / TRAINING_FILE
    record = read_json(path) if path.is_file() else {}
    if CROP_KEY in record:
        policy.source_config[CROP_KEY] = record[CROP_KEY]
    trained_on = record.get("base_checkpoint_hash")
    if trained_on and trained_on != policy.checkpoint_hash:
        _LOG.warning(
            "adapter %s was trained on weights with hash %s, but %s has %s: together they are a policy that nobody "
            "trained. Pass the checkpoint that it was trained on.",
            directory,
            str(trained_on)[:12],
            policy.name,
            policy.checkpoint_hash[:12],
        )


def load_adapter(policy: OpenVLAPolicy, directory: Path) -> nn.Module:
    """Wrap the network with a stored adapter, ours or the original code's.

    Raises:
        CheckpointError: The folder is no adapter, or its weights do not fit the network.
    """
    from safetensors import SafetensorError, safe_open

    peft = _import_peft()
    from grape.models.lora import use_light_lora

    weights = directory / ADAPTER_WEIGHTS
    for path in (directory / ADAPTER_CONFIG, weights):
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; wanted an adapter folder as peft writes it")
    try:
        with safe_open(weights, framework="pt") as file:
            stored = set(file.keys())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on missing tensors: an error below
            config = peft.PeftConfig.from_pretrained(directory)  # type: ignore[arg-type]
            use_light_lora(config)
            model = peft.PeftModel.from_pretrained(policy.network, directory, config=config)  # type: ignore[arg-type]
    except SafetensorError as error:
        raise CheckpointError(f"{weights} cannot be read (truncated?): {error}") from error
    except (RuntimeError, ValueError, json.JSONDecodeError) as error:
        first_lines = " ".join(str(error).split("\n")[:2])  # of one for each tensor
        raise CheckpointError(f"adapter {directory} does not fit the network: {first_lines}") from error
    expected = {name.replace(".default.", ".") for name in model.state_dict() if ".lora_" in name}
    if stored != expected:
        odd = sorted(stored ^ expected)
        raise CheckpointError(
            f"adapter {directory} does not fit the network: {len(stored - expected)} of its tensors have no place, "
            f"{len(expected - stored)} places have no tensor (first: {odd[0]}); was it made for another model?"
        )
    return model


def save_adapter(policy: OpenVLAPolicy, directory: Path) -> None:
    """Write the adapter in peft's format; the original code loads it, too."""
    # The output layer is never adapted, so there is nothing to look for in the base model's hub repository.
    policy.model.save_pretrained(directory, save_embedding_layers=False)  # type: ignore[operator]
    shutil.copymode(directory / ADAPTER_CONFIG, directory / ADAPTER_WEIGHTS)  # not safetensors' own, private one


def merge(policy: OpenVLAPolicy) -> None:
    """Fold the adapter into the base weights, in place.

    Raises:
        ConfigError: There is no adapter, or the base is quantised.
        CheckpointError: The adapter holds a value that is not finite.
    """
    peft = _import_peft()

    if not isinstance(policy.model, peft.PeftModel):
        raise ConfigError("there is no adapter to merge")
    refuse_quantized(policy.network)
    try:
        policy.model = policy.model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # peft found NaN
        raise CheckpointError(f"the adapter cannot be merged: {error}") from error
    for name, parameter in policy.network.named_parameters():  # peft froze the base
        parameter.requires_grad_(not is_unused(name, policy.config))


def adapter_off(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """A context in which the base weights act alone."""
    peft = _import_peft()

    return model.disable_adapter() if isinstance(model, peft.PeftModel) else contextlib.nullcontext()  # type: ignore[return-value]


def _import_peft() -> Any:
    silence_bitsandbytes()  # which peft imports wherever it is installed
    import peft

    return peft
