"""Bundles and weights that somebody sent: none runs code, each is refused in one line.

The canary is a folder that the code in the file would make.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from binventory.errors import InputError, UserError
from binventory.models.backbones import make_backbone, read_weights
from binventory.serving.bundle import load_bundle
from tests.running import TINY, Run
from tests.security.payload import WRITERS, Payload, as_zip, one_line


def test_the_canary_would_sing(tmp_path: Path) -> None:
    as_zip(tmp_path / "w.pth", Payload(tmp_path / "canary"))
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "canary").is_dir()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("write", WRITERS)
def test_weights_with_code_are_refused(
    write: Callable[[Path, Payload], None], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / f"evil{suffix}"
    write(path, Payload(tmp_path / "canary"))
    with pytest.raises(InputError, match=r"model\.weights=.*cannot read this file as weights") as error:
        read_weights(path)
    one_line(error.value)
    assert not (tmp_path / "canary").exists()


def test_training_from_weights_with_code_is_exit_2(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_zip(tmp_path / "evil.pth", Payload(tmp_path / "canary"))
    with pytest.raises(SystemExit) as exit_:
        run("train", *TINY, f"model.weights={tmp_path / 'evil.pth'}")
    assert exit_.value.code == 2
    assert "cannot read this file as weights" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "canary").exists()


# Bundles


@pytest.fixture
def bundle(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


def described(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change bundle.json, and give it the checksum of the weights as they are now: a stranger can do both."""
    path = bundle / "bundle.json"
    description = json.loads(path.read_text())
    change(description)
    description["weights_sha256"] = hashlib.sha256((bundle / "weights.safetensors").read_bytes()).hexdigest()
    path.write_text(json.dumps(description))


def test_an_untouched_copy_loads(bundle: Path) -> None:
    described(bundle, lambda _: None)
    assert load_bundle(bundle).counts == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(objective={"_target_": "os.mkdir", "path": "canary"}), "os.mkdir"),
        (lambda v: v["objective"].update(_target_="binventory.objectives.classification.torch.load"), "torch.load"),
        (lambda v: v["objective"].update(_target_="binventory.objectives.make_objective"), "make_objective"),
        (lambda v: v["objective"].update(_target_="binventory.data.sources.table.TableSource"), "not a whole description"),
        (lambda v: v["objective"].update(_target_="torch.optim.SGD"), "not a whole description"),
        (lambda v: v["objective"].update(counts=[1]), "not a whole description"),
        (lambda v: v["objective"].update(label_smoothing={"_target_": "os.mkdir", "path": "canary"}), "os.mkdir"),
        (lambda v: v.update(objective=["os.mkdir"]), "not a whole description"),
        (lambda v: v["model"].update(name="evil:evil"), "model.name='evil:evil'"),
        (lambda v: v["model"].update(name="os:system"), "model.name='os:system'"),
        (lambda v: v["model"].update(name="binventory.models.backbones.os:system"), "model.name="),
        (lambda v: v["model"].update(name="binventory.models...cli:main"), "model.name="),
        (lambda v: v["model"].update(name="binventory.tasks.train:run"), "model.name="),
        (lambda v: v["model"].update(name="binventory.models.network:hf-hub:evil/model"), "model.name="),
        (lambda v: v["model"].update(name="hf-hub:evil/model"), "model.name="),
        (lambda v: v["model"].update(name="local-dir:/tmp/evil"), "model.name="),
        (lambda v: v["model"].update(name="hf_hub:evil/model.x"), "model.name="),
        (lambda v: v["model"].update(name="resnet18.x:y"), "model.name="),
        (lambda v: v["model"].update(name="binventory.models.network:resnet18.x:y"), "model.name="),
        (lambda v: v["model"].update(name="../../evil/resnet18"), "model.name="),
        (lambda v: v["model"].update(name="resnet18.no_such_tag"), "resnet18.no_such_tag"),
        (lambda v: v["model"].update(name="\x1b[2Jresnet18"), r"\x1b[2J"),
        (lambda v: v["model"].update(name=None), "not a whole description"),
        (lambda v: v["model"].update(name="resnet50"), "not the weights of this bundle"),
        (lambda v: v.update(model="resnet18"), "not a whole description"),
        (lambda v: v.update(counts=[5, 4]), "not a whole description"),
        (lambda v: v.update(counts=[True, 2]), "not a whole description"),
        (lambda v: v.update(counts=[]), "not a whole description"),
        (lambda v: v.update(counts=[1, 10**400]), "not a whole description"),
        (lambda v: v["preprocessing"].update(image_size=10**9), "not a whole description"),
        (lambda v: v["preprocessing"].update(image_size="64"), "not a whole description"),
        (lambda v: v["preprocessing"].update(resize="os.mkdir"), "not a whole description"),
        (lambda v: v["preprocessing"].update(interpolation=[]), "not a whole description"),
        (lambda v: v["preprocessing"].update(std=[0, 1, 1]), "not a whole description"),
        (lambda v: v["preprocessing"].update(mean=[0.5]), "not a whole description"),
        (lambda v: v["preprocessing"].update(more=1), "not a whole description"),
    ],
)  # fmt: skip
def test_hostile_descriptions_are_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle)
    (bundle / "evil.py").write_text("import os; os.mkdir('canary')\n")
    monkeypatch.syspath_prepend(bundle)
    described(bundle, change)
    with pytest.raises(InputError) as error:
        load_bundle(bundle)
    message = one_line(error.value)
    assert said in message
    assert "bundle.json" in message or said == "not the weights of this bundle"
    assert len(message) < 1000
    assert not (bundle / "canary").exists()


