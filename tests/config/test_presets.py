"""Presets compose, and by precedence command line > debug > experiment > group."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from binventory.config.capture import to_plain
from binventory.config.check import check_config
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
        expected = OmegaConf.load(CONFIG_DIR / "base" / "trainer.yaml").max_epochs
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


def own_values(group: str, choices: tuple[str, ...]) -> Any:
    """What files of a group say by themselves, one after the other upon what the group shares."""
    files = [CONFIG_DIR / "base" / f"{group}.yaml"]
    for choice in choices:
        path = CONFIG_DIR / group / f"{choice}.yaml"
        begins_with = OmegaConf.load(path).get("defaults", [])
        files += [*(path.with_name(f"{name}.yaml") for name in begins_with), path]
    merged = OmegaConf.merge(*map(OmegaConf.load, files))
    merged.pop("defaults", None)
    return merged


@pytest.mark.parametrize("group", ["callbacks", "trainer", "data", "s3"])
def test_choices_of_a_group_do_not_reset_each_other(group: str) -> None:
    names = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
    pairs = [*itertools.pairwise([*names, names[0]])]
    together = [(names[0],), *pairs, *(pair[::-1] for pair in pairs)]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        for choices in together:
            # A recipe reaches into the trainer and the data.
            composed = compose("train", [f"{group}=[{','.join(choices)}]", "~recipe"])[group]
            assert composed == own_values(group, choices), choices


def test_callbacks_go_together_in_any_order_with_those_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "callbacks").mkdir()
    # As choices began before: with all defaults.
    (tmp_path / "callbacks" / "mine.yaml").write_text("defaults:\n  - default\n\ntrace:\n  num_steps: 3\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "both.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /callbacks: [ema, mine, early_stopping]\n"
    )
    expected = (5, 0.99, 3, 1, 0.5)
    orders = itertools.permutations(("early_stopping", "ema", "mine"))
    for overrides in [*([f"callbacks=[{','.join(names)}]"] for names in orders), ["experiment=both"]]:
        callbacks = compose_checked("train", overrides, config_dir=str(tmp_path))[0].callbacks
        found = (callbacks.early_stopping.patience_epochs, callbacks.ema.decay, callbacks.trace.num_steps)
        assert (*found, callbacks.checkpoint.every_n_epochs, callbacks.resources.sample_every_s) == expected, overrides


def test_a_limit_of_batches_is_a_count_or_a_share_as_its_type_says() -> None:
    plain = to_plain(compose_checked("train", [])[0])
    limits = [1, 1.0, 0.5, 7, None]

    def checked(key: str, limit: Any) -> Any:
        return check_config("train", OmegaConf.create({**plain, "trainer": {**plain["trainer"], key: limit}})).trainer[
            key
        ]

    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches"):
        assert [repr(checked(key, limit)) for limit in limits] == [repr(limit) for limit in limits]
        assert [repr(checked(key, text)) for text in ("0.5", "3", "1.0")] == ["0.5", "3", "1.0"]  # of a variable
        for wrong, said in ((2.5, "whole number"), (2.0, f"write trainer.{key}=2"), (0, "above 0"), (True, "bool")):
            with pytest.raises(ConfigError, match=rf"trainer\.{key}=.*{said}"):
                checked(key, wrong)
    swept = compose_checked("train", ["trainer.limit_train_batches=1,1.0,1e0"], multirun=True)
    assert [repr(config.trainer.limit_train_batches) for config in swept] == ["1", "1.0", "1.0"]


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
