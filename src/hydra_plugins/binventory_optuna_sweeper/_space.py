"""The search space: Hydra's sweep syntax as Optuna's distributions, and drawn values as Hydra's overrides."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from binventory.config.compose import MAX_SWEEP_VALUES
from binventory.config.suggest import did_you_mean
from binventory.errors import ConfigError

TAGS = ("log",)


@dataclass(frozen=True)
class Parameter:
    """One key that is searched over.

    Attributes:
        name: the dotted key or group, which is also the parameter's name in the study.
        key: the same as overrides write it, `+` included.
        distribution: its values. Choices of other than numbers are texts in Hydra's grammar.
    """

    name: str
    key: str
    distribution: BaseDistribution

    def ends(self) -> list[Any]:
        """Return the values that tell whether all are allowed: every choice, or the two ends of an interval."""
        if isinstance(self.distribution, CategoricalDistribution):
            return list(self.distribution.choices)
        assert isinstance(self.distribution, IntDistribution | FloatDistribution)
        return [self.distribution.low, self.distribution.high]


@dataclass(frozen=True)
class Space:
    """What each trial is given, in the order of the command line: fixed overrides, and parameters to draw."""

    entries: tuple[str | Parameter, ...]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters' values, by name."""
        return {parameter.name: parameter.distribution for parameter in self._parameters()}

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a trial that drew these values."""
        return [entry if isinstance(entry, str) else f"{entry.key}={values[entry.name]}" for entry in self.entries]

    def grid(self) -> Iterator[dict[str, Any]]:
        """Return every combination, the last parameter changing fastest. All parameters are choices."""
        names = [parameter.name for parameter in self._parameters()]
        for values in itertools.product(*(parameter.ends() for parameter in self._parameters())):
            yield dict(zip(names, values, strict=True))

    def samples(self) -> Iterator[dict[str, Any]]:
        """Return a few combinations in which every end of every parameter comes up."""
        first = {parameter.name: parameter.ends()[0] for parameter in self._parameters()}
        yield first
        for parameter in self._parameters():
            for value in parameter.ends()[1:]:
                yield {**first, parameter.name: value}

    def ordered_as(self, earlier: Mapping[str, Sequence[Any]]) -> Space:
        """Return the space with its choices in the order that they had in an earlier process: shuffle() has others.

        Args:
            earlier: choices by name; those that are not the same values are left as they are.
        """

        def ordered(entry: str | Parameter) -> str | Parameter:
            if isinstance(entry, str) or not isinstance(entry.distribution, CategoricalDistribution):
                return entry
            before = earlier.get(entry.name, ())
            if sorted(map(repr, before)) != sorted(map(repr, entry.distribution.choices)):
                return entry
            return replace(entry, distribution=CategoricalDistribution(before))

        return Space(tuple(ordered(entry) for entry in self.entries))

    def _parameters(self) -> list[Parameter]:
        return [entry for entry in self.entries if isinstance(entry, Parameter)]


def read_space(
    params: Mapping[str, Any], arguments: Sequence[str], config_loader: ConfigLoader, *, as_grid: bool
) -> Space:
    """Read the search space.

    Args:
        params: `hydra.sweeper.params`.
        arguments: overrides of the command line; one of the same key wins.
        config_loader: knows the groups' choices, for `glob(*)`.
        as_grid: every parameter becomes a choice.

    Raises:
        ConfigError: names the line, and what it can be.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    entries: dict[str, str | Parameter] = {}
    for text, is_param in [*((_as_override(*item), True) for item in params.items()), *((a, False) for a in arguments)]:
        where = f"hydra.sweeper.params: {text}" if is_param else text
        try:
            override = parser.parse_overrides([text])[0]
        except (HydraException, ValueError) as error:
            raise ConfigError(f"{where}: not Hydra's sweep syntax ({str(error).splitlines()[0]})") from error
        if override.is_hydra_override():
            raise ConfigError(f"{where}: a setting of Hydra is the same for all trials; give it on the command line")
        name = override.key_or_group if override.package is None else f"{override.key_or_group}@{override.package}"
        if override.is_sweep_override():
            entries[name] = Parameter(name, override.get_key_element(), _distribution(override, where, as_grid=as_grid))
        else:
            entries[name] = text
    return Space(tuple(entries.values()))


def _as_override(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        raise ConfigError(f"hydra.sweeper.params.{key}: holds further keys; write one dotted key for each value")
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _distribution(override: Override, where: str, *, as_grid: bool) -> BaseDistribution:
    sweep = override.value()
    tags = sweep.tags if isinstance(sweep, ChoiceSweep | RangeSweep | IntervalSweep) else set()
    for tag in sorted(tags - set(TAGS)):
        raise ConfigError(f"{where}: no tag {tag}{did_you_mean(tag, TAGS) or '; log is the only one'}")
    if isinstance(sweep, IntervalSweep):
        if as_grid:
            raise ConfigError(f"{where}: a grid has no intervals; name the values, or hydra.sweeper.sampler=tpe")
        assert sweep.start is not None
        assert sweep.end is not None
        return _numbers(sweep.start, sweep.end, None, where, log="log" in tags)
    if isinstance(sweep, RangeSweep) and not as_grid:
        values = _values(override, where)
        return _numbers(min(values), max(values), abs(sweep.step), where, log="log" in tags)
    if tags and not isinstance(sweep, RangeSweep):
        raise ConfigError(f"{where}: log says how an interval or a range is drawn from; choices have no order")
    return _choices(_values(override, where))


def _numbers(low: float, high: float, step: float | None, where: str, *, log: bool) -> BaseDistribution:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ConfigError(f"{where}: not an interval of numbers; write interval(LOW, HIGH)")
    if log and low <= 0:
        raise ConfigError(f"{where}: a log interval starts above 0")
    is_whole = all(isinstance(number, int) for number in (low, high, step or 0))
    if log and step is not None and not (is_whole and step == 1):
        raise ConfigError(f"{where}: a log range has steps of 1; use interval, or range without a step")
    if is_whole:
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(low, high, log=log, step=step)


def _choices(values: list[Any]) -> CategoricalDistribution:
    are_numbers = all(type(value) in (int, float) and math.isfinite(value) for value in values)
    # Of limits of batches 1.0 means all of them and 1 means one; as numbers they would be one choice.
    are_numbers = are_numbers and len(set(values)) == len({(type(value), value) for value in values})
    # A text is also what tells 1 from true, and carries quotes and lists.
    return CategoricalDistribution(list(dict.fromkeys(values if are_numbers else map(Transformer.str, values))))


def _values(override: Override, where: str) -> list[Any]:
    try:
        values = list(itertools.islice(override.sweep_iterator(), MAX_SWEEP_VALUES + 1))
    except (HydraException, ValueError) as error:  # of a range with a step of 0
        raise ConfigError(f"{where}: no such range ({error})") from error
    if not values:
        raise ConfigError(f"{where}: an empty sweep; name at least one value")
    if len(values) > MAX_SWEEP_VALUES:
        raise ConfigError(f"{where}: over {MAX_SWEEP_VALUES:,} values; name fewer, or write int(interval(LOW, HIGH))")
    return values
