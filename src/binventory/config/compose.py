"""Compose a config from the command line once; every mistake is one line, before anything is on disk."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    RangeSweep,
)
from hydra.core.utils import env_override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from binventory.config.check import PATH_KEYS, check_config
from binventory.config.paths import HYDRA_PATHS, as_path, quote_homes
from binventory.config.quoting import quote_value
from binventory.config.suggest import did_you_mean
from binventory.config.targets import import_target
from binventory.errors import ConfigError
from binventory.files import MAX_FILE_BYTES, open_limited

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"

# Groups that a config can do without.
OPTIONAL_GROUPS = ("augment", "recipe", "experiment", "hparams_search", "debug")

# Choices that a plugin of another package brings, and the extra that installs it.
PLUGIN_EXTRAS = {
    "hydra/launcher=submitit_local": "submitit",
    "hydra/launcher=submitit_slurm": "submitit",
    "hydra/launcher=ray": "ray",
}

# Above this many combinations of a sweep each value is checked beside the first value of the other keys instead.
MAX_CHECKED_COMBINATIONS = 64

MAX_SWEEP_VALUES = 10_000  # of one key; a range of 10**12 is a slip of the keyboard
MAX_NESTING = 20  # of lists and dicts in a value: far from where Python gives up recursing, in Hydra or after it


def compose_checked(
    task: str,
    overrides: Sequence[str],
    *,
    multirun: bool = False,
    config_name: str | None = None,
    config_dir: str | None = None,
) -> list[DictConfig]:
    """Compose and check every config that the command line asks for.

    Args:
        task: train, predict, evaluate or prepare: whose schema the config must fit.
        overrides: Hydra overrides.
        multirun: whether sweeps (`a=1,2`) are allowed; they are expanded.
        config_name: primary config; None: the one named as the task.
        config_dir: a further folder of configs, as Hydra's `--config-dir`.

    Returns:
        The checked configs, plain and resolved but for the `hydra` node. A single one without sweeps.

    Raises:
        ConfigError: a key, a value, a group choice or the grammar is wrong; names it and the nearest right one.
    """
    parsed = _parse([quote_homes(text, path_keys(task)) for text in overrides])
    for override in parsed:
        if override.is_sweep_override() and not multirun:
            raise ConfigError(
                f"{override.input_line}: several values; add -m to run each of them, or write a list as [a,b]"
            )
        text = str(override.input_line)
        if not multirun and "hydra:job.num" in text and not text.startswith("hydra.sweep."):
            raise ConfigError(f"{text}: a single run has no hydra.job.num; add -m")
    if config_dir is not None:
        config_dir = as_path("--config-dir", config_dir)
        if not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir={config_dir}: no such folder")
        _check_files(Path(config_dir))
        folder = quote_value(f"file://{Path(config_dir).resolve()}")
        parsed = [*_parse([f"hydra.searchpath=[{folder}]"]), *parsed]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        groups = _Groups(GlobalHydra.instance().config_loader(), config_dir)
        primary = config_name or task
        return [
            _compose_one(groups, task, primary, combination, number if multirun else None)
            for number, combination in enumerate(_combinations(parsed, groups))
        ]


def path_keys(task: str) -> tuple[str, ...]:
    """Return the keys of a task's command line that name a file or folder."""
    return (*PATH_KEYS[task], *HYDRA_PATHS, "hydra.launcher.source_dir", "hydra.launcher.data")


