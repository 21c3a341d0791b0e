"""Weights from a file, as timm's own loader chooses and renames them, without running any code of the file's."""

from __future__ import annotations

import argparse
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from binventory.data.text import printable
from binventory.errors import InputError
from binventory.files import MAX_WEIGHTS_BYTES, open_limited
from binventory.models.finite import find_not_finite
from binventory.models.stages import head_names
from binventory.models.timm_alone import timm

log = logging.getLogger(__name__)

# In timm's order: averaged weights come first. Then names that others use.
ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
# What a network lies in, in checkpoints of ours and of others, where its own names are those of another version.
PREFIXES = ("network.backbone.", "backbone.", "network.", "model.", "net.")
# Counted by torch's BatchNorm since version 0.4.1, and by its averaged models: no weights.
COUNTERS = ("num_batches_tracked", "n_averaged")
NUMPY_FILE = ".npz"

State = dict[str, Tensor]


def read_weights(path: Path) -> State:
    """Read a state dict without running any code from the file; wrappers' prefixes are taken off its names.

    Raises:
        InputError: not a file of tensors.
    """
    found = _read(path)
    name, state = "", found
    tensors = _tensors(found)
    inner = {key: value for key, value in found.items() if isinstance(value, Mapping) and _tensors(value)}
    known = [entry for entry in ENTRIES if entry in inner]
    if known or (not tensors and len(inner) == 1):
        name = known[0] if known else next(iter(inner))
        state = inner[name]
        others = ", ".join(printable(str(key), 60) for key in inner if key != name)
        beside = f", not {others}" if others else ""
        log.info("model.weights=%s: took %s%s", path, printable(name, 60), beside)
    weights = _tensors(timm.models.clean_state_dict({str(key): value for key, value in state.items()}))
    if not weights:
        raise InputError(
            f"model.weights={path}: holds no state dict of tensors; save one with torch.save(model.state_dict())"
        )
    return weights


def _tensors(values: Mapping[Any, Any]) -> State:
    return {str(key): value for key, value in values.items() if isinstance(value, Tensor)}


def _require_file(path: Path) -> None:
    if not path.exists():
        raise InputError(f"model.weights={path}: no such file")
    if not path.is_file():
        raise InputError(f"model.weights={path}: not a file; name the file of weights itself")


def _read(path: Path) -> Mapping[Any, Any]:
    _require_file(path)
    try:
        with open_limited(path, MAX_WEIGHTS_BYTES) as file:
            if path.name.lower().endswith(".safetensors"):
                from safetensors.torch import load_file

                return load_file(path)
            # timm's training script keeps its options beside the weights: a plain holder of values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"model.weights={path}: cannot read this file as weights ({_reason(path, error)})") from error
    return loaded if isinstance(loaded, Mapping) else {}


def _reason(path: Path, error: Exception) -> str:
    """Say in one line why a file cannot be read; torch's own text is for a terminal, and advises to run its code."""
    if isinstance(error, pickle.UnpicklingError):
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except Exception:  # noqa: BLE001  whatever a hostile file provokes
            names = []
        if not names:
            return "it is damaged, or torch.save did not write it; a file of safetensors has to end in .safetensors"
        shown = printable(", ".join(sorted(names)[:5]), 200)
        return (
            f"it holds objects other than tensors: {shown}; save its state dict alone, with torch.save, and name that"
        )
    return printable((str(error) or type(error).__name__).splitlines()[0], 200)


def load_weights(network: nn.Module, state: State, *, source: str, name: str) -> None:
    """Copy weights into everything but the head.

    Args:
        network: a timm model.
        state: what `read_weights` returned.
        source: what messages begin with.
        name: timm's name of the network.

    Raises:
        InputError: they belong to another network, or are not finite.
    """
    own = network.state_dict()
    heads = tuple(f"{prefix}." for prefix in head_names(network))
    body = {key: value for key, value in own.items() if not key.startswith(heads)}
    state = _renamed(network, _without_prefix(state, body, source), source=source, name=name)
    kept = {key: value.to(body[key].dtype) for key, value in state.items() if key in body}
    # Of tensors that are one in the network a file may hold one name only.
    loaded = {own[key].data_ptr() for key in kept}
    missing = [key for key, value in body.items() if key not in kept and value.data_ptr() not in loaded]
    missing = sorted(key for key in missing if not key.endswith(COUNTERS))
    unexpected = sorted(key for key in state if key not in own and not key.startswith(heads))
    unexpected = [key for key in unexpected if not key.endswith(COUNTERS)]
    wrong = [
        f"{key}, {tuple(value.shape)} instead of {tuple(body[key].shape)}"
        for key, value in kept.items()
        if value.shape != body[key].shape
    ]
    if wrong or missing or unexpected:
        kinds = (("missing", missing), ("unknown", unexpected), ("of another shape", wrong))
        said = "; ".join(f"{len(keys)} {kind}, e.g. {printable(keys[0], 100)}" for kind, keys in kinds if keys)
        raise InputError(f"{source}: not weights of {name} ({said}); name the file of this network or another model")
    if not_finite := find_not_finite(kept):
        raise InputError(f"{source}: {not_finite} holds NaN or infinity; the file is damaged")
    network.load_state_dict(kept, strict=False)
    old_head = [f"{key} {tuple(value.shape)}" for key, value in state.items() if key.startswith(heads)]
    ignored = f", its classifier is ignored ({', '.join(old_head[:2])})" if old_head else ""
    log.info("%s: loaded %d tensors, new head%s", source, len(kept), ignored)


