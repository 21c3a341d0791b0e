"""Secrets are planted wherever a user may give them; then every byte that the runs wrote and said is searched for them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from binventory.launch.entry import main
from tests.running import ROOT, TINY, run_here
from tests.s3 import draw_bins, upload

ENVIRONMENT = {
    "WANDB_API_KEY": "f00dfeed" * 5,
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED12",
    "AWS_SECRET_ACCESS_KEY": "/pLaNt/Ed+SeCrEtAcCeSsKeY0123456789abcdE",  # pragma: allowlist secret
    "AWS_SESSION_TOKEN": "PlAnTeDsEsSiOnToKeN//////wEaDGV4YW1wbGU=",
    # These are read by the config itself.
    "KAGGLE_KEY": "plantedkagglekey",
    "PGPASSWORD": "pg!plant",
    "PIN": "8375520946",
    "NEUTRAL": "plantedneutral",
}
URL = "https://giver:plantedurlpassword@h.example.org/a?X-Amz-Signature=plantedsignature&x=1"
PLANTED = [
    *ENVIRONMENT.values(), "plantedurlpassword", "plantedsignature", "plantedapikey", "plantedendpointpassword",
    "plantedgitpassword",
]  # fmt: skip
KEYED = [
    "+logger.mine={_target_:tests.security.own.KeyedLogger,url:'"
    + URL
    + "',api_key:plantedapikey,pin:{a:'${oc.env:KAGGLE_KEY}',b:['x-${oc.env:PGPASSWORD}',${logger.mine.more}],c:'${oc.decode:${oc.env:PIN}}'},"
    + "more:{note:'${oc.env:NEUTRAL}'}}",
]
FAILING = """
_target_: tests.security.own.FailingObjective
upload_url: ???
"""


def forms(secret: str) -> set[bytes]:
    """A secret as it is, percent-encoded, in JSON and in base64."""
    texts = {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1], secret.replace("/", "\\/")}
    return {text.encode() for text in texts} | {base64.b64encode(secret.encode())}


def everything_written(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file and folder, what Parquet compresses among it."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if relative.parts[0] in (".git", "bucket", "my"):
            continue
        yield f"the name {relative}", os.fsencode(relative)
        if path.is_file():
            yield str(relative), path.read_bytes()
        if path.suffix == ".parquet":
            yield f"the cells of {relative}", str(pq.read_table(path).to_pylist()).encode()


@pytest.fixture
def place(tmp_path: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose remote has a password, a private bucket, and all secrets in the environment."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (
        ["init", "-q"],
        ["remote", "add", "origin", "https://giver:plantedgitpassword@git.example.org/x.git"],
        ["commit", "-q", "--allow-empty", "-m", "start"],
    ):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    draw_bins(tmp_path / "bucket", {f"{100_000 + 10 * number}": number % 2 + 1 for number in range(40)})
    upload(s3_server, "private", tmp_path / "bucket")
    (tmp_path / "my" / "objective").mkdir(parents=True)
    (tmp_path / "my" / "objective" / "failing.yaml").write_text(FAILING)
    return tmp_path


def test_no_secret_is_written_or_said(
    place: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint_url = s3_server.replace("//", "//giver:plantedendpointpassword@")
    private = ["s3=credentials", "s3.region=us-east-1", f"s3.endpoint_url='{endpoint_url}'"]
    source = ["data=abid", "data.source=s3://private", "data.counts=[1,2]", *private]
    training = [*source, *TINY[2:], "trainer.max_epochs=1", "debug=fast", *KEYED]

    prepared = run_here(place, "prepare", *source)
    assert json.loads((prepared / "summary.json").read_text())["total"] == 40

    # A process of its own: Hydra says the overrides before any job starts.
    sweep = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", *training, "trainer=ddp_cpu", "seed=0"],
        cwd=place, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert sweep.returncode == 0, sweep.stderr
    (trained,) = place.glob("outputs/sweeps/*/0")
    assert "<redacted>" in (trained / "job.json").read_text()
    assert (trained.parent / "multirun.yaml").exists()

    predicted = run_here(place, "predict", f"run={trained}", "input=s3://private", *private)
    assert (predicted / "predictions.csv").read_text().count("\n") == 41

    monkeypatch.chdir(place)
    failing = [
        "--config-dir=my",
        "objective=failing",
        f"objective.upload_url='{URL}'",
        "logger=[csv,tensorboard,wandb]",
    ]
    for task, overrides, code in (
        ("train", [*training, *failing], 1),
        ("prepare", ["data=abid", f"data.source='{URL}'"], 2),
        ("prepare", [*source, "data.source='s3://private/x?X-Amz-Signature=plantedsignature'"], 2),
        ("prepare", [*source, "s3.endpoint_url='htp:/giver:plantedendpointpassword@h'"], 2),
        ("train", [*TINY, "+logger.wandb.api_key=plantedapikey"], 2),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(task, overrides)
        assert exit_.value.code == code
    (failed,) = (json.loads(path.read_text())["error"] for path in place.glob("outputs/train/*/status.json"))
    assert failed["type"] == "RuntimeError"
    assert "cannot upload to https://<redacted>@h.example.org" in failed["traceback"]

    said = capfd.readouterr()
    sources = [
        *everything_written(place), ("stdout", said.out.encode()), ("stderr", said.err.encode()),
        ("stdout of the sweep", sweep.stdout.encode()), ("stderr of the sweep", sweep.stderr.encode()),
    ]  # fmt: skip
    assert {Path(name).suffix for name, _ in sources} >= {
        ".log",
        ".wandb",
        ".parquet",
        ".ckpt",
        ".json",
        ".yaml",
        ".csv",
    }
    leaks = sorted(
        {
            f"{secret} in {name}"
            for secret in PLANTED
            for form in forms(secret)
            for name, content in sources
            if form in content
        }
    )
    assert not leaks, "\n".join(leaks[:20])
