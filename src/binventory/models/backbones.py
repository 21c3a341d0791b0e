"""timm backbones by name: random, from timm's hub, or from a local file, with a new head."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from binventory.config.cross_checks import is_weight_file
from binventory.data.sources.workers import aside
from binventory.errors import ConfigError
from binventory.models.stages import head_names, last_stage, name_of
from binventory.models.timm_alone import check_model_name, check_weights_tag, timm
from binventory.models.weight_files import NUMPY_FILE, load_numpy_weights, load_weights, read_weights

HUB_TIMEOUT_S = 10.0
# A name can come from a bundle: it must not import or fetch whatever a stranger likes, as timm's hf-hub:… would.
_MODEL_NAME = re.compile(r"\w+(\.\w+)?", re.ASCII)
_MODEL_MODULE = re.compile(r"binventory\.models(\.[a-z]\w*)+", re.ASCII)


def make_backbone(name: str, weights: str, num_outputs: int) -> nn.Module:
    """Build a timm model with `num_outputs` outputs.

    Args:
        name: timm model name, e.g. resnet18; `binventory.models.FILE:NAME` imports the file that registers it first.
        weights: `none`; a file, see `binventory.models.weight_files`; or a pretrained tag of timm's hub.
        num_outputs: width of the new head.

    Raises:
        ConfigError: no such model or tag; the hub can't be reached.
        InputError: the file can't be read or belongs to another network.
    """
    name = _registered(name)
    if _MODEL_NAME.fullmatch(name) is None:
        raise ConfigError(
            f"model.name={name[:80]!r}: not a name that timm gives; take one of its models, e.g. resnet18"
        )
    check_model_name(name)
    if "." in name:
        check_weights_tag(name.partition(".")[0], name)
    if weights == "none":
        return _create(name, num_outputs=num_outputs)
    if is_weight_file(weights):
        network = _create(name, num_outputs=num_outputs)
        if weights.lower().endswith(NUMPY_FILE):
            load_numpy_weights(network, Path(weights), name=name)
            return network
        load_weights(network, read_weights(Path(weights)), source=f"model.weights={weights}", name=name)
        return network
    return _from_hub(name, weights, num_outputs)


def _registered(name: str) -> str:
    """Import the module of a `module:name`, which registers the network with timm, and return the name."""
    module, colon, registered = name.partition(":")
    if not colon:
        return name
    if _MODEL_MODULE.fullmatch(module) is None:
        raise ConfigError(
            f"model.name={name[:80]!r}: put the module into binventory.models and name it binventory.models.FILE:NAME"
        )
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"model.name={name}: cannot import {module} ({error})") from error
    return registered


def _create(name: str, *, num_outputs: int, pretrained: bool = False) -> nn.Module:
    return timm.create_model(name, pretrained=pretrained, num_classes=num_outputs)


def _from_hub(name: str, weights: str, num_outputs: int) -> nn.Module:
    check_weights_tag(name, weights)
    _reach_hub(weights)
    try:
        return _create(weights, num_outputs=num_outputs, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(_unreachable(weights, error)) from error


def _reach_hub(weights: str) -> None:
    """Ask the hub once, unless the weights are here already: its own client tries for most of a minute."""
    from huggingface_hub import constants, get_session, hf_hub_url, try_to_load_from_cache

    repository: str = cast(Any, timm.get_pretrained_cfg(weights)).hf_hub_id
    cached = [try_to_load_from_cache(repository, file) for file in ("model.safetensors", "pytorch_model.bin")]
    if any(isinstance(path, str) for path in cached):
        return
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(_unreachable(weights, "HF_HUB_OFFLINE is set"))
    try:
        url = hf_hub_url(repository, "model.safetensors")
        # its own timeout is one between two bytes
        aside(lambda: get_session().head(url, timeout=HUB_TIMEOUT_S), 2 * HUB_TIMEOUT_S)
    except Exception as error:
        raise ConfigError(_unreachable(weights, error)) from error


def _unreachable(weights: str, reason: object) -> str:
    return (
        f"model.weights={weights}: the model hub can't be reached and the weights are not cached"
        f" ({' '.join(str(reason).split())[:160]});"
        " set model.weights=PATH of a .safetensors or .pth file, or model.weights=none"
    )


def freeze(network: nn.Module, finetune: str) -> None:
    """Take gradients away from what is not trained.

    Args:
        network: a timm model.
        finetune: full, head (the classifier alone) or last_stage (the last stage of the backbone and all after it).

    Raises:
        ConfigError: the network has no such part.
    """
    if finetune == "full":
        return
    heads = tuple(f"{prefix}." for prefix in head_names(network))
    if not any(key.startswith(heads) for key, _ in network.named_parameters()):
        raise ConfigError(
            f"model.finetune={finetune}: {name_of(network)} has no classifier that timm knows; take model.finetune=full"
        )
    trained = last_stage(network) if finetune == "last_stage" else set()
    for key, parameter in network.named_parameters():
        parameter.requires_grad = key in trained or key.startswith(heads)


def check_finetune(name: str, finetune: str) -> None:
    """Raise ConfigError when a network has no such part."""
    if finetune == "full":
        return
    try:
        with torch.device("meta"):  # no memory, no random numbers
            network = make_backbone(name, "none", 2)
    except (RuntimeError, NotImplementedError):  # one of the user's own may need values to be built
        network = make_backbone(name, "none", 2)
    freeze(network, finetune)


def frozen_to_eval(module: nn.Module) -> None:
    """Put parts without a trained parameter into eval mode: frozen BatchNorm keeps its statistics, dropout is off.

    A layer that has statistics but no parameters, BatchNorm without an affine part, goes with the module that it is in:
    where anything of that is frozen, it is.
    """
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    is_frozen = any(not parameter.requires_grad for parameter in parameters)
    for child in module.children():
        if is_frozen and not list(child.parameters()) and list(child.buffers()):
            child.eval()
        frozen_to_eval(child)