def load_numpy_weights(network: nn.Module, path: Path, *, name: str) -> None:
    """Copy the weights of a NumPy archive, as published for ViT and BiT, into everything but the head.

    Args:
        network: a timm model; those that have such files know how to read them.
        path: the archive. Nothing in it is unpickled.
        name: timm's name of the network.

    Raises:
        InputError: it cannot be read, belongs to another network, or is not finite.
    """
    _require_file(path)
    load: Any = getattr(network, "load_pretrained", None)
    if load is None:
        raise InputError(
            f"model.weights={path}: timm reads no {NUMPY_FILE} weights of {name}; name a .safetensors or .pth file"
        )
    heads = tuple(f"{prefix}." for prefix in head_names(network))
    head = {key: value.clone() for key, value in network.state_dict().items() if key.startswith(heads)}
    try:
        with open_limited(path, MAX_WEIGHTS_BYTES):
            load(str(path))
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}".splitlines()[0], 200)
        raise InputError(
            f"model.weights={path}: not weights of {name} ({reason}); name the file of this network"
        ) from error
    network.load_state_dict(head, strict=False)
    if not_finite := find_not_finite(network.state_dict()):
        raise InputError(f"model.weights={path}: {not_finite} holds NaN or infinity; the file is damaged")
    log.info("model.weights=%s: loaded by timm's reader of NumPy archives, new head", path)


def _without_prefix(state: State, body: Mapping[str, Tensor], source: str) -> State:
    """Return the part of a state dict that is the network, under the network's own names where it has them."""
    if not body:
        return state
    probe = next(iter(body))
    prefixes = {"", *(key[: -len(probe)] for key in state if key.endswith(f".{probe}"))}
    matches = Counter({prefix: sum(f"{prefix}{key}" in state for key in body) for prefix in prefixes})
    ((best, number),) = matches.most_common(1)
    if number == 0:  # names of another version: the common prefix, if it is one that is known
        best = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), "")
    elif matches[""] == number:
        best = ""
    elif rivals := sorted(prefix for prefix in prefixes if matches[prefix] == number and prefix != best):
        names = ", ".join(printable(f"{prefix}…", 60) for prefix in sorted((best, *rivals)))
        raise InputError(f"{source}: holds this network more than once ({names}); save the one to take by itself")
    if not best:
        return state
    found = {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}
    beside = f", ignored {len(state) - len(found)} tensors beside it" if len(found) < len(state) else ""
    log.info("%s: took %s…%s", source, printable(best, 60), beside)
    return found


def _renamed(network: nn.Module, state: State, *, source: str, name: str) -> State:
    """Rename and reshape as timm does for this network: published files may have names of an older version."""
    rename = _filter_of(name)
    if rename is None:
        return state
    try:
        try:
            return _tensors(rename(dict(state), network))
        except TypeError:  # some take the state dict alone
            return _tensors(rename(dict(state)))
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}", 200)
        raise InputError(f"{source}: not weights of {name} ({reason}); name the file of this network") from error


def _filter_of(name: str) -> Callable[..., Any] | None:
    """Return the function by which timm makes published weights fit a network.

    It is known only to the function that builds the network, which hands it to `load_pretrained`: built once more
    without data, this one notes it instead of loading.
    """
    builder: Any = timm.models._builder
    found: list[Callable[..., Any] | None] = []

    def note(_network: nn.Module, **options: Any) -> None:
        found.append(options.get("filter_fn"))

    original = builder.load_pretrained
    builder.load_pretrained = note
    try:
        with torch.device("meta"):
            timm.create_model(name, pretrained=True)
    except (RuntimeError, NotImplementedError):  # one of the user's own, which needs values to be built
        return None
    finally:
        builder.load_pretrained = original
    return found[-1] if found else None
