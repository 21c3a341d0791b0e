"""Whatever is typed on the command line, it composes or is refused in one line, and leaves nothing on disk."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from binventory.config.check import check_config
from binventory.config.compose import compose_checked
from binventory.errors import ConfigError
from binventory.launch.runner import report_user_error
from binventory.tracking.run_folder import register_resolvers
from tests.fuzz.amounts import corpus, fuzz

TASKS = ("prepare", "predict", "train")

# Keys of every depth, groups, keys of Hydra and keys that nearly are.
KEYS = [
    *("seed", "check", "paths", "paths.output_dir", "paths.cache_dir", "s3", "s3.region", "s3.timeout_s", "run", "input"),
    *("data", "data.source", "data.reader", "data.reader._target_", "data.reader.num_bins", "data.limit", "data.counts"),
    *("data.counts.0", "data.counts.9", "data.counts.x", "data.val_fraction", "data.test_fraction", "data.file_list"),
    *("data.image_size", "data.batch_size", "data.split", "data.on_bad", "data.num_workers", "model", "model.name"),
    *("model.weights", "model.channels_last", "objective", "objective._target_", "objective.label_smoothing"),
    *("optimizer", "optimizer.lr", "optimizer._partial_", "optimizer.betas", "scheduler", "scheduler.gamma", "trainer"),
    *("trainer.devices", "trainer.max_epochs", "trainer.precision", "trainer.gradient_clip_val", "callbacks", "logger"),
    *("callbacks.early_stopping.patience_epochs", "logger.csv", "objective_metric", "init_from", "layout", "output"),
    *("batch_size", "contact_sheet", "accelerator", "debug", "experiment", "recipe", "hydra", "hydra.run.dir"),
    *("hydra.job.name", "hydra.searchpath", "hydra/launcher", "hydra.mode", "data.bach_size", "nothing", "a.b.c", "data."),
    *("data@other", "data@:", ".", "data..source", "_target_", "data.reader._recursive_", "__class__", "${data.source}"),
]  # fmt: skip
VALUES = [
    *("", "null", "true", "false", "0", "1", "-1", "2", "3.5", "1e-3", "1e999", "nan", "-inf", "inf", "9" * 30, "9" * 5000),
    *("resnet18", "abid", "table", "synthetic", "cpu", "gpu", "none", "auto", "val/accuracy", "default", "fast", "???"),
    *("s3://bins", "s3://", "file:///", "nowhere", "/", "..", "pyproject.toml", "x" * 300, "[]", "{}", "[1,2]", "[1,[2]]"),
    *("{a:1}", "{_target_:os.system}", "[", "]", "{", "a=b", "a:b", "'a b'", '"a', "'it\\'s'", "${data.source}", "${nothing}"),
    *("${oc.env:HOME}", "${oc.env:NOTHING}", "${oc.decode:1}", "${now:%Y}", "${", "${${}}", "$", "1,2", "a,b", "choice(1,2)"),
    *("choice()", "range(1,3)", "range(1,2,0)", "interval(0,1)", "glob(*)", "sort(1,2)", "shuffle(1)", "int(a)", "tag(1)"),
    *("range(0,1000000000000)", "range(0,1e9,0.5)", "extend_list(1)", "os.system", "torch.optim.SGD", "binventory.nothing.Here", "builtins.eval", "é", "箱", "\\", "\t"),
    *("[" * 60 + "]" * 60, "[" * 3000 + "]" * 3000, "{a:" * 400 + "1" + "}" * 400, "${a:" * 300 + "}" * 300, '"\udcff"'),
]  # fmt: skip

TEXT = st.one_of(
    st.text(max_size=30),
    st.text(st.sampled_from("abc=.,:[]{}()'\"\\${}+~@/- \n\t0123456789"), max_size=25),
    st.text(st.characters(), max_size=10).map(lambda text: f"data.source={text}"),
)


@st.composite
def overrides(draw: st.DrawFn) -> str:
    key = draw(st.sampled_from(KEYS) | st.text(st.sampled_from("abdt._/@"), max_size=8))
    prefix = draw(st.sampled_from(["", "", "", "", "+", "++", "~"]))
    value = draw(st.sampled_from(VALUES) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=8))
    return f"{prefix}{key}" if prefix == "~" and draw(st.booleans()) else f"{prefix}{key}={value}"


@pytest.fixture(scope="module", autouse=True)
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    register_resolvers()
    before, folder = Path.cwd(), tmp_path_factory.mktemp("nothing_is_written_here")
    os.chdir(folder)
    yield folder
    os.chdir(before)


def check(folder: Path, task: str, given_overrides: list[str], *, multirun: bool = False) -> None:
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore", UserWarning)  # Hydra's, of a search path that is not there
            configs = compose_checked(task, given_overrides, multirun=multirun)
    except ConfigError as error:
        with contextlib.redirect_stderr(said):
            report_user_error(error)
        said.getvalue().encode()
        assert said.getvalue().startswith("error: ")
        assert said.getvalue().count("\n") == 1
        assert len(said.getvalue()) > len("error: \n")
    else:
        for config in configs:
            # What was accepted can be written down and is accepted again.
            plain = OmegaConf.to_container(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))
            assert check_config(task, OmegaConf.create(plain)) == OmegaConf.create(plain)
            OmegaConf.to_yaml(OmegaConf.create(plain)).encode()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("saved", corpus("config"))
def test_saved(empty_folder: Path, saved: Path) -> None:
    lines = saved.read_bytes().decode("utf-8", "surrogateescape").splitlines()
    check(empty_folder, "prepare", lines, multirun=True)


@fuzz(120)
@given(TEXT)
def test_any_text(empty_folder: Path, text: str) -> None:
    check(empty_folder, "prepare", [text])


@fuzz(50)
@given(st.sampled_from(TASKS), st.lists(overrides(), min_size=1, max_size=3), st.booleans())
def test_overrides(empty_folder: Path, task: str, given_overrides: list[str], multirun: bool) -> None:
    check(empty_folder, task, given_overrides, multirun=multirun)
