"""Which columns the configs of compared runs get: one for each key that differs, what was varied first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from binventory.compare.run import Run, canonical, plain_text
from binventory.data.text import printable

TARGET = "_target_"
# After what was varied: keys, or nodes of them, that people look for first, and those that they look for last.
FIRST = (
    *("optimizer.lr", "seed", "model", "optimizer", "scheduler", "objective"),
    *("data.source", "data.reader", "data.batch_size", "trainer", "data"),
)
LAST = ("callbacks", "logger", "s3", "paths")


@dataclass(frozen=True)
class Column:
    """A column of the config.

    Attributes:
        name: of its key; of a node whose class differs, the node's.
        options: None for a key; of a node, its options that differ between runs of one class of it.
    """

    name: str
    options: tuple[str, ...] | None = None

    def text(self, run: Run, missing: str = "-") -> str:
        """Return what a run's config says, as YAML would have it in one line; of a node `Class option=value`."""
        config = run.config or {}
        if self.options is None:
            return plain_text(config[self.name]) if self.name in config else missing
        target = config.get(f"{self.name}.{TARGET}")
        if target is None:
            return missing
        keys = [(option, f"{self.name}.{option}") for option in self.options]
        said = [f"{option}={plain_text(config[key])}" for option, key in keys if key in config]
        return " ".join([printable(str(target).rpartition(".")[2], 100), *(printable(each, 220) for each in said)])

    def value(self, run: Run) -> Any:
        """Return the value of a key; None for a node, or where the run has none."""
        return (run.config or {}).get(self.name) if self.options is None else None


def config_columns(runs: Sequence[Run], differing: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns of the configs, in the order in which they are shown.

    Options of a node that other classes of it do not have, such as those of a data source, are in the node's column.

    Args:
        runs: all that are compared.
        differing: see `differing_keys`.
    """
    configs = [run.config for run in runs if run.config is not None]
    nodes = [key.removesuffix(f".{TARGET}") for key in differing if key.endswith(f".{TARGET}")]
    columns: dict[str, Column] = {}
    for key in differing:
        node = next((node for node in nodes if key.startswith(f"{node}.")), None)
        if node is None or (key != f"{node}.{TARGET}" and _is_in_all(key, node, configs)):
            columns[key] = Column(key)
        elif node not in columns:
            columns[node] = Column(node, _own_options(configs, node, differing))
    varied = _varied_keys(runs)
    ranks = {name: _rank(column, varied) for name, column in columns.items()}
    return tuple(columns[name] for name in sorted(columns, key=lambda name: ranks[name]))


def _own_options(configs: Sequence[Mapping[str, Any]], node: str, differing: Sequence[str]) -> tuple[str, ...]:
    """Return the options of a node that are not the same in all runs that have its same class."""
    own = []
    for key in differing:
        if not key.startswith(f"{node}.") or key.endswith(f".{TARGET}") or _is_in_all(key, node, configs):
            continue
        by_class: dict[str, set[str | None]] = {}
        for config in configs:
            value = canonical(config[key]) if key in config else None
            by_class.setdefault(str(config.get(f"{node}.{TARGET}")), set()).add(value)
        if any(len(values) > 1 for values in by_class.values()):
            own.append(key.removeprefix(f"{node}."))
    return tuple(own)


def _is_in_all(key: str, node: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all configs have a key, but for those of tasks that know no such group as the node's."""
    group = f"{node.partition('.')[0]}."
    return all(key in config for config in configs if any(name.startswith(group) for name in config))


def _varied_keys(runs: Sequence[Run]) -> list[str]:
    """Return the keys that the runs' command lines, or their sweep, gave different values."""
    said = [dict(_key_and_value(override) for override in run.overrides) for run in runs]
    keys = dict.fromkeys(key for overrides in said for key in overrides)
    return [key for key in keys if len({overrides.get(key) for overrides in said}) > 1]


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _rank(column: Column, varied: Sequence[str]) -> tuple[int, int]:
    """Return where a column stands; those of the same rank keep the order of the config."""
    keys = [column.name, *(f"{column.name}.{option}" for option in (column.options or ()))]
    if found := [varied.index(key) for key in keys if key in varied]:
        return 0, min(found)
    for group, names in ((1, FIRST), (3, LAST)):
        for place, name in enumerate(names):
            if column.name == name or column.name.startswith(f"{name}."):
                return group, place
    return 2, 0
