"""Presets compose, and by precedence command line > debug > experiment > group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from binventory.config.compose import CONFIG_DIR, compose_checked
from binventory.errors import ConfigError

GROUP, EXPERIMENT, DEBUG, LINE = "trainer=cpu", "experiment=abid_resnet18", "debug=fast", "trainer.max_epochs=7"

# (overrides, key, value): who says what, and who wins.
PRECEDENCE = [
    (["~recipe"], "trainer.max_epochs", "group"),
    ([], "trainer.max_epochs", 20),
    ([EXPERIMENT], "trainer.max_epochs", 4),
    ([DEBUG], "trainer.max_epochs", 1),
    ([EXPERIMENT, DEBUG], "trainer.max_epochs", 1),
    ([DEBUG, EXPERIMENT], "trainer.max_epochs", 1),
    ([EXPERIMENT, LINE], "trainer.max_epochs", 7),
    ([DEBUG, LINE], "trainer.max_epochs", 7),
    ([LINE, EXPERIMENT, DEBUG], "trainer.max_epochs", 7),
    ([EXPERIMENT], "data.image_size", 128),
    ([EXPERIMENT, DEBUG], "data.image_size", 64),
    ([EXPERIMENT], "model.name", "resnet18"),
    ([EXPERIMENT, "model=resnet50"], "model.name", "resnet50"),
    (["model=resnet50", EXPERIMENT], "model.name", "resnet50"),
    ([EXPERIMENT, "data=synthetic"], "data.source", "synthetic"),
    (["model=resnet50", "model.weights=none"], "model.weights", "none"),
    (["optimizer=sgd", "optimizer.lr=0.5"], "optimizer.lr", 0.5),
    # a recipe is read with its own pair of model and optimizer, and gives way to all but the groups
    (["model=tiny", "optimizer=sgd"], "optimizer.lr", 0.2),
    (["model=tiny", "optimizer=sgd", "optimizer.lr=0.5"], "optimizer.lr", 0.5),
    (["model=tiny", "optimizer=adamw"], "optimizer.lr", 0.001),
    (["model=resnet18", "optimizer=sgd"], "optimizer.lr", 0.05),
    (["model=tiny", DEBUG], "trainer.max_epochs", 1),
    (["~recipe"], "optimizer.lr", 0.05),
]


def value(overrides: list[str], key: str) -> Any:
    return OmegaConf.select(compose_checked("train", overrides)[0], key)


@pytest.mark.parametrize(("overrides", "key", "expected"), PRECEDENCE, ids=lambda part: str(part))
def test_precedence(overrides: list[str], key: str, expected: Any) -> None:
    if expected == "group":
        expected = OmegaConf.load(CONFIG_DIR / "trainer" / "default.yaml").max_epochs
    assert value(overrides, key) == expected


def choices(config_name: str) -> list[str]:
    """Every choice of every group in the config's defaults list."""
    groups = [
        str(next(iter(entry))).removeprefix("optional ")
        for entry in OmegaConf.load(CONFIG_DIR / f"{config_name}.yaml").defaults
        if entry != "_self_"
    ]
    return [f"{group}={path.stem}" for group in groups for path in sorted((CONFIG_DIR / group).glob("*.yaml"))]


# What a choice cannot do without on this machine.
NEEDS = {
    "data=imagefolder": [f"data.source={CONFIG_DIR}"],
    "data=table": [f"data.source={__file__}"],
    "data=default": ["data.source=photos", "+data.reader={_target_: binventory.data.sources.bucket.BucketSource}"],
    "trainer=gpu": ["trainer.accelerator=auto"],
    "trainer=ddp": ["trainer.accelerator=auto"],
    "callbacks=early_stopping": ["trainer.max_epochs=20"],
}


@pytest.mark.parametrize("choice", choices("train"))
def test_every_choice_fits_its_schema(choice: str) -> None:
    group, _, name = choice.partition("=")
    overrides = [choice, *NEEDS.get(choice, [])]
    if choice == "data=default":  # the shared part of the others, no data set of its own
        overrides = ["data=abid"]
    assert compose_checked("train", overrides)[0]
    assert name in {path.stem for path in (CONFIG_DIR / group).iterdir()}


def test_sweeps_are_expanded_and_each_combination_is_checked() -> None:
    configs = compose_checked("train", ["model=resnet18,resnet50", "seed=range(0,3)"], multirun=True)
    assert [(config.model.name, config.seed) for config in configs] == [
        (model, seed) for model in ("resnet18", "resnet50") for seed in (0, 1, 2)
    ]


def test_large_sweeps_are_checked_value_by_value() -> None:
    seeds = list(range(1, 40))
    configs = compose_checked("train", ["model=resnet18,resnet50", "seed=" + ",".join(map(str, seeds))], multirun=True)
    assert [(config.model.name, config.seed) for config in configs] == [
        ("resnet18", 1),
        ("resnet50", 1),
        *(("resnet18", seed) for seed in seeds[1:]),
    ]


def test_of_a_long_range_the_ends_are_checked() -> None:
    configs = compose_checked("train", ["model=resnet18,resnet50", "seed=range(0,1000)"], multirun=True)
    assert [config.seed for config in configs] == [0, 0, 999]


def test_a_glob_is_every_choice_that_fits() -> None:
    configs = compose_checked("train", ["model=glob(resnet1*)"], multirun=True)
    assert [config.model.name for config in configs] == ["resnet101", "resnet18"]


def test_config_dir_adds_choices(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(
        "name: resnet26\nweights: none\nfinetune: full\nchannels_last: false\ncache_features: true\n"
    )
    assert compose_checked("train", ["model=mine"], config_dir=str(tmp_path))[0].model.name == "resnet26"


def test_target_without_a_schema_is_checked_against_its_signature(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    yaml = "_target_: torch.optim.RMSprop\n_partial_: true\nlr: 0.1\nalpha: 0.9\n"
    (tmp_path / "optimizer" / "rmsprop.yaml").write_text(yaml)
    assert compose_checked("train", ["optimizer=rmsprop"], config_dir=str(tmp_path))[0].optimizer.alpha == 0.9
    with pytest.raises(ConfigError, match=r"optimizer\.momentun=0\.5: no such key; did you mean optimizer\.momentum\?"):
        compose_checked("train", ["optimizer=rmsprop", "+optimizer.momentun=0.5"], config_dir=str(tmp_path))
