"""Schemas of config nodes that name a class or function by `_target_`.

Our own targets and torch's usual optimizers have a dataclass here, so that a typo is answered without importing torch.
For any other target the schema is read off its signature: a new objective, source or schedule is one file and one yaml.

What a config from the user's own command line names is imported as it is. A config read from a file that somebody could
have sent goes through `check_targets` first.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from binventory.config import schema
from binventory.config.suggest import did_you_mean
from binventory.errors import ConfigError, InputError

KNOWN: dict[str, type] = {
    "binventory.objectives.classification.Classification": schema.ClassificationConfig,
    "binventory.data.sources.bucket.BucketSource": schema.PlainReaderConfig,
    "binventory.data.sources.imagefolder.ImageFolderSource": schema.PlainReaderConfig,
    "binventory.data.sources.table.TableSource": schema.PlainReaderConfig,
    "binventory.data.sources.synthetic.SyntheticSource": schema.SyntheticReaderConfig,
    "torch.optim.SGD": schema.SGDConfig,
    "torch.optim.AdamW": schema.AdamWConfig,
    "binventory.models.schedules.constant": schema.ConstantScheduleConfig,
    "binventory.models.schedules.step": schema.StepScheduleConfig,
    "binventory.models.schedules.cosine": schema.CosineScheduleConfig,
    "binventory.tracking.wandb_logger.make_wandb_logger": schema.WandbConfig,
    "pytorch_lightning.loggers.TensorBoardLogger": schema.TensorBoardConfig,
}

# Given by binventory itself when a target is called, so never part of a config.
PROVIDED = {
    "data.reader": {"location", "file_list", "limit", "s3", "data_dir"},
    "objective": {"counts"},
    "optimizer": {"params"},
    "scheduler": {"optimizer", "steps_per_epoch", "max_epochs"},
    "logger": {"save_dir"},
}

# Names of one's own that a config from a file may hold too: whole ones, or prefixes that end in a dot; comma-separated.
ALLOW_VARIABLE = "BINVENTORY_ALLOW_TARGETS"

# What else such a config may name: a public class defined in one of these modules, or below where a dot ends the name.
_MODULES = (
    "binventory.data.sources.",
    "binventory.objectives.",
    "binventory.models.schedules",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "pytorch_lightning.loggers",
)
_OF_FUNCTIONS = "binventory.models.schedules"
_DOTTED_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)
_TASK = re.compile(r"(binventory\.tasks\.[a-z]\w*):run", re.ASCII)


def targets_of(plain_config: Mapping[str, Any]) -> set[str]:
    """Return every `_target_` in plain config values, at any depth."""
    return {target for _, target in _targets(plain_config) if isinstance(target, str)}


def check_targets(plain_config: Mapping[str, Any], where: str) -> None:
    """Refuse a config from a file that names anything but what belongs in a config.

    All names are judged before a module is imported. Allowed are binventory's own targets, public classes of
    `binventory.data.sources.*`, `binventory.objectives.*`, `torch.optim`, `torch.optim.lr_scheduler` and
    `pytorch_lightning.loggers`, schedules of `binventory.models.schedules`, and what BINVENTORY_ALLOW_TARGETS lists.

    Args:
        plain_config: plain values, as read from the file.
        where: the file, for the error.

    Raises:
        InputError: names the file, the key, the target and the variable.
    """
    found = [pair for pair in _targets(plain_config) if not (isinstance(pair[1], str) and _is_named(pair[1]))]
    for dotted, target in found:
        if not (isinstance(target, str) and _is_in_modules(target)):
            raise _not_allowed(where, dotted, target)
    for dotted, target in found:
        if not _is_defined_there(target):
            raise _not_allowed(where, dotted, target)


def check_overrides(
    overrides: Sequence[str], where: str, *, of_hydra: Sequence[str] = (), is_own: bool = False
) -> None:
    """Refuse overrides from a file, such as those of a run folder, that could do more than set a value.

    Args:
        overrides: Hydra overrides.
        where: the file, for the error.
        of_hydra: keys of Hydra's own node that the file may set, or prefixes of them that end in a dot.
        is_own: whether this user wrote the file: then it may name variables of the environment.

    Raises:
        InputError: one reaches into Hydra's own node (callbacks, launchers and search paths are code), would be
            resolved from the environment, or names a target that `check_targets` refuses; names file and override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except (HydraException, RecursionError) as error:
            raise InputError(f"{where}: {text[:80]!r}: not an override; give the command again without it") from error
        key = override.key_or_group
        is_hydras = re.split(r"[./]", key)[0] == "hydra" and not any(
            key == name or (name.endswith(".") and key.startswith(name)) for name in of_hydra
        )
        if is_hydras or override.package is not None or ("${" in text and not is_own):
            raise InputError(
                f"{where}: {text[:80]!r}: not taken from a file; give it on the command line if it is yours"
            )
        *parents, name = key.split(".")
        node = {name: override.value()}
        for parent in reversed(parents):
            node = {parent: node}
        check_targets(node, where)


