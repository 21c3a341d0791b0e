"""What a config from a file may name: nothing outside the list is imported, let alone called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from binventory.config.capture import to_plain
from binventory.config.compose import compose_checked
from binventory.config.targets import ALLOW_VARIABLE, KNOWN, check_overrides, check_targets, check_task, targets_of
from binventory.errors import InputError
from tests.running import ROOT

HOSTILE = [
    # modules that can do anything
    "os.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "importlib.import_module", "shutil.rmtree",
    "pickle.loads", "torch.load", "torch.hub.load", "hydra.utils.instantiate", "hydra.utils.get_method", "os.mkdir",
    # what a module of ours imports is an attribute of it
    "binventory.data.sources.table.os.system", "binventory.data.sources.table.os", "binventory.data.sources.s3.os.system",
    "binventory.data.sources.table.re.compile", "binventory.data.sources.table.Path", "binventory.data.sources.s3.threading",
    "binventory.data.sources.importlib.import_module", "binventory.objectives.import_target",
    "binventory.objectives.classification.torch.load", "binventory.objectives.classification.torch",
    "binventory.objectives.classification.nn.Module", "binventory.models.schedules.LambdaLR",
    "binventory.models.schedules.math.sqrt", "binventory.models.schedules.math", "binventory.models.backbones.read_weights",
    "torch.optim.lr_scheduler.partial", "torch.optim.lr_scheduler.Counter", "torch.optim.lr_scheduler.Tensor",
    "torch.optim.lr_scheduler.types", "torch.optim.lr_scheduler.warnings.warn", "torch.optim.optimizer.torch.load",
    "torch.optim.swa_utils.update_bn", "pytorch_lightning.loggers.logger.os", "pytorch_lightning.Trainer",
    "pytorch_lightning.loggers.wandb.os.system",
    # functions of ours, private names, methods
    "binventory.data.sources.mirror.download", "binventory.data.sources.mirror._make_folders", "binventory.files.write_text",
    "binventory.data.sources.table._read_bytes", "binventory.data.sources.s3.read_object", "binventory.tasks.train.run",
    "binventory.data.sources.table.TableSource.fetch", "binventory.data.sources.table.TableSource.__init__",
    "binventory.objectives.classification.Classification.__class__", "binventory.objectives.__builtins__.eval",
    "binventory.objectives.classification.__loader__", "torch.optim.SGD.__init_subclass__", "torch.optim._multi_tensor",
    "torch.optim.lr_scheduler._SchedulePhase",
    # names that are no names
    "", ".", "os", "torch.optim", "torch.optim.", "torch.optim..SGD", ".torch.optim.SGD", "torch.optim.SGD.", "torch.optim.SGD ",
    "torch.optim.SGD\n", "torch.optim.\uff33\uff27\uff24", "binventory.objectives.../evil.Evil", "binventory.objectives./tmp/evil.Evil",
    "binventory.objectives_evil.Evil", "binventory.data.sources_evil.Evil", "binventory.objectives.no_such.Evil",
    "binventory.data.sources.table:TableSource", "${oc.env:HOME}", "torch.optim.${x}", "\x1b]0;title\x07os.system",
]  # fmt: skip
PLACES: list[Any] = [
    lambda target: {"objective": {"_target_": target}},
    lambda target: {"optimizer": {"_target_": "torch.optim.SGD", "lr": {"_target_": target, "_partial_": True}}},
    lambda target: {"logger": {"a": {"tags": ["x", [{"deep": {"_target_": target, "_args_": ["touch x"]}}]]}}},
]


@pytest.mark.parametrize("target", HOSTILE)
def test_hostile_names_are_refused(target: str) -> None:
    for place in PLACES:
        with pytest.raises(InputError) as error:
            check_targets(place(target), "sent/config.yaml")
        said = str(error.value)
        assert said.startswith("sent/config.yaml: ")
        assert "_target_" in said
        assert repr(target) in said, "escape sequences are shown, not sent to the terminal"
        assert ALLOW_VARIABLE in said


@pytest.mark.parametrize("value", [None, 3, ["os.system"], {"_target_": "os.system"}, True])
def test_a_target_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="_target_"):
        check_targets({"objective": {"_target_": value}}, "config.yaml")


def test_nothing_is_imported_for_a_name_that_is_refused(tmp_path: Path) -> None:
    """Neither the module it names nor, while one name of the file is bad, that of a good one; in a fresh process."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from binventory.config.targets import check_targets, check_task\n"
        "from binventory.errors import InputError\n"
        "refused = 0\n"
        "for target in ('evil.Evil', 'evil.x.Evil', 'binventory.objectives.evil.Evil'):\n"
        "    try: check_targets({'a': {'_target_': target}, 'b': {'_target_': 'torch.optim.Adam'}, 'c': {'_target_': 'evil.E'}}, 'f')\n"
        "    except InputError: refused += 1\n"
        "for task in ('evil:run', 'binventory.tasks.evil:run', 'binventory.tasks.train:evil', 'os:system'):\n"
        "    try: check_task(task, 'f')\n"
        "    except InputError: refused += 1\n"
        "print(refused, 'evil' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    assert done.stdout.split() == ["7", "False", "False"], done.stderr
    assert not (tmp_path / "canary").exists()


