"""What must answer in about a second: help, --cfg job, tab completion, mistakes. None of them may import torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT

PROBE = """
import atexit, runpy, sys
heavy = ("torch", "pytorch_lightning", "timm", "torchvision", "sklearn", "pyarrow", "boto3", "wandb")
atexit.register(lambda: print("HEAVY", [name for name in heavy if name in sys.modules], file=sys.stderr))
script, *rest = sys.argv[1:]
sys.argv = [script, *rest]
runpy.run_path(script, run_name="__main__")
"""


def probe(tmp_path: Path, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE, str(ROOT / script), *arguments]
    return subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("script", "arguments", "exit_code", "said"),
    [
        ("train.py", ["--help"], 0, "model: resnet101, resnet18"),
        ("train.py", ["--cfg", "job", "model=resnet50"], 0, "name: resnet50"),
        ("train.py", ["check=true"], 0, "source: synthetic"),
        ("train.py", ["model=resent18"], 2, ""),
        ("train.py", ["objective.label_smothing=1"], 2, ""),
        ("predict.py", ["--help"], 0, "input"),
    ],
)
def test_quick_answers_import_nothing_heavy(
    tmp_path: Path, script: str, arguments: list[str], exit_code: int, said: str
) -> None:
    done = probe(tmp_path, script, *arguments)
    assert done.returncode == exit_code, done.stderr
    assert said in done.stdout
    assert done.stderr.splitlines()[-1] == "HEAVY []"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "offered"), [("mod", "model="), ("model=", "model=resnet50"), ("data.batch", "data.batch_size=")]
)
def test_tab_completion_lists_groups_choices_and_keys(tmp_path: Path, typed: str, offered: str) -> None:
    line = f"python train.py {typed}"
    done = probe(tmp_path, "train.py", "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert offered in done.stdout.split()
    assert list(tmp_path.iterdir()) == []
