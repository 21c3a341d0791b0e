"""A control plane that the launcher's tests share, and this process's AWS clients led to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from binventory.sagemaker.local.server import LocalSageMaker
from tests.sagemaker.local.conftest import CACHE, namespaces, toolkit

__all__ = ["namespaces", "toolkit"]

BUCKET = "launches"


@pytest.fixture(scope="module")
def running_plane(toolkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSageMaker]:
    """SageMaker on this machine. Every package is here: pip must not look for another."""
    environment = {"PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1"}
    folder = tmp_path_factory.mktemp("plane")
    with LocalSageMaker(folder, cache=CACHE, checkpoint_period_s=0.2, environment=environment) as plane:
        plane.client("s3").create_bucket(Bucket=BUCKET)
        yield plane
    assert not list(folder.glob("jobs/*"))


@pytest.fixture
def plane(running_plane: LocalSageMaker, monkeypatch: pytest.MonkeyPatch) -> LocalSageMaker:
    """The control plane, where this process's AWS clients find it, with a role and a bucket that a launch takes."""
    for name, value in running_plane.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("BINVENTORY_SAGEMAKER_ROLE", running_plane.role_arn)
    monkeypatch.setenv("BINVENTORY_SAGEMAKER_S3_URI", f"s3://{BUCKET}/bins")
    monkeypatch.setenv("BINVENTORY_ALLOW_TARGETS", "tests.sweeps.,tests.wandb.stopping.")
    return running_plane