@pytest.mark.parametrize("write", WRITERS)
def test_weights_of_a_bundle_are_no_pickle(bundle: Path, write: Callable[[Path, Payload], None]) -> None:
    write(bundle / "weights.safetensors", Payload(bundle / "canary"))
    described(bundle, lambda _: None)
    with pytest.raises(InputError, match="not the weights of this bundle") as error:
        load_bundle(bundle)
    one_line(error.value)
    assert not (bundle / "canary").exists()


@pytest.mark.parametrize(
    "weights",
    [b"", b"\x00" * 8, b"\xff" * 8, b"\x08" + b"\x00" * 7 + b"{}      ", (2**40).to_bytes(8, "little") + b"{}",
     (60).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999]}}'],
)  # fmt: skip
def test_broken_safetensors_are_one_line(bundle: Path, weights: bytes) -> None:
    (bundle / "weights.safetensors").write_bytes(weights)
    described(bundle, lambda _: None)
    with pytest.raises(InputError, match="not the weights of this bundle") as error:
        load_bundle(bundle)
    one_line(error.value)


@pytest.mark.parametrize(
    "content",
    ['{"format": 1, "a": ' + "[" * 200_000, "[" * 5000 + "]" * 5000, '{"format": ' + "9" * 10_000 + "}", "\ud800"],
)
def test_unreadable_descriptions_are_one_line(bundle: Path, content: str) -> None:
    (bundle / "bundle.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"bundle\.json") as error:
        load_bundle(bundle)
    one_line(error.value)


NAMES = st.text(max_size=30) | st.sampled_from(["resnet18", "binventory.models.", "hf-hub:", "local-dir:", "os", ":", "."]).flatmap(
    lambda start: st.text(alphabet="abco.s:/_-", max_size=12).map(lambda rest: start + rest)
)  # fmt: skip


@settings(
    max_examples=int(os.environ.get("BINVENTORY_FUZZ_EXAMPLES", "200")), deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(name=NAMES)
def test_any_model_name_is_a_model_or_one_line(name: str) -> None:
    """BINVENTORY_FUZZ_EXAMPLES sets how many names are tried."""
    before = set(sys.modules)
    try:
        make_backbone(name, "none", 2)
    except UserError as error:
        one_line(error)
    new = {
        module for module in set(sys.modules) - before if not module.startswith(("timm", "torch", "binventory.models"))
    }
    assert not new, "no name imports a module that has no networks"
