"""Schemas of config nodes that name a class or function by `_target_`.

Our own targets and torch's usual optimizers have a dataclass here, so that a typo is answered without importing torch.
For any other target the schema is read off its signature: a new objective, source or schedule is one file and one yaml.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
import typing
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from binventory.config import schema
from binventory.config.suggest import did_you_mean
from binventory.errors import ConfigError

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