class _Groups:
    """The config groups and their choices, those of `--config-dir` included."""

    def __init__(self, loader: ConfigLoader, config_dir: str | None) -> None:
        # The loader's own look-ups build this anew at each call: 10 ms for each of the groups.
        self._configs = cast(ConfigLoaderImpl, loader).repository
        self._extra = Path(config_dir) if config_dir is not None else None
        self._composed: dict[tuple[str, ...], tuple[DictConfig, set[str]]] = {}
        self.names = self._below("")
        if self._extra is not None:
            self.names |= {str(path.relative_to(self._extra)) for path in self._extra.rglob("*") if path.is_dir()}

    def _below(self, parent: str) -> set[str]:
        found: set[str] = set()
        for name in self._configs.get_group_options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            found |= {group} | self._below(group)
        return found

    def composed(self, config_name: str, choices: list[Override]) -> tuple[DictConfig, set[str]]:
        """Compose with group choices alone; return that and its dotted keys. Combinations of a sweep share it."""
        lines = tuple(str(override.input_line) for override in choices)
        if lines not in self._composed:
            base = _hydra_compose(config_name, choices)
            self._composed[lines] = base, _dotted_keys(base)
        return self._composed[lines]

    def options(self, group: str) -> list[str]:
        """Return the choices of a group, sorted."""
        extra = (self._extra / group).glob("*.yaml") if self._extra is not None else ()
        return sorted({*self._configs.get_group_options(group, ObjectType.CONFIG), *(path.stem for path in extra)})


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        if text.startswith("-"):
            raise ConfigError(f"{text}: no such option; --help lists them")
        _check_text(text)
        try:
            parsed.append(parser.parse_override(text))
        except (HydraException, ValueError) as error:  # ValueError: a number of more digits than int() takes
            lines = [line for line in str(error).splitlines() if not line.startswith("Error parsing")]
            quoting = "write KEY=VALUE and quote special characters, e.g. 'data.source=\"a=b\"'"
            raise ConfigError(f"{_shown(text)}: not a valid override ({lines[0]}); {quoting}") from error
        if not parsed[-1].key_or_group:
            raise ConfigError(f"{text}: names no key; write KEY=VALUE")
    return parsed


def _check_text(text: str) -> None:
    """Refuse what neither Hydra nor the files of a run can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{_shown(text)}: is not UTF-8; name files and values in UTF-8") from error
    depth = 0
    for char in text:  # brackets in quotes count too: nobody has that many
        depth += (char in "[{(") - (char in "]})")
        if depth > MAX_NESTING:
            raise ConfigError(f"{_shown(text)}: nested too deeply; at most {MAX_NESTING} brackets within each other")


def value_of(override: str) -> Any:
    """Return the value of an override as its config has it: without quotes, interpolations resolved. None: a sweep.

    Raises:
        ConfigError: the grammar is wrong, or nothing is there to resolve.
    """
    (parsed,) = _parse([override])
    if parsed.is_sweep_override():
        return None
    try:
        return OmegaConf.create({"value": parsed.value()}).value
    except OmegaConfBaseException as error:
        raise ConfigError(f"{_shown(override)}: {str(error).splitlines()[0]}; write the value") from error


def _shown(text: str) -> str:
    cut = text if len(text) <= 200 else f"{text[:199]}…"
    return cut.encode("utf-8", "backslashreplace").decode()


def _combinations(parsed: list[Override], groups: _Groups) -> Iterator[list[Override]]:
    """Expand sweeps into single runs: all of them while they are few, else each value beside the others' first."""
    values = [_sweep_values(override, groups) for override in parsed]
    total = 1
    for choices in values:
        total *= len(choices)
    if total <= MAX_CHECKED_COMBINATIONS:
        yield from (list(combination) for combination in itertools.product(*values))
        return
    first = [choices[0] for choices in values]
    yield first
    for position, choices in enumerate(values):
        # Of a range its ends tell whether all of it is allowed.
        is_range = isinstance(parsed[position].value(), RangeSweep)
        for choice in choices[-1:] if is_range else choices[1:]:
            yield [*first[:position], choice, *first[position + 1 :]]