def test_what_belongs_in_a_config_is_allowed() -> None:
    allowed = [
        *KNOWN, "torch.optim.Adam", "torch.optim.RMSprop", "torch.optim.lr_scheduler.StepLR",
        "torch.optim.lr_scheduler.CosineAnnealingLR", "pytorch_lightning.loggers.CSVLogger",
        "pytorch_lightning.loggers.TensorBoardLogger",
    ]  # fmt: skip
    for target in allowed:
        check_targets({"x": {"_target_": target}}, "config.yaml")


@pytest.mark.parametrize("task", ["train", "predict", "evaluate", "prepare"])
def test_composed_configs_and_their_tasks_are_allowed(task: str) -> None:
    needed = {"predict": ["run=.", "input=."], "evaluate": ["run=.", "source=."]}
    loggers = ["logger=[csv,tensorboard,wandb]"] if task == "train" else []
    plain = to_plain(compose_checked(task, [*needed.get(task, []), *loggers])[0])
    check_targets(plain, "config.yaml")
    check_task(f"binventory.tasks.{task}:run", "job.json")
    assert targets_of(plain) <= KNOWN.keys()
    assert len(targets_of(plain)) == {"train": 6, "prepare": 1}.get(task, 0)


@pytest.mark.parametrize(
    ("allowed", "target", "is_allowed"),
    [
        ("mine.Objective", "mine.Objective", True),
        ("mine.Objective", "mine.ObjectiveToo", False),
        ("mine.Objective", "mine.Objective.more", False),
        ("mine.", "mine.deep.Objective", True),
        ("mine.", "mine_too.Objective", False),
        ("mine", "mine.Objective", False),
        (" other.X , mine. ", "mine.Objective", True),
        ("", "mine.Objective", False),
        (".", "mine.Objective", False),
        (",,.,", "", False),
    ],
)
def test_the_variable_extends_the_list(
    allowed: str, target: str, is_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOW_VARIABLE, allowed)
    if is_allowed:
        check_targets({"a": [{"_target_": target}]}, "config.yaml")
        check_task(":".join(target.rsplit(".", 1)), "job.json")
    else:
        with pytest.raises(InputError):
            check_targets({"a": [{"_target_": target}]}, "config.yaml")


@pytest.mark.parametrize(
    "task",
    ["os:system", "binventory.tasks.train:os", "binventory.tasks.train.os:system", "binventory.tasks.:run", "binventory.tasks.train",
     "binventory.launch.runner:execute", "binventory.tasks.no_such:run", "", ":", "binventory.tasks.train:run:run", "train:run"],
)  # fmt: skip
def test_hostile_tasks_are_refused(task: str) -> None:
    with pytest.raises(InputError, match=r"job\.json: task="):
        check_task(task, "job.json")


@pytest.mark.parametrize(
    "override",
    [
        "hydra.run.dir=/tmp/x", "+hydra.callbacks.x._target_=os.system", "hydra/launcher=evil", "hydra.searchpath=[file:///tmp]",
        "++hydra.job.env_set.PATH=x", "~hydra.job", "hydra.job.chdir=true", "objective._target_=os.system", "+x={_target_:os.system}",
        "optimizer={_target_:torch.optim.SGD,lr:{_target_:os.system}}", "+a.b.c._target_='os.system'", "data.source=${oc.env:HOME}",
        "s3.endpoint_url='http://x/${oc.env:AWS_SECRET_ACCESS_KEY}'", "+group@hydra:x=y", "no override", "a=[",
    ],
)  # fmt: skip
def test_hostile_overrides_are_refused(override: str) -> None:
    with pytest.raises(InputError, match=r"^provenance\.json: "):
        check_overrides(["seed=1", override], "provenance.json")


def test_overrides_of_an_honest_run_are_allowed() -> None:
    check_overrides(
        ["data=abid", "logger=[csv,wandb]", "data.source='../it\\'s'", "~debug", "+x=1", "optimizer._target_=torch.optim.Adam",
         "data.counts=[1,2,3]", "objective={_target_:binventory.objectives.classification.Classification,label_smoothing:0.1}"],
        "provenance.json",
    )  # fmt: skip


def test_nesting_costs_no_recursion() -> None:
    node: Any = {"_target_": "os.system"}
    for _ in range(20_000):
        node = {"a": [node]}
    with pytest.raises(InputError, match=r"os\.system"):
        check_targets(node, "config.yaml")
