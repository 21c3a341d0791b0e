"""What is wrong with a launch is one line and exit code 2, and leaves nothing behind: no folder, no training job."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from binventory.launch.entry import main
from binventory.sagemaker.local.server import LocalSageMaker
from tests.running import TINY
from tests.sagemaker.put_proxy import PutProxy
from tests.sweeps.running import fails_in_one_line

ROLE = "arn:aws:iam::123456789012:role/bins"
SAGEMAKER = ["-m", "hydra/launcher=sagemaker", *TINY]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSageMaker]:
    """A control plane that runs no job."""
    with LocalSageMaker(tmp_path_factory.mktemp("plane")) as plane:
        plane.client("s3").create_bucket(Bucket="launches")
        yield plane


@pytest.fixture
def aws(api: LocalSageMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalSageMaker:
    """This process's AWS clients, led to that control plane. What is temporary lies below tmp_path."""
    for name, value in api.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("BINVENTORY_SAGEMAKER_ROLE", api.role_arn)
    monkeypatch.setenv("BINVENTORY_SAGEMAKER_S3_URI", "s3://launches/bins")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return api


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *overrides: str) -> str:
    """Return the line; nothing may be left."""
    said = fails_in_one_line(capsys, folder, *overrides)
    assert not list(folder.glob("outputs/sweeps/*"))
    assert not list((folder / "temporary").iterdir())
    return said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hydra.launcher.role_arn=bins"], "hydra.launcher.role_arn=bins: not an IAM role; write arn:aws:iam::"),
        (["hydra.launcher.role_arn='arn:aws:iam::12:role/x'"], "not an IAM role"),
        (["hydra.launcher.role_arn=null"], "hydra.launcher.role_arn: no value is set; add hydra.launcher.role_arn="),
        (["hydra.launcher.s3_uri=null"], "or set BINVENTORY_SAGEMAKER_S3_URI"),
        (["hydra.launcher.s3_uri=launches"], "hydra.launcher.s3_uri=launches: is no S3 URI"),
        (["hydra.launcher.max_runtime_s=0"], "hydra.launcher.max_runtime_s=0: must be above 0"),
        (["hydra.launcher.on_interrupt=leave"], "hydra.launcher.on_interrupt=leave: must be one of stop, detach"),
        (["hydra.launcher.wait=false"], "add hydra.launcher.max_parallel=null"),
        (["hydra.launcher.max_wait_s=10"], "hydra.launcher.max_wait_s=10: only spot jobs wait"),
        (["hydra.launcher.price_per_hour=1"], "only hydra.launcher.dry_run=true reads it"),
        (["+hydra.launcher.environment.WANDB_API_KEY=0123456789abcdef"], "hydra.launcher.environment has WANDB_API_KEY, which looks like a secret"),
        (["+hydra.launcher.secrets.WANDB_API_KEY=0123456789abcdef"], "hydra.launcher.secrets.WANDB_API_KEY holds no ref"),
        (["+hydra.launcher.tags.api_key=0123456789abcdef"], "hydra.launcher.tags has api_key, which looks like a secret"),
        (["resume=auto"], "resume=auto: hydra/launcher=sagemaker goes on with sweeps; give resume_sweep=DIR"),
        pytest.param(["hydra.launcher.dry_run=true", "hydra.launcher.instance_count=2"], "instance_count=2: needs DDP", marks=pytest.mark.long),
        (["hydra.launcher.data=here"], "hydra.launcher.data=here: must be auto, null or s3://"),
        pytest.param(["hydra.launcher.image_uri=null", "hydra.launcher.instance_type=banana"], "AWS has no PyTorch image", marks=pytest.mark.long),
        (["hydra.launcher.source_dir=."], "no checkout of binventory (no pyproject.toml)"),
        pytest.param(["hydra.launcher.s3_uri=s3://nowhere/bins"], "s3://nowhere: no such bucket; check its name, AWS_ENDPOINT_URL_S3", marks=pytest.mark.long),
        pytest.param(["hydra.launcher.max_source_mb=0.1"], "max_source_mb=0.1: the project's", marks=pytest.mark.long),
        (["hydra.launcher.instance_typo=x"], "instance_typo"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_launcher(
    aws: LocalSageMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    line = refused(capsys, tmp_path, *SAGEMAKER, *overrides)
    assert said in line
    assert "0123456789abcdef" not in line
    assert not aws.jobs


def test_without_m_there_is_nothing_to_launch(
    aws: LocalSageMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "add -m" in refused(capsys, tmp_path, *SAGEMAKER[1:])


def test_jobs_of_sagemaker_local_cannot_be_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "temporary").mkdir()
    local = ["-m", "hydra/launcher=sagemaker_local", *TINY, "hydra.launcher.on_interrupt=detach"]
    assert "end with the command that started them" in refused(capsys, tmp_path, *local)


def test_no_region(
    aws: LocalSageMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    assert "hydra.launcher.region: no region is set; add hydra.launcher.region=" in refused(
        capsys, tmp_path, *SAGEMAKER
    )


@pytest.mark.long
def test_no_credentials(
    aws: LocalSageMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    line = refused(capsys, tmp_path, *SAGEMAKER)
    assert "Unable to locate credentials; log in, e.g. by `aws configure`" in line


@pytest.mark.long
def test_a_bucket_that_lets_nobody_write(
    aws: LocalSageMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(PutProxy(aws.moto_url, aws.keys)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        proxy.faults[".tar.gz"] = ["403 AccessDenied"]
        line = refused(capsys, tmp_path, *SAGEMAKER)
    assert "s3://launches/bins/source/" in line
    assert "access denied (HTTP 403); these credentials are not let in: let them, or name another" in line


@pytest.mark.parametrize("sweep", ["s" * 300, "ö" * 200])
def test_a_sweep_of_a_long_name(
    aws: LocalSageMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], sweep: str
) -> None:
    line = refused(capsys, tmp_path, *SAGEMAKER, f"hydra.sweep.dir='{tmp_path}/{sweep}'")
    assert "hydra.sweep.dir=" in line
    assert "File name too long" in line


@pytest.mark.long
def test_an_archive_of_another_project_is_not_sent(
    aws: LocalSageMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pyproject.toml").write_text("[project]\nname = 'mine'\ndependencies = []\n")
    (tmp_path / "mine/constraints.txt").write_text("")
    line = refused(capsys, tmp_path, *SAGEMAKER, "hydra.launcher.source_dir=mine", "hydra.launcher.extras=[]")
    assert "no git checkout" in line


@pytest.mark.long
def test_a_dry_run_prints_the_request_in_full_and_sends_nothing(
    aws: LocalSageMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a GPU that is not here, too."""
    monkeypatch.chdir(tmp_path)
    calls = len(aws.requests)
    keys = ["hydra.launcher.dry_run=true", "hydra.launcher.price_per_hour=0.75", f"hydra.launcher.role_arn={ROLE}"]
    sweep = ["hydra.sweep.dir=outputs/sweeps/My_Sweep", "model=resnet18,resnet50", "trainer=gpu"]
    monkeypatch.setenv("COPIED", "from here")
    keys += ["+hydra.job.env_set.NOTED=${hydra:runtime.choices.model}", "hydra.job.env_copy=[COPIED]"]
    main("train", [*SAGEMAKER, *keys, *sweep])
    said = capsys.readouterr().out
    requests = [json.loads(found) for found in re.findall(r"^\{.*?^\}", said, flags=re.M | re.S)]
    name = requests[1]["TrainingJobName"].removesuffix("-1")
    assert name.startswith("my-sweep-")
    assert requests[0]["TrainingJobName"] == f"{name}-0"
    source = requests[0]["HyperParameters"]["sagemaker_submit_directory"]
    assert source.startswith("s3://launches/bins/source/")
    prefix = requests[0]["OutputDataConfig"]["S3OutputPath"].removesuffix("/output")
    assert requests[1] == {
        "TrainingJobName": f"{name}-1",
        "RoleArn": ROLE,
        "AlgorithmSpecification": {
            "TrainingImage": "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-gpu-py313",
            "TrainingInputMode": "File",
        },
        "HyperParameters": {"sagemaker_program": "sagemaker_entry.py", "sagemaker_submit_directory": source},
        "InputDataConfig": [
            {
                "ChannelName": "job",
                "InputMode": "File",
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": f"{prefix}/specs/{name}-1/",
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            }
        ],
        "OutputDataConfig": {"S3OutputPath": f"{prefix}/output"},
        "CheckpointConfig": {"S3Uri": f"{prefix}/checkpoints/1"},
        "ResourceConfig": {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86_400},
        "EnableManagedSpotTraining": False,
        "Environment": {
            "PIP_QUIET": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "BINVENTORY_ALLOW_TARGETS": "binventory.tasks.train.run",
            "BINVENTORY_CHECKPOINT_DIR": "checkpoints",
            "NOTED": "resnet50",
            "COPIED": "from here",
        },
        "Tags": [],
    }
    assert "2 jobs on 1 x ml.g4dn.xlarge: at most 48.0 h, 36.00 at 0.75 an hour" in said
    assert "  train.py\n" in said  # the manifest
    assert len(aws.requests) == calls
    assert not (tmp_path / "outputs").exists()
