"""Every mistake on the command line is one line, exit code 2, and nothing on disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from binventory.cli import app
from binventory.config.capture import to_plain
from binventory.config.check import PATH_KEYS, SCHEMAS, check_config
from binventory.config.compose import compose_checked
from binventory.config.schema import declared
from binventory.errors import ConfigError
from binventory.launch.entry import main
from binventory.tracking.run_folder import register_resolvers

# (command line, what the line must say)
MISTAKES = [
    # group choices
    ("model=resent18", ["model=resent18", "did you mean resnet18?"]),
    ("data=abdi", ["data=abdi", "did you mean abid?"]),
    ("debug=quick", ["debug=quick", "choose one of", "fast"]),
    ("trainer=", ["trainer"]),
    ("+model=resnet18", ["+model=resnet18", "without the +"]),
    ("++trainer=cpu", ["++trainer=cpu", "without the +"]),
    ("~model", ["~model", "required", "resnet18"]),
    ("model@net=resnet18", ["model@net"]),
    # keys
    ("data.bach_size=3", ["data.bach_size=3", "did you mean data.batch_size?"]),
    ("lr=0.1", ["lr=0.1", "did you mean optimizer.lr?"]),
    ("modle=resnet18", ["modle=resnet18", "did you mean model?"]),
    ("+data.bach_size=3", ["data.bach_size=3", "did you mean data.batch_size?"]),
    ("++trainer.max_epoch=3", ["trainer.max_epoch=3", "did you mean trainer.max_epochs?"]),
    ("+anything=1", ["anything=1", "no such key"]),
    ("~trainer.max_epochs", ["~trainer.max_epochs", "required"]),
    ("optimizer=adamw optimizer.momentum=0.9", ["optimizer.momentum=0.9", "no such key"]),
    ("objective.label_smothing=0.1", ["did you mean objective.label_smoothing?"]),
    ("data.reader.num_bin=100", ["did you mean data.reader.num_bins?"]),
    ("hydra.sweeep=1", ["hydra.sweeep"]),
    ("--nope", ["--nope", "no such option"]),
    # grammar
    ("data.batch_size=[1", ["data.batch_size=[1", "not a valid override"]),
    ("optimizer.lr", ["optimizer.lr", "not a valid override"]),
    ("data.source=a=b", ["data.source=a=b", "quote"]),
    # types
    ("data.batch_size=many", ["data.batch_size=many", "Integer"]),
    ("trainer.max_epochs=1.5", ["trainer.max_epochs=1.5"]),
    ("data.counts=3", ["data.counts"]),
    ("data.counts=[1,two]", ["data.counts", "two"]),
    ("seed=null", ["seed=None"]),
    ("data.batch_size=${nothing.here}", ["data.batch_size", "nothing.here"]),
    # ranges and choices
    ("seed=-1", ["seed=-1", "at least 0"]),
    ("optimizer.lr=0", ["optimizer.lr=0", "above 0"]),
    ("optimizer.lr=nan", ["optimizer.lr=nan"]),
    ("data.val_fraction=1", ["data.val_fraction=1", "below 1"]),
    ("data.hflip=nan", ["data.hflip=nan"]),
    ("data.split=groupd", ["data.split=groupd", "did you mean grouped?"]),
    ("model.finetune=all", ["model.finetune=all", "full, head, last_stage"]),
    ("trainer.precision=bf16", ["trainer.precision=bf16", "bf16-mixed"]),
    # paths
    ("resume=", ["resume=''", "empty path"]),
    ("resume_sweep=", ["resume_sweep=''", "empty path"]),
    ("-m init_from='',auto", ["init_from=''", "empty path"]),
    ("hydra.run.dir=", ["hydra.run.dir=''", "empty path"]),
    ("-m hydra.sweep.dir=", ["hydra.sweep.dir=''", "empty path"]),
    ("-m hydra.sweep.subdir=", ["hydra.sweep.subdir=''", "empty path"]),
    ("--config-dir=", ["--config-dir=''", "empty path"]),
    ("paths.output_dir=null", ["paths.output_dir=null", "needs a path"]),
    ("init_from=~/nowhere", ["init_from=/", "/nowhere", "no such file"]),
    ("paths.cache_dir=~no-such-user/x", ["paths.cache_dir=~no-such-user/x", "no home folder", "./~"]),
    # values against each other
    ("trainer=gpu", ["trainer.accelerator=gpu", "no GPU", "trainer=cpu"]),
    ("data.image_size=16", ["data.image_size=16", "stride", "32"]),
    ("trainer=ddp_cpu data.batch_size=3", ["data.batch_size=3", "2 devices", "take 2"]),
    ("trainer.devices=2", ["trainer.strategy=auto", "ddp"]),
    ("trainer.num_nodes=2 trainer.strategy=ddp", ["trainer.num_nodes=2", "this machine"]),
    ("trainer.sync_batchnorm=true", ["trainer.sync_batchnorm", "GPU"]),
    ("trainer.precision=16-mixed", ["trainer.precision=16-mixed", "GPU"]),
    ("trainer.accelerator=auto trainer.precision=16-mixed", ["trainer.precision=16-mixed", "needs a GPU"]),
    ("data.counts=[3]", ["data.counts=[3]", "at least two"]),
    ("data.counts=[2,1]", ["data.counts=[2, 1]", "ascending"]),
    ("data.counts=[1,1]", ["data.counts=[1, 1]", "different"]),
    ("data.val_fraction=0", ["objective_metric=val/accuracy", "data.val_fraction=0"]),
    ("objective_metric=test/accuracy", ["objective_metric=test/accuracy", "test set"]),
    ("objective_metric=val/acuracy", ["did you mean val/accuracy?"]),
    ("objective_metric=null callbacks.early_stopping.patience_epochs=3", ["patience_epochs", "objective_metric"]),
    ("data.split_list=pyproject.toml", ["data.split_list"]),
    ("data.file_list=nowhere.json", ["data.file_list=nowhere.json", "no such file"]),
    ("model.weights=nowhere.pth", ["model.weights=nowhere.pth", "no such file"]),
    ("init_from=nowhere", ["init_from=nowhere", "no such file or folder"]),
    ("scheduler.warmup_epochs=50", ["scheduler.warmup_epochs=50", "trainer.max_epochs"]),
    ("model.name=resnet19", ["model.name=resnet19", "did you mean resnet18?"]),
    ("optimizer._target_=torch.optim.RMSprp", ["did you mean RMSprop?"]),
    ("objective._target_=binventory.objectives.nothing.Here", ["objective._target_"]),
    ("data=imagefolder", ["data.source", "no value is set"]),
    ("debug=null", ["debug=null", "~debug"]),
    ("model=null", ["model=null", "resnet18"]),
    ("logger=null", ["logger=null", "csv"]),
    ("-m debug=fast,null", ["debug=null"]),
    ("optimizer.momentum=0", ["optimizer.momentum=0", "nesterov=false"]),
    ("optimizer=adamw optimizer.betas=[2,3]", ["optimizer.betas=[2, 3]", "below 1"]),
    ("optimizer=adamw optimizer.betas=[0.9]", ["optimizer.betas=[0.9]", "two values"]),
    ("optimizer.lr=inf", ["optimizer.lr=inf", "finite"]),
    ("optimizer=adamw optimizer._target_=torch.optim.Adam optimizer.betas=0.9", ["optimizer.betas=0.9", "two values"]),
    ("optimizer=adamw optimizer._target_=torch.optim.Adam optimizer.lr=-1", ["Adam", "Invalid learning rate: -1"]),
    ("optimizer._target_=.foo.bar", ["optimizer._target_=.foo.bar"]),
    ("optimizer._target_=builtins.dict", ["optimizer._target_=builtins.dict"]),
    ("data.file_list=reprot", ["data.file_list=reprot", "no such file"]),
    ("data.split_list=http://example.com/list.json data.split=report", ["data.split_list: http://", "write https://"]),
    (
        "data.file_list='https://me:pass@example.com/list.json'",
        ["data.file_list: https://example.com/list.json: a user"],
    ),
    ("data.file_list='https://example.com:port/'", ["data.file_list: https://example.com:port/: is no URL"]),
    ("data.file_list=" + 5000 * "x", ["data.file_list=xxx", "too long"]),
    ("paths.output_dir=/dev/null/x", ["paths.output_dir=/dev/null/x", "/dev/null is no folder"]),
    ("data=abid data.source=nowhere", ["data.source=nowhere", "no such file or folder"]),
    ("model=resnet18 model.weights=resnet18.tv_in2k", ["resnet18.tv_in2k", "did you mean resnet18.tv_in1k?"]),
    ("model.name=vit_tiny_patch16_224", ["data.image_size=64", "data.image_size=224"]),
    # sweeps
    ("seed=0,1", ["seed=0,1", "add -m"]),
    ("-m model=glob(nothing*)", ["model=glob(nothing*)", "empty sweep"]),
    # among good ones
    ("-m model=resnet18,resent18", ["model=resent18", "did you mean resnet18?"]),
    ("-m data.batch_size=8,16,x", ["data.batch_size=x"]),
    ("-m seed=0,1 optimizer.lr=interval(0,1)", ["optimizer.lr=0"]),
    ("-m seed=range(0,100) data.batch_size=8,0", ["data.batch_size=0", "at least 1"]),
    ("--cfg job data.bach_size=3", ["did you mean data.batch_size?"]),
    ("check=true data.bach_size=3", ["did you mean data.batch_size?"]),
    ("--config-path=nowhere", ["--config-path=nowhere", "--config-dir"]),
    ("--experimental-rerun=config.pickle", ["--experimental-rerun", "pickle"]),
    ("--config-name=trian", ["trian"]),
    ("--config-dir=nowhere", ["--config-dir=nowhere", "no such folder"]),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=[line[:60] for line, _ in MISTAKES])
def test_mistake_is_one_line(
    line: str, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main("train", line.split())
    captured = capsys.readouterr()
    assert exit_.value.code == 2, captured
    assert captured.err.count("\n") == 1, captured.err
    for part in said:
        assert part in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == [], "something was written although nothing ran"


@pytest.mark.parametrize(
    ("task", "line", "said"),
    [
        ("predict", "input=photos", ["run", "no value is set"]),
        ("predict", "run=nowhere input=photos", ["run=nowhere", "no such file or folder"]),
        ("predict", "run=. input=photos batchsize=3", ["did you mean batch_size?"]),
        ("predict", "run=. input=photos accelerator=gpu", ["no GPU"]),
        ("evaluate", "run=.", ["source", "no value is set"]),
        ("prepare", "layout=folders", ["layout=folders", "imagefolder"]),
        ("prepare", "model=resnet18", ["model=resnet18", "no such key"]),
    ],
)
def test_mistake_in_other_tasks(
    task: str,
    line: str,
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(task, line.split())
    captured = capsys.readouterr()
    assert exit_.value.code == 2, captured
    assert captured.err.count("\n") == 1, captured.err
    for part in said:
        assert part in captured.err
    assert list(tmp_path.iterdir()) == []


def test_check_prints_the_config_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main("train", ["check=true", "model=resnet50", "data.batch_size=12"])
    captured = capsys.readouterr()
    assert exit_.value.code == 0
    assert "name: resnet50" in captured.out
    assert "batch_size: 12" in captured.out
    assert "hydra" not in captured.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"# @package _global_\ndefaults:\n  - override /nope: x\n", "nope"),
    ],
)
def test_broken_config_file_is_one_line(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_bytes(content)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SystemExit) as exit_:
        main("train", ["--config-dir", str(tmp_path / "conf"), "experiment=mine"])
    captured = capsys.readouterr()
    assert exit_.value.code == 2, captured
    assert captured.err.count("\n") == 1, captured.err
    assert said in captured.err
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("task", PATH_KEYS)
def test_no_path_key_takes_an_empty_value_and_all_know_the_home(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    needs = {"s3_uri": "s3://bucket", "run": ".", "input": ".", "source": "."}
    keys = [name for name in needs if name in declared(SCHEMAS[task])]
    plain = OmegaConf.create(to_plain(compose_checked(task, [f"{key}={needs[key]}" for key in keys])[0]))
    assert {"paths.output_dir", "resume_sweep"} < set(PATH_KEYS[task])
    for key in PATH_KEYS[task]:
        for empty in ("", " ", "\t\n"):
            changed = plain.copy()
            OmegaConf.update(changed, key, empty)
            with pytest.raises(ConfigError, match=rf"^{key}={re.escape(repr(empty))}: is an empty path"):
                check_config(task, changed)
        (tmp_path / "there.pth").touch()
        changed = plain.copy()
        OmegaConf.update(changed, key, "~/there.pth")
        if key not in ("paths.output_dir", "data.split_list"):  # a file is no folder; only split=report has a list
            found = OmegaConf.select(check_config(task, changed), key)
            assert found == str(tmp_path / "there.pth")


def test_home_in_overrides_variables_and_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "it's home, [1]"
    (home / "conf" / "paths").mkdir(parents=True)
    (home / "conf" / "paths" / "mine.yaml").write_text("output_dir: ~/runs\ndata_dir: ~/data\ncache_dir: ~\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("BINVENTORY_CACHE_DIR", "~/cache")
    words = ["paths.output_dir=~", "paths.data_dir='~/a b'"]
    (config,) = compose_checked("train", words)
    assert list(config.paths.values()) == [str(home), str(home / "a b"), str(home / "cache")]
    swept = compose_checked("train", ["paths.data_dir=~/a,b/~,~/${model.name}"], multirun=True)
    assert [each.paths.data_dir for each in swept] == [str(home / "a"), "b/~", str(home / "test_resnet")]
    with pytest.raises(ConfigError, match=r"paths\.cache_dir=null: needs a path"):  # in YAML a bare ~ is null
        compose_checked("train", ["paths=mine"], config_dir="~/conf")
    (config,) = compose_checked("train", ["paths=mine", "paths.cache_dir=x"], config_dir="~/conf")
    assert list(config.paths.values()) == [str(home / "runs"), str(home / "data"), "x"]
    register_resolvers()
    made = Path(OmegaConf.create({"root": "~/runs", "dir": "${run_dir:${root},train}"}).dir)
    assert made.parent == home / "runs" / "train"
    monkeypatch.setenv("BINVENTORY_CACHE_DIR", "")
    with pytest.raises(ConfigError, match="BINVENTORY_CACHE_DIR is set to it"):
        compose_checked("train", [])


@pytest.mark.parametrize(
    "line",
    [
        "compare|", "compare|x|--html|", "compare| ", "cache|list|--cache-dir|", "cache|prune|--cache-dir|~no-such-user",
        "sagemaker|attach|", "wandb|sync|", "evaluate||source=x", "benchmark|--json|", "benchmark|--config-dir|",
        "sagemaker|local|--folder|",
    ],
)  # fmt: skip
def test_paths_of_the_command_are_as_those_of_configs(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, line.split("|"))
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