def _sweep_values(override: Override, groups: _Groups) -> list[Override]:
    if not override.is_sweep_override():
        return [override]
    prefix, key = ("+" if override.is_add() else ""), override.get_key_element()
    swept = override.value()
    if isinstance(swept, IntervalSweep):
        texts = [str(swept.start), str(swept.end)]
    elif isinstance(swept, ChoiceSweep | RangeSweep):
        try:
            texts = [str(value) for value in itertools.islice(override.sweep_string_iterator(), MAX_SWEEP_VALUES + 1)]
        except ValueError as error:  # of a range with a step of 0
            raise ConfigError(f"{override.input_line}: no such range: {error}") from error
        if len(texts) > MAX_SWEEP_VALUES:
            raise ConfigError(f"{override.input_line}: over {MAX_SWEEP_VALUES:,} values; name fewer")
    else:
        texts = cast(Glob, swept).filter(groups.options(override.key_or_group))
    if not texts:
        raise ConfigError(f"{override.input_line}: an empty sweep; name at least one value")
    return _parse([f"{key if key.startswith(prefix) else prefix + key}={text}" for text in texts])


@contextmanager
def as_job(composed: DictConfig, number: int | None = None) -> Iterator[None]:
    """Set what a job finds while its config is resolved: its own HydraConfig, and hydra.job.env_set in the environment.

    Args:
        composed: with its `hydra` node; what only a job knows is filled in.
        number: its place in a sweep; None: a single run, or one whose place is known already.

    Raises:
        ConfigError: hydra.job.env_set cannot be resolved.
    """
    before = HydraConfig.instance().cfg
    with open_dict(composed):
        if number is not None:
            composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        if OmegaConf.is_missing(composed.hydra.runtime, "output_dir"):  # not made before all is checked
            with read_write(composed.hydra.runtime):
                composed.hydra.runtime.output_dir = str(Path.cwd() / "RUN")
    HydraConfig.instance().set_config(composed)
    try:
        variables = OmegaConf.to_container(composed.hydra.job.env_set, resolve=True)
    except OmegaConfBaseException as error:
        HydraConfig.instance().cfg = before
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}; write the value") from error
    try:
        for name, value in cast(dict[str, str], variables).items():
            if not name or "=" in name or "\0" in name + value:
                raise ConfigError(f"hydra.job.env_set.{name}={value!r}: no environment variable can be that")
        with env_override(cast(dict[str, str], variables)):
            yield
    finally:
        HydraConfig.instance().cfg = before


def _compose_one(
    groups: _Groups, task: str, config_name: str, parsed: list[Override], number: int | None
) -> DictConfig:
    for override in parsed:
        if override.key_or_group in groups.names:
            _check_group_choice(override, groups, config_name)
    of_keys = [
        override for override in parsed if override.key_or_group not in groups.names and not _is_hydras(override)
    ]
    if of_keys:
        base, known = groups.composed(config_name, [override for override in parsed if override not in of_keys])
        for override in of_keys:
            _check_key(override, base, known, groups.names)
    composed = _hydra_compose(config_name, parsed)
    _check_hydra(composed)
    with as_job(composed, number):
        return check_config(task, composed)


def _check_hydra(composed: DictConfig) -> None:
    """Refuse settings of Hydra that no job of ours could honour."""
    if composed.hydra.job.chdir:
        raise ConfigError(
            "hydra.job.chdir=true: paths in the config are relative to where the command is run, also in its jobs;"
            " leave it out"
        )
    for name, callback in (composed.hydra.callbacks or {}).items():
        dotted = f"hydra.callbacks.{name}"
        if not OmegaConf.is_dict(callback) or not isinstance(callback.get("_target_"), str):
            raise ConfigError(f"{dotted}: needs a _target_, the dotted path of a callback of Hydra's")
        import_target(dotted, callback["_target_"])


def _is_hydras(override: Override) -> bool:
    return re.split(r"[./]", override.key_or_group)[0] == "hydra"


