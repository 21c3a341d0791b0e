"""Which weights belong to the last stage of a timm backbone, and how much of a network is trained."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any, cast

import torch
from torch import nn

from binventory.errors import ConfigError
from binventory.models.timm_alone import timm

NUM_NAMED = 12  # modules in the line about what is trained


def last_stage(network: nn.Module) -> set[str]:
    """Return the names of the parameters of the last stage and of all that comes after it.

    timm gives two things to go by: the modules where features end (`feature_info`), with their stride, and an order of
    groups of parameters (`group_matcher`). Where its coarse groups are stages, the last one that ends in a feature is
    the last stage. Where groups are single blocks or layers, it is the blocks that have the stride of the last feature;
    where all have one stride, as in a ViT, the last block. What comes after it is what the network calls later.

    Raises:
        ConfigError: there is no telling what the stages of this network are.
    """
    groups, are_stages = _groups(network)
    first = _first_group(network, groups, are_stages=are_stages)
    if first is None or first == min(groups.values()):
        raise ConfigError(
            f"model.finetune=last_stage: timm does not tell where the last stage of {name_of(network)} begins;"
            " take model.finetune=head or full"
        )
    called = _first_calls(network)
    start = min((called[name] for name in _modules_inside(network, groups, first) if name in called), default=0)

    def comes_after(key: str, group: int) -> bool:
        module = key.rpartition(".")[0]
        if not module or module not in called or group == first:
            return group >= first
        return called[module] >= start

    return {key for key, group in groups.items() if comes_after(key, group)}


def describe_trained(network: nn.Module) -> str:
    """Return what of a network is trained, by the largest modules that are trained whole, and its share of weights."""
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in network.parameters())
    names = _trained_modules(network, "")
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    share = f"{trained / 1e6:.1f} of {total / 1e6:.1f} M weights ({100 * trained / total:.0f} %)"
    return f"trained: {', '.join(names[:NUM_NAMED])}{more}: {share}"


def name_of(network: nn.Module) -> str:
    """Return timm's name of a network."""
    facts: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    return str(facts.get("architecture") or type(network).__name__)


def _groups(network: nn.Module) -> tuple[dict[str, int], bool]:
    """Return the number of each parameter's group, in the order of parameters, and whether groups are stages.

    Where timm has no groups they are the modules in which features end, and what was made between them.
    """
    timm_model = cast(Any, network)
    keys = [key for key, _ in network.named_parameters()]
    if not hasattr(timm_model, "group_matcher"):
        return _groups_by_feature(network, keys), True

    def grouped(*, coarse: bool) -> dict[str, int]:
        matcher = timm_model.group_matcher(coarse=coarse)
        numbers: dict[str, int] = timm.models.group_parameters(network, matcher, reverse=True)
        return {key: numbers[key] for key in keys}

    fine = grouped(coarse=False)
    try:
        coarse = grouped(coarse=True)
    except AssertionError:  # some networks have fine ones only
        return fine, False
    return coarse, coarse != fine


def _groups_by_feature(network: nn.Module, keys: list[str]) -> dict[str, int]:
    modules = [info["module"] for info in getattr(network, "feature_info", None) or ()]
    groups, last = {}, -1
    for key in keys:
        found = [place for place, module in enumerate(modules) if key.startswith(f"{module}.")]
        last = found[-1] if found else last
        groups[key] = 2 * last if found else 2 * last + 1
    return groups


def _first_group(network: nn.Module, groups: dict[str, int], *, are_stages: bool) -> int | None:
    """Return the first group of the last stage; None: there is no telling."""
    features = [(info["module"], info.get("reduction")) for info in getattr(network, "feature_info", None) or ()]
    if not features:
        return None
    names = [name for name, _ in features]
    is_one_stride = len(features) > 1 and features[-1][1] == features[-2][1]
    if names[-1] not in dict(network.named_modules()):
        return _last_of_blocks(network, groups, len(features), are_units=are_stages or is_one_stride)

    def inside(name: str) -> set[int]:
        return {group for key, group in groups.items() if key.startswith(f"{name}.")}

    are_alike = len({re.sub(r"\d+", "#", name) for name in names[-2:]}) == 1
    if inside(names[-1]) and are_alike and (are_stages or is_one_stride):
        return min(inside(names[-1]))
    keys = list(groups)
    of_head = {groups[key] for key in keys if key.startswith(_head_prefixes(network))}
    for boundary, end in reversed(list(itertools.pairwise(names))):
        if boundary == end:  # features of several strides from one module
            return None
        between = keys[_num_until(network, keys, boundary) : _num_until(network, keys, end)]
        # A boundary without weights may lie in the middle of a block, which then counts whole.
        if found := {groups[key] for key in between} - inside(boundary) - of_head:
            return max(found) if are_stages else min(found)
    return None


def _last_of_blocks(network: nn.Module, groups: dict[str, int], num_features: int, *, are_units: bool) -> int | None:
    """Return the last group that holds a numbered block: where groups are what features end with, it is the last stage.

    For networks whose features are named after modules that are not there.
    """
    heads = _head_prefixes(network)
    found = {group for key, group in groups.items() if re.search(r"\.\d+\.", key) and not key.startswith(heads)}
    return max(found) if found and (are_units or len(found) == num_features) else None


def _num_until(network: nn.Module, keys: list[str], module: str) -> int:
    """Return how many parameters were made up to the end of a module."""
    inside = [place for place, key in enumerate(keys) if key.startswith(f"{module}.")]
    if inside:
        return inside[-1] + 1
    count = 0
    for name, child in network.named_modules():
        if name == module:
            break
        count += sum(1 for _ in child.parameters(recurse=False))
    return count


def _modules_inside(network: nn.Module, groups: dict[str, int], group: int) -> list[str]:
    """Return the modules of which all parameters are in a group."""
    return [
        name
        for name, module in network.named_modules(remove_duplicate=False)
        if name and (own := {groups.get(f"{name}.{key}") for key, _ in module.named_parameters()}) == {group} and own
    ]


def _first_calls(network: nn.Module) -> dict[str, int]:
    """Return when each module is called first, in a pass over tensors without data; empty: it takes real ones."""
    skeleton = copy.deepcopy(network).to("meta").eval()
    called: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(*_: Any) -> None:
            called.setdefault(name, len(called))

        return hook

    for name, module in skeleton.named_modules():
        module.register_forward_pre_hook(note(name))
    size = (getattr(network, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    try:
        with torch.no_grad():
            skeleton(torch.empty(2, *size, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return {}
    return called


def _trained_modules(module: nn.Module, prefix: str) -> list[str]:
    names = []
    for name, child in module.named_children():
        flags = {parameter.requires_grad for parameter in child.parameters()}
        if flags == {True}:
            names.append(prefix + name)
        elif True in flags:
            names += _trained_modules(child, f"{prefix}{name}.")
    return names + [prefix + name for name, value in module.named_parameters(recurse=False) if value.requires_grad]


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules of a timm model that end in its outputs; none: it has no classifier."""
    facts: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    classifier = facts.get("classifier", "fc") or ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _head_prefixes(network: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name in head_names(network))
