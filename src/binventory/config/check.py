"""Check a composed config against its schema, and its values against each other."""

from __future__ import annotations

import dataclasses
import math
import re
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from binventory.config import schema
from binventory.config.capture import to_plain
from binventory.config.cross_checks import cross_check
from binventory.config.paths import as_path
from binventory.config.secrets import hide_what_is_read
from binventory.config.suggest import did_you_mean
from binventory.config.targets import target_schema
from binventory.errors import ConfigError

SCHEMAS: dict[str, type] = {
    "train": schema.TrainConfig,
    "predict": schema.PredictConfig,
    "evaluate": schema.EvaluateConfig,
    "prepare": schema.PrepareConfig,
    "upload": schema.UploadConfig,
}

# Of each task, the keys that name a file or folder.
PATH_KEYS = {
    task: tuple(name for name, field in schema.declared(cls).items() if field.metadata.get(schema.PATH))
    for task, cls in SCHEMAS.items()
}

ABSENT = object()

# `${if_positive:NUMBER,VALUE}`: VALUE, or null where NUMBER is 0. Registered here and not by an entry point, so that it
# is there wherever a config is resolved: in tests, and in workers that another launcher started.
OmegaConf.register_new_resolver("if_positive", lambda number, value: None if number == 0 else value, replace=True)

# Nodes whose schema hangs on their `_target_`. A task has them or not; null is none of them.
TARGET_NODES = ("data.reader", "objective", "optimizer", "scheduler")


def check_config(task: str, composed: DictConfig) -> DictConfig:
    """Validate a composed config and resolve its interpolations.

    Args:
        task: train, predict, evaluate, prepare or upload: which schema it must fit.
        composed: what Hydra composed, with its `hydra` node.

    Returns:
        The same config as plain, resolved values typed by the schema; `hydra` is left as it was, unresolved.

    Raises:
        ConfigError: names the key, the value and the nearest right name or the allowed values.
    """
    plain = _resolve(composed)
    checked = _fit(SCHEMAS[task], plain)
    for dotted in TARGET_NODES:
        node = OmegaConf.select(checked, dotted, default=ABSENT)
        if node is not ABSENT:
            _fit_target(dotted, node)
    for name, node in (checked.get("logger") or {}).items():
        _fit_target(f"logger.{name}", node)
    cross_check(checked, runs_here=OmegaConf.select(composed, "hydra.launcher.local", default=True))
    OmegaConf.set_struct(checked, True)
    if "hydra" in composed:
        with_hydra = OmegaConf.create({**{str(name): checked._get_node(name) for name in checked}})
        OmegaConf.set_struct(with_hydra, False)
        with_hydra["hydra"] = composed.hydra
        return with_hydra
    return checked


def _resolve(composed: DictConfig) -> dict[str, Any]:
    hide_what_is_read(composed)
    try:
        return to_plain(composed)
    except OmegaConfBaseException as error:
        if variable := re.search(r"Environment variable '(.*)' not found", str(error)):
            raise ConfigError(
                f"{error.full_key}: the environment has no variable {variable[1]}; set it, or write the value"
            ) from error
        raise ConfigError(
            f"{error.full_key}: {_first_line(error)}; name a key that exists or write the value"
        ) from error


def _fit(cls: type, plain: Any, prefix: str = "") -> DictConfig:
    """Merge plain values into a schema: unknown keys, wrong types, missing values and ranges."""
    base = OmegaConf.structured(cls)
    try:
        # Values of a DictConfig would be added to a structured config unseen; those of a plain container are checked.
        merged = OmegaConf.merge(base, _as_declared(cls, plain, prefix))
    except ConfigKeyError as error:
        names = {prefix + name for name in _schema_keys(cls)}
        key = f"{prefix}{error.full_key}"
        raise ConfigError(f"{key}={_value_at(plain, error.full_key)}: no such key{did_you_mean(key, names)}") from error
    except ValidationError as error:
        value = _value_at(plain, error.full_key)
        raise ConfigError(f"{prefix}{error.full_key}={value}: {_first_line(error)}") from error
    assert isinstance(merged, DictConfig)
    if missing := sorted(OmegaConf.missing_keys(merged)):
        raise ConfigError(f"{prefix}{missing[0]}: no value is set; add {prefix}{missing[0]}=…")
    _check_ranges(cls, merged, prefix)
    return merged