def _check_group_choice(override: Override, groups: _Groups, config_name: str) -> None:
    group = override.key_or_group
    options = groups.options(group)
    if override.is_delete():
        if group in OPTIONAL_GROUPS:
            return
        raise ConfigError(f"{override.input_line}: {group} is required; choose one of {', '.join(options)}")
    is_added = override.is_add() or override.is_force_add()
    if is_added and group in groups.composed(config_name, [])[0].hydra.runtime.choices:
        raise ConfigError(f"{override.input_line}: {group} already has a choice; write {group}=… without the +")
    chosen = override.value()
    if chosen is None:
        without = (
            f"leave it out or write ~{group}" if group in OPTIONAL_GROUPS else "choose one of " + ", ".join(options)
        )
        raise ConfigError(f"{group}=null: no choice; {without}")
    for choice in chosen if isinstance(chosen, list) else [chosen]:
        if str(choice) not in options:
            if (extra := PLUGIN_EXTRAS.get(f"{group}={choice}")) is not None:
                raise ConfigError(f"{group}={choice}: is not installed; pip install 'binventory[{extra}]'")
            hint = did_you_mean(str(choice), options) or "; choose one of " + ", ".join(options)
            raise ConfigError(f"{group}={choice}: no such choice{hint}")


def _check_key(override: Override, base: DictConfig, known: set[str], groups: set[str]) -> None:
    key = override.key_or_group
    if override.is_add() or override.is_force_add():
        return  # what the schema does not know is refused after composing
    if override.package is not None:
        raise ConfigError(f"{override.input_line}: no config group {key}{did_you_mean(key, groups)}")
    if key in known:
        if override.is_delete():
            raise ConfigError(f"{override.input_line}: {key} is required; set another value instead of deleting it")
        return
    parent = key.rsplit(".", 1)[0] if "." in key else ""
    if parent and OmegaConf.is_list(OmegaConf.select(base, parent, throw_on_missing=False)):
        if override.is_delete() or not key.rsplit(".", 1)[1].isdecimal():
            raise ConfigError(f"{override.input_line}: {parent} is a list; write all of it as {parent}=[…]")
        return
    raise ConfigError(f"{override.input_line}: no such key{did_you_mean(key, known | groups)}")


def _check_files(config_dir: Path) -> None:
    """Refuse what Hydra would wait for or read without end: a config that is a pipe, a device or gigabytes."""
    for path in config_dir.rglob("*.yaml"):
        try:
            with open_limited(path, MAX_FILE_BYTES):
                pass
        except OSError as error:
            if not path.is_dir():
                raise ConfigError(f"--config-dir={config_dir}: {path}: {error.strerror or error}") from error


def _dotted_keys(node: DictConfig, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name in map(str, node):
        if prefix == "" and name == "hydra":
            continue
        key = f"{prefix}{name}"
        found.add(key)
        if not OmegaConf.is_missing(node, name) and not OmegaConf.is_interpolation(node, name):
            child = node[name]
            if OmegaConf.is_dict(child) and child is not None and not child._is_none():
                found |= _dotted_keys(child, f"{key}.")
    return found


def _hydra_compose(config_name: str, parsed: list[Override]) -> DictConfig:
    lines: list[Any] = [override.input_line for override in parsed]
    try:
        return compose(config_name, overrides=lines, return_hydra_config=True)
    except (yaml.YAMLError, UnicodeError, OSError, ValueError) as error:
        raise ConfigError(f"{config_name}: a config file cannot be read: {' '.join(str(error).split())}") from error
    except KeyError as error:  # Hydra copies without looking
        raise ConfigError(f"hydra.job.env_copy: {error.args[0]}: no such environment variable; leave it out") from error
    except (HydraException, OmegaConfBaseException) as error:
        if match := re.search(r"Could not override '([^']+)'\.\s+No match in the defaults list", str(error)):
            group = match.group(1)
            line = next((line for line in lines if line.lstrip("+~").startswith(group)), group)
            raise ConfigError(f"{line}: no such key; {config_name} has no {group}") from error
        cause = error.__cause__ or error
        reason = " ".join((str(error) or str(cause)).split("Config search path")[0].split())
        if cause is not error and str(cause).splitlines()[0] not in reason:
            reason += f" ({str(cause).splitlines()[0]})"
        raise ConfigError(f"{reason} [command line: {' '.join(lines) or 'no overrides'}]") from error
