"""Jobs from their start to their end, run by the real toolkit."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from binventory.sagemaker.local.server import LocalSageMaker
from tests.sagemaker.local.conftest import CACHE, TIME_SCALE
from tests.sagemaker.local.lab import BUCKET, MARK, Lab, marked_processes, states, wait_until

pytestmark = pytest.mark.long

LOOK = """
photos = Path(os.environ["SM_CHANNEL_PHOTOS"])
say("seen", {
    "argv": sys.argv[1:], "cwd": os.getcwd(), "host": socket.gethostname(), "model": str(model),
    "names": sorted(str(path.relative_to(photos)) for path in photos.rglob("*") if path.is_file()),
    "a": (photos / "a.txt").read_text(), "spec": json.loads(os.environ["SM_CHANNEL_SPEC"] and
        (Path(os.environ["SM_CHANNEL_SPEC"]) / "job.json").read_text()),
    "sm": {key: os.environ.get(key) for key in ("SM_HPS", "SM_CHANNELS", "SM_HOSTS", "SM_CURRENT_HOST", "TRAINING_JOB_NAME")},
    "mine": os.environ.get("MINE"), "home": os.listdir(os.environ["HOME"]),
})
(model / "weights").mkdir()
(model / "weights" / "w.bin").write_text("weights")
print("one line")
print("another line", file=sys.stderr)
"""


def test_a_job_that_completes(lab: Lab, namespaces: None) -> None:
    lab.put("specs/job.json", '{"lr": 0.1}')
    lab.put("specs/job.json.bak", "a key that has the same prefix")
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/specs/job.json"}
    request = lab.request("whole", Environment={"MINE": "yes"})
    request["InputDataConfig"].append(
        {"ChannelName": "spec", "InputMode": "FastFile", "DataSource": {"S3DataSource": source}}
    )
    request["HyperParameters"]["note"] = "a b"
    described = lab.run(request, LOOK)
    assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
    assert states(described) == ["Starting", "Pending", "Downloading", "Training", "Uploading", "Completed"]
    assert described["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{BUCKET}/out/whole/output/model.tar.gz"
    moments = [
        moment for step in described["SecondaryStatusTransitions"] for moment in (step["StartTime"], step["EndTime"])
    ]
    assert moments == sorted(moments)
    assert described["CreationTime"] <= described["TrainingStartTime"] < described["TrainingEndTime"]
    assert described["BillableTimeInSeconds"] == described["TrainingTimeInSeconds"] >= 0.3 * TIME_SCALE
    assert lab.unpacked("whole", "model.tar.gz") == {"weights/w.bin": "weights"}
    assert not [line for line in lab.log("whole") for key in lab.plane.keys if key in line]
    assert not [path for path in lab.plane.folder.rglob("*.json") for key in lab.plane.keys if key in path.read_text()]
    assert (lab.plane.folder / "jobs").stat().st_mode & 0o777 == 0o700

    seen = json.loads(lab.unpacked("whole", "output.tar.gz")["seen.json"])
    assert seen["argv"] == ["--note", "a b"]
    assert (seen["cwd"], seen["model"], seen["host"]) == ("/opt/ml/code", "/opt/ml/model", "algo-1")
    assert (seen["names"], seen["a"], seen["spec"]) == (["a.txt", "deep/b.txt"], "alpha", {"lr": 0.1})
    assert seen["sm"] == {
        "SM_HPS": '{"note":"a b"}',
        "SM_CHANNELS": '["photos","spec"]',
        "SM_HOSTS": '["algo-1"]',
        "SM_CURRENT_HOST": "algo-1",
        "TRAINING_JOB_NAME": "whole",
    }
    assert (seen["mine"], seen["home"]) == ("yes", [])
    assert {"one line", "another line"} <= set(lab.log("whole"))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sys.exit(3)", "AlgorithmError: ExecuteUserScriptError:\nExitCode 3"),
        ("Path(model.parent, 'output', 'failure').write_text('bad lr ' + 'x' * 3000); sys.exit(3)", "AlgorithmError: bad lr xxx"),
    ],
    ids=["exit", "failure-file"],
)  # fmt: skip
def test_a_job_that_fails(lab: Lab, script: str, said: str, request: pytest.FixtureRequest) -> None:
    name = f"fails-{len(said)}"
    described = lab.run(lab.request(name), f"say('partial', 1)\n{script}")
    assert described["TrainingJobStatus"] == described["SecondaryStatus"] == "Failed"
    assert states(described)[-3:] == ["Training", "Uploading", "Failed"]
    reason = described["FailureReason"]
    assert reason.startswith(said)
    assert reason.endswith(", exit code: 1")
    assert len(reason) <= 1024
    assert (len(reason) == 1024) is ("xxx" in said)
    assert lab.unpacked(name, "output.tar.gz") == {"partial.json": "1"}
    assert "ModelArtifacts" not in described
    assert lab.keys(f"out/{name}/output/") == ["output.tar.gz"]


STOPS_WELL = """
def stop(*_):
    (model / "last").write_text("saved at the end")
    time.sleep(0.3)
    (checkpoints / "late").write_text("also saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("I am here")
(checkpoints / "ready").touch()
while True: time.sleep(0.05)
"""


def test_stop(lab: Lab) -> None:
    name = lab.start(lab.spot("stopped"), STOPS_WELL)
    lab.wait_for_training(name)
    wait_until(lambda: "I am here" in lab.log(name))
    assert lab.job(name).status == "InProgress"
    lab.sagemaker.stop_training_job(TrainingJobName=name)
    assert lab.sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobStatus"] in ("Stopping", "Stopped")
    described = lab.finish(name)
    assert described["TrainingJobStatus"] == described["SecondaryStatus"] == "Stopped"
    assert states(described)[-4:] == ["Training", "Stopping", "Uploading", "Stopped"]
    assert lab.unpacked(name, "model.tar.gz") == {"last": "saved at the end"}
    assert lab.keys(f"checkpoints/{name}/") == ["late", "ready"]


STUBBORN = """
code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(%r, 'w'); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code % str(checkpoints / "child")], start_new_session=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while not (checkpoints / "child").exists(): time.sleep(0.02)
(checkpoints / "ready").touch()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def plain_lab(toolkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A system that allows no namespaces."""
    folder = tmp_path_factory.mktemp("plain")
    settings: dict[str, Any] = {"time_scale": TIME_SCALE, "checkpoint_period_s": 0.1, "namespaces": False}
    with LocalSageMaker(folder, cache=CACHE, environment={MARK: str(folder)}, **settings) as plane:
        yield Lab(plane)
    assert marked_processes(str(folder)) == []


@pytest.mark.parametrize("kind", ["lab", "plain_lab"])
def test_what_ignores_sigterm_is_killed_after_the_grace(request: pytest.FixtureRequest, kind: str) -> None:
    """The script's child has left the process group, so only the container's end reaches it."""
    lab: Lab = request.getfixturevalue(kind)
    mark = str(lab.plane.folder)
    name = lab.start(lab.spot("stubborn"), STUBBORN)
    lab.wait_for_training(name)
    assert len(marked_processes(mark)) >= 3  # train, the script, its child
    lab.sagemaker.stop_training_job(TrainingJobName=name)
    described = lab.finish(name, timeout_s=20)
    assert marked_processes(mark) == []
    stopping, uploading = described["SecondaryStatusTransitions"][-3:-1]
    waited_s = (uploading["StartTime"] - stopping["StartTime"]).total_seconds()
    assert 0.95 * 120 / TIME_SCALE < waited_s < 10


def test_closing_leaves_nothing(toolkit: Path, tmp_path: Path, namespaces: None) -> None:
    """Neither process nor mount nor file; and nothing waits for the grace of two minutes."""
    mark, opt = str(tmp_path), set(Path("/opt").iterdir())
    with LocalSageMaker(cache=CACHE, checkpoint_period_s=0.1, environment={MARK: mark}) as plane:
        lab = Lab(plane)
        lab.start(lab.spot("stubborn"), STUBBORN)
        lab.wait_for_training("stubborn")
        folder, began = plane.folder, time.monotonic()
    assert time.monotonic() - began < 15
    assert marked_processes(mark) == []
    assert not folder.exists()
    assert set(Path("/opt").iterdir()) == opt
    assert "/opt/ml" not in Path("/proc/self/mountinfo").read_text()


def wheel(name: str, version: str) -> bytes:
    """A package of one empty module."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path, text in (files | {f"{info}/RECORD": record + f"{info}/RECORD,,\n"}).items():
            archive.writestr(path, text)
    return content.getvalue()


def test_requirements_are_installed_for_this_job_alone(lab: Lab, toolkit: Path, tmp_path: Path) -> None:
    """What is there already is taken; what is not comes from where pip's own variables say; neither needs a network."""
    (tmp_path / "tinypkg-1.0-py3-none-any.whl").write_bytes(wheel("tinypkg", "1.0"))
    request = lab.request("required", Environment={"PIP_FIND_LINKS": str(tmp_path)})
    script = "import tinypkg, numpy; say('where', [tinypkg.__file__, numpy.__file__])"
    described = lab.run(request, script, {"requirements.txt": "numpy\ntinypkg==1.0\n"})
    assert described["TrainingJobStatus"] == "Completed", described["FailureReason"]
    where = lab.unpacked("required", "output.tar.gz")["where.json"]
    assert "/packages/" in where
    assert not list(toolkit.parent.parent.rglob("tinypkg*"))


MEET = """
me = os.environ["SM_CURRENT_HOST"]
other = next(host for host in json.loads(os.environ["SM_HOSTS"]) if host != me)
server = socket.create_server((me, 7777))
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    try:
        with socket.create_connection((other, 7777), timeout=5) as connection:
            connection.sendall(me.encode())
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
connection, _ = server.accept()
say(me, {"heard": connection.recv(100).decode(), "host": socket.gethostname(),
         "same_folder": sorted(path.name for path in model.iterdir()),
         "photos": sorted(path.name for path in Path(os.environ["SM_CHANNEL_PHOTOS"]).rglob("*.txt"))})
(model / me).write_text(me)
(model / "both").write_text(me)
"""


def test_two_hosts_meet_by_name(lab: Lab, namespaces: None) -> None:
    request = lab.request("pair")
    request["ResourceConfig"]["InstanceCount"] = 2
    request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3DataDistributionType"] = "ShardedByS3Key"
    described = lab.run(request, MEET)
    assert described["TrainingJobStatus"] == "Completed", described["FailureReason"]
    said = {name: json.loads(text) for name, text in lab.unpacked("pair", "output.tar.gz").items()}
    assert said == {
        "algo-1.json": {"heard": "algo-2", "host": "algo-1", "same_folder": [], "photos": ["a.txt"]},
        "algo-2.json": {"heard": "algo-1", "host": "algo-2", "same_folder": [], "photos": ["b.txt"]},
    }
    assert lab.unpacked("pair", "model.tar.gz") == {"algo-1": "algo-1", "algo-2": "algo-2", "both": "algo-1"}


def test_one_failing_host_ends_the_other(lab: Lab, namespaces: None) -> None:
    request = lab.request("half")
    request["ResourceConfig"]["InstanceCount"] = 2
    script = "sys.exit(5) if os.environ['SM_CURRENT_HOST'] == 'algo-2' else time.sleep(600)"
    described = lab.run(request, script)
    assert "ExitCode 5" in described["FailureReason"]


def test_without_namespaces(plain_lab: Lab) -> None:
    described = plain_lab.run(plain_lab.request("plain"), "say('at', [str(model), os.environ['SM_HOSTS']])")
    assert described["TrainingJobStatus"] == "Completed", described["FailureReason"]
    said = plain_lab.unpacked("plain", "output.tar.gz")["at.json"]
    assert str(plain_lab.plane.folder / "jobs" / "plain") in said
    assert "localhost" in said
    two = plain_lab.request("two")
    two["ResourceConfig"]["InstanceCount"] = 2
    with pytest.raises(
        ClientError, match=r"ResourceConfig.InstanceCount 2: this system allows no private mount namesp"
    ):
        plain_lab.sagemaker.create_training_job(**two)
