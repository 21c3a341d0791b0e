"""The search space: what of Hydra's sweep syntax becomes which distribution, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from binventory.config.compose import CONFIG_DIR
from binventory.errors import ConfigError
from hydra_plugins.binventory_optuna_sweeper._space import Space, read_space


def space(*arguments: str, params: dict[str, Any] | None = None, as_grid: bool = False) -> Space:
    return read_space(params or {}, arguments, None, as_grid=as_grid)  # type: ignore[arg-type]  # no glob in these


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("interval(1,5)", FloatDistribution(1, 5)),
        ("tag(log,interval(0.001,0.1))", FloatDistribution(0.001, 0.1, log=True)),
        ("int(interval(1,5))", IntDistribution(1, 5)),
        ("int(tag(log,interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(1,10,3)", IntDistribution(1, 7, step=3)),  # a range ends before its stop
        ("range(10,1,-3)", IntDistribution(4, 10, step=3)),
        ("tag(log,range(1,9))", IntDistribution(1, 8, log=True)),
        ("range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("32,64,128", CategoricalDistribution([32, 64, 128])),
        ("choice(32,64,32)", CategoricalDistribution([32, 64])),
        ("1,1.0,0.5", CategoricalDistribution(["1", "1.0", "0.5"])),  # one batch, all, half: not one choice
        ("resnet18,resnet50", CategoricalDistribution(["resnet18", "resnet50"])),
        ("true,1,null", CategoricalDistribution(["True", "1", "null"])),  # for Python, True is 1
        ("'a,b',[1,2]", CategoricalDistribution(["'a,b'", "[1,2]"])),
        ("sort(3,1)", CategoricalDistribution([1, 3])),
    ],
)
def test_sweep_syntax(text: str, distribution: object) -> None:
    assert space(f"a.b={text}").distributions == {"a.b": distribution}


def test_drawn_values_are_what_hydra_reads() -> None:
    values = [1e-07, 0.1 + 0.2, 12, "resnet18", "'a,b'", "[1,2]", "True"]
    read = space(*(f"+k{place}=interval(0,1)" for place in range(len(values))))
    overrides = read.overrides({f"k{place}": value for place, value in enumerate(values)})
    parsed = [override.value() for override in OverridesParser.create().parse_overrides(overrides)]
    assert parsed == [1e-07, 0.1 + 0.2, 12, "resnet18", "a,b", [1, 2], True]
    assert all(override.startswith("+k") for override in overrides)


def test_order_and_fixed_values_are_those_of_the_command_line() -> None:
    read = space("db=mysql,pg", "db.user=me", "~b", "+c=1", "d=x,y", as_grid=True)
    assert [read.overrides(point) for point in read.grid()] == [
        [f"db={db}", "db.user=me", "~b", "+c=1", f"d={d}"] for db in ("mysql", "pg") for d in ("x", "y")
    ]


def test_the_command_line_wins_over_params() -> None:
    params = {"lr": "tag(log, interval(0.001, 0.1))", "batch": "choice(32, 64)", "momentum": 0.9, "counts": [1, 2]}
    read = space("batch=16", "+momentum=0.5,0.9", params=params)
    assert list(read.distributions) == ["lr", "momentum"]
    assert read.overrides({"lr": 0.01, "momentum": 0.5}) == ["lr=0.01", "batch=16", "+momentum=0.5", "counts=[1, 2]"]


def test_every_end_is_tried_out() -> None:
    tried = list(space("a=1,2,3", "b=interval(0,1)").samples())
    assert {point["a"] for point in tried} == {1, 2, 3}
    assert {point["b"] for point in tried} == {0, 1}
    assert len(tried) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a=interval(5,1)", "interval(LOW, HIGH)"),
        ("a=interval(nan,1)", "interval(LOW, HIGH)"),
        ("a=tag(log,interval(0,1))", "above 0"),
        ("a=tag(logs,interval(1,2))", "did you mean log?"),
        ("a=tag(log,choice(1,2))", "no order"),
        ("a=tag(log,range(1,9,2))", "steps of 1"),
        ("a=range(3,3)", "empty sweep"),
        ("a=range(0,1,0)", "no such range"),
        ("a=range(0,1.5,0)", "no such range"),
        ("a=range(0,1000000000000)", "over 10,000 values"),
        ("a=choice(", "not Hydra's sweep syntax"),
    ],
)
@pytest.mark.parametrize("from_params", [False, True])
def test_what_cannot_be_searched_is_one_line(text: str, said: str, from_params: bool) -> None:
    key, _, value = text.partition("=")
    with pytest.raises(ConfigError) as caught:
        space(params={key: value}) if from_params else space(text)
    assert said in str(caught.value)
    assert text in str(caught.value)
    assert str(caught.value).startswith("hydra.sweeper.params: ") == from_params
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"optimizer": {"lr": "interval(0,1)"}}, "one dotted key"),
        ({"hydra.job.name": "a,b"}, "on the command line"),
    ],
)
def test_params_that_are_no_space(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        space(params=params)


def test_a_grid_has_no_intervals() -> None:
    with pytest.raises(ConfigError, match="a grid has no intervals"):
        space("a=interval(0,1)", as_grid=True)
    assert space("a=range(0,3)", as_grid=True).distributions == {"a": CategoricalDistribution([0, 1, 2])}


def test_report_space() -> None:
    config = OmegaConf.load(CONFIG_DIR / "hparams_search" / "report_space.yaml")
    assert space(params=config.hydra.sweeper.params).distributions == {
        "optimizer.lr": FloatDistribution(0.001, 0.1, log=True),
        "optimizer.momentum": FloatDistribution(0.5, 0.9),
        "data.batch_size": CategoricalDistribution([32, 64, 128, 256, 512]),
        "data.image_size": CategoricalDistribution([128, 224, 256]),
    }


def test_a_shuffle_keeps_the_order_that_it_had_when_the_sweep_began() -> None:
    shuffled = space("seed=shuffle(range(0,9))", "model=shuffle(a,b,c)", "lr=interval(0,1)", as_grid=False)
    earlier = {"seed": (3, 1, 0, 2, 8, 7, 6, 5, 4), "model": ("c", "a", "b"), "lr": (1, 2)}
    ordered = shuffled.ordered_as(earlier).distributions
    assert ordered["model"] == CategoricalDistribution(["c", "a", "b"])
    assert ordered["lr"] == shuffled.distributions["lr"]
    assert space("model=a,d,c").ordered_as(earlier).distributions == space("model=a,d,c").distributions