def _as_declared(cls: type, plain: Any, prefix: str) -> Any:
    """Return plain values in which each text is what its key takes: a path, or a number.

    A number can be a text where it comes from a variable, and of a union OmegaConf converts nothing.

    Raises:
        ConfigError: an empty path.
    """
    if not isinstance(plain, dict):
        return plain
    given = dict(plain)
    for declared in dataclasses.fields(cls):
        value = given.get(declared.name)
        if isinstance(declared.default_factory, type) and dataclasses.is_dataclass(declared.default_factory):
            given[declared.name] = _as_declared(declared.default_factory, value, f"{prefix}{declared.name}.")
        elif declared.metadata.get(schema.PATH) and value is None and declared.name in given:
            if not str(declared.type).startswith("Optional"):
                raise ConfigError(f"{prefix}{declared.name}=null: needs a path; name a file or folder")
        elif declared.metadata.get(schema.PATH) and isinstance(value, str):
            given[declared.name] = as_path(f"{prefix}{declared.name}", value)
        elif declared.metadata.get(schema.SHARE) and isinstance(value, str):
            with suppress(ValueError):
                given[declared.name] = int(value) if value.strip().isdecimal() else float(value)
    return given


def _fit_target(dotted: str, node: Any) -> DictConfig:
    plain = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if not isinstance(plain, dict) or not isinstance(plain.get("_target_"), str):
        raise ConfigError(f"{dotted}={plain}: needs a _target_, the dotted path of a class or function")
    return _fit(target_schema(dotted, plain["_target_"]), plain, prefix=f"{dotted}.")


def _check_ranges(cls: type, node: DictConfig, prefix: str) -> None:
    for declared in dataclasses.fields(cls):
        value = node[declared.name]
        key = f"{prefix}{declared.name}"
        kind = OmegaConf.get_type(node, declared.name)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            _check_ranges(kind, value, f"{key}.")
            continue
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value}: must be a finite number")
        choices = declared.metadata.get(schema.CHOICES)
        if choices and value not in choices:
            hint = did_you_mean(str(value), choices) or ""
            raise ConfigError(f"{key}={value}: must be one of {', '.join(choices)}{hint}")
        if declared.metadata.get(schema.SHARE) and isinstance(value, float) and value > 1:
            count = f"write {key}={int(value)}" if value.is_integer() else "a count is a whole number"
            raise ConfigError(f"{key}={value}: a float is a share, at most 1.0; {count}")
        for bound, limit in declared.metadata.get(schema.RANGE, {}).items():
            if not _BOUNDS[bound][1](value, limit):
                raise ConfigError(f"{key}={value}: must be {_BOUNDS[bound][0]} {limit}")


_BOUNDS: dict[str, tuple[str, Any]] = {
    "ge": ("at least", lambda value, limit: value >= limit),
    "gt": ("above", lambda value, limit: value > limit),
    "le": ("at most", lambda value, limit: value <= limit),
    "lt": ("below", lambda value, limit: value < limit),
}


def _schema_keys(cls: type, prefix: str = "") -> set[str]:
    keys: set[str] = set()
    base = OmegaConf.structured(cls)
    for declared in dataclasses.fields(cls):
        keys.add(prefix + declared.name)
        kind = OmegaConf.get_type(base, declared.name)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            keys |= _schema_keys(kind, f"{prefix}{declared.name}.")
    return keys


def _value_at(plain: Any, dotted: str | None) -> Any:
    for part in (dotted or "").replace("[", ".").replace("]", "").split("."):
        if isinstance(plain, dict):
            plain = plain.get(part)
        elif isinstance(plain, list) and part.isdigit() and int(part) < len(plain):
            plain = plain[int(part)]
    return plain


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