def check_task(task: str, where: str) -> None:
    """Refuse a task from a file unless it is `binventory.tasks.NAME:run` or BINVENTORY_ALLOW_TARGETS lists it.

    Raises:
        InputError: names the file, the task and the variable.
    """
    if is_allowed(dotted_task(task)):
        return
    match = _TASK.fullmatch(task)
    if match is None or importlib.util.find_spec(match[1]) is None:
        raise _not_allowed(where, "task", task, dotted_task(task))


def dotted_task(task: str) -> str:
    """Return the name under which `package.module:function` stands in BINVENTORY_ALLOW_TARGETS."""
    return task.replace(":", ".")


def is_allowed(target: str) -> bool:
    """Whether BINVENTORY_ALLOW_TARGETS lists a target."""
    return any(
        target.startswith(entry) if entry.endswith(".") else target == entry
        for entry in (part.strip() for part in os.environ.get(ALLOW_VARIABLE, "").split(","))
        if entry.strip(".")
    )


def _is_named(target: str) -> bool:
    return target in KNOWN or is_allowed(target)


def _is_in_modules(target: str) -> bool:
    if _DOTTED_NAME.fullmatch(target) is None:
        return False
    module = target.rpartition(".")[0]
    return any(module.startswith(entry) if entry.endswith(".") else module == entry for entry in _MODULES)


def _is_defined_there(target: str) -> bool:
    """Whether a module defines the class itself: what it imports, such as `os`, is an attribute of it too."""
    module_name, _, attribute = target.rpartition(".")
    try:
        found = vars(importlib.import_module(module_name)).get(attribute)
    except ImportError:
        return False
    if not (inspect.isclass(found) or (module_name == _OF_FUNCTIONS and inspect.isfunction(found))):
        return False
    return found.__module__ == module_name or found.__module__.startswith(f"{module_name}.")


def _not_allowed(where: str, dotted: str, target: Any, entry: str | None = None) -> InputError:
    return InputError(
        f"{where}: {dotted}={target!r}: this file may not name it; if you trust the file and this is code of yours,"
        f" set {ALLOW_VARIABLE}={entry or target} in the environment"
    )


def _targets(plain: Any) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every `_target_`; not recursive, for a file can be nested at will."""
    waiting = [("", plain)]
    while waiting:
        dotted, node = waiting.pop()
        if isinstance(node, Mapping):
            if "_target_" in node:
                yield f"{dotted}_target_", node["_target_"]
            waiting.extend((f"{dotted}{key}.", child) for key, child in node.items())
        elif isinstance(node, list | tuple):
            waiting.extend((f"{dotted}{place}.", child) for place, child in enumerate(node))


def target_schema(dotted: str, target: str) -> type:
    """Return the dataclass that a node with this `_target_` must fit.

    Raises:
        ConfigError: the target can't be imported.
    """
    if target in KNOWN:
        return KNOWN[target]
    return _from_signature(dotted, target)


def import_target(dotted: str, target: str) -> Any:
    """Import the object that `target` names.

    Raises:
        ConfigError: no such module or attribute.
    """
    module_name, _, attribute = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        hint = did_you_mean(target, KNOWN)
        raise ConfigError(f"{dotted}._target_={target}: cannot import {module_name!r} ({error}){hint}") from error
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, vars(module))
        raise ConfigError(f"{dotted}._target_={target}: {module_name} has no {attribute}{hint}")
    found = getattr(module, attribute)
    if not callable(found):
        raise ConfigError(f"{dotted}._target_={target}: is not a class or function")
    return found


def _from_signature(dotted: str, target: str) -> type:
    found = import_target(dotted, target)
    provided = PROVIDED[dotted if dotted in PROVIDED else dotted.split(".", maxsplit=1)[0]]
    try:
        hints = typing.get_type_hints(found.__init__ if inspect.isclass(found) else found)
    except (NameError, TypeError):
        hints = {}
    fields: list[tuple[str, Any, Any]] = [("_target_", str, dataclasses.field(default=target))]
    fields.append(("_partial_", bool, dataclasses.field(default=False)))
    try:
        parameters = inspect.signature(found).parameters
    except ValueError as error:
        raise ConfigError(
            f"{dotted}._target_={target}: its options cannot be told ({error}); wrap it in a function"
        ) from error
    for name, parameter in parameters.items():
        if name in provided or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = parameter.default
        if default is inspect.Parameter.empty:
            fields.append((name, _usable(hints.get(name, Any)), dataclasses.field(default=MISSING)))
        elif default is None or isinstance(default, bool | int | float | str):
            kind = _usable(hints.get(name, Any))
            fields.append((name, kind if default is not None else Any, dataclasses.field(default=default)))
        else:  # a tuple, a callable, …: any value may stand here
            fields.append((name, Any, dataclasses.field(default=None)))
    return dataclasses.make_dataclass(f"{found.__name__}Config", fields)


def _usable(hint: Any) -> Any:
    """Return the hint where OmegaConf can check it, else Any."""
    if isinstance(hint, types.UnionType):
        hint = typing.Union[tuple(typing.get_args(hint))]  # noqa: UP007  built from values
    probe = dataclasses.make_dataclass("Probe", [("value", hint, dataclasses.field(default=MISSING))])
    try:
        OmegaConf.structured(probe)
    except OmegaConfBaseException:
        return Any
    return hint
