"""SageMaker on this machine for as long as a launcher needs it: hydra/launcher=sagemaker_local."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from binventory.errors import ConfigError
from binventory.sagemaker.settings import LaunchSettings

BUCKET = "binventory-local"
# Of a shell that works with AWS: here they would lead elsewhere, or add what no endpoint here knows.
FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN")


class LocalPlane:
    """Starts the local control plane and leads this process's AWS clients to it, until `close`."""

    def __init__(self) -> None:
        self._undo = ExitStack()

    def open(self, settings: LaunchSettings) -> LaunchSettings:
        """Return the settings with a role and a bucket that are there.

        Raises:
            ConfigError: moto is not installed.
            InputError: the training toolkit could not be installed.
        """
        try:
            from binventory.sagemaker.local.server import LocalSageMaker
            from binventory.sagemaker.local.toolkit import toolkit_python
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"hydra/launcher=sagemaker_local: {error.name} is not installed; pip install 'binventory[sagemaker]'"
            ) from error
        if not settings.dry_run:
            toolkit_python()  # else the first job would wait for it
        plane = self._undo.enter_context(LocalSageMaker(region=settings.region or "us-east-1"))
        self._undo.callback(_lead_back, _lead_to(plane.environment))
        plane.client("s3").create_bucket(Bucket=BUCKET)
        return replace(settings, role_arn=plane.role_arn, s3_uri=f"s3://{BUCKET}")

    def close(self) -> None:
        """Stop everything; jobs that run get no grace."""
        self._undo.close()


# The user's own variables, while any plane of this process is open; planes may be closed in any order.
_own: dict[str, str | None] = {}
_open: list[int] = []


def _lead_to(environment: Mapping[str, str]) -> int:
    if not _open:
        _own.update({name: os.environ.get(name) for name in (*environment, *FOREIGN)})
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(environment)
    _open.append(max(_open, default=0) + 1)
    return _open[-1]


def _lead_back(number: int) -> None:
    _open.remove(number)
    if _open:
        return
    for name, value in _own.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _own.clear()
