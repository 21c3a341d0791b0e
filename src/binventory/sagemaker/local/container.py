"""Starts one instance's container: the toolkit's `train` on a folder that it sees as /opt/ml."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from binventory.files import write_json

SUPERVISE = Path(__file__).with_name("supervise.py")
OPT_ML = "/opt/ml"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PRIVATE = ("--mount", "--uts", "--propagation", "private")
OWN_PIDS = ("--pid", "--fork", "--kill-child", "--mount-proc")
AS_ROOT = ("--user", "--map-root-user")  # without being root


@functools.cache
def namespace_command() -> tuple[str, ...] | None:
    """The command that gives a process private mounts and a host name here; None where the system allows none."""
    if shutil.which("unshare") is None:
        return None
    candidates = [(*who, *PRIVATE, *pids) for pids in (OWN_PIDS, ()) for who in ((), AS_ROOT)]
    for flags in candidates:
        with tempfile.TemporaryDirectory(prefix="binventory-probe-") as name:
            folder = Path(name)
            (folder / "ml").mkdir()
            (folder / "staging").mkdir()
            command = ["unshare", *flags, "--"]
            settings = Settings(folder, "probe", {}, str(folder), [(str(folder / "ml"), OPT_ML)], ["/bin/true"])
            with _start(settings, command) as process:  # its stdin stays open until it has ended by itself
                is_allowed = process.wait() == 0
            if is_allowed:
                return tuple(command)
    return None


@dataclass
class Settings:
    """What a container is: see supervise.py. `mounts`: (source, target); none without a namespace."""

    folder: Path
    hostname: str
    environment: dict[str, str]
    cwd: str
    mounts: list[tuple[str, str]]
    command: list[str]

    def write(self) -> Path:
        """Write the file that supervise.py reads."""
        path = self.folder / "container.json"
        known = {name: getattr(self, name) for name in ("hostname", "environment", "cwd", "mounts", "command")}
        write_json(path, known | {"staging": str(self.folder / "staging")})
        return path


def _start(settings: Settings, namespace: Sequence[str], python: str = sys.executable) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (our own file)
        [*namespace, python, "-I", "-S", str(SUPERVISE), str(settings.write())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


class Container:
    """A running instance.

    Attributes:
        host: its name among the job's hosts.
        ml: the folder that it sees as /opt/ml, or through SAGEMAKER_BASE_DIR.
        output: what it prints, to be read by one thread.
    """

    def __init__(
        self,
        folder: Path,
        host: str,
        addresses: Mapping[str, str],
        toolkit: Path,
        environment: Mapping[str, str],
        namespace: Sequence[str] | None,
    ) -> None:
        self.host, self.ml = host, folder / "ml"
        values = _own_environment(folder, toolkit) | dict(environment)
        mounts = []
        if namespace is None:
            values["SAGEMAKER_BASE_DIR"] = str(self.ml)
        else:
            hosts = folder / "hosts"
            hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in addresses.items()))
            mounts = [(str(self.ml), OPT_ML), (str(hosts), "/etc/hosts")]
        command = [str(toolkit.with_name("train"))]
        settings = Settings(folder, host, values, "/", mounts, command)
        self._process = _start(settings, namespace or (), str(toolkit))
        assert self._process.stdout is not None
        self.output: IO[bytes] = self._process.stdout

    def exit_status(self) -> int | None:
        """Exit status of `train` once every process of the container has ended, else None."""
        return self._process.poll()

    def terminate(self) -> None:
        """Send SIGTERM to the process group of `train`."""
        self._order(b"TERM\n")

    def kill(self) -> None:
        """End every process of the container and wait for that."""
        self._order(b"KILL\n")
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # only a supervisor that is itself stopped does not obey
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # an order that nobody read is still in the buffer
            self._process.stdin.close()

    def _order(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it has ended by itself


def _own_environment(folder: Path, toolkit: Path) -> dict[str, str]:
    """What a fresh container has, plus pip's settings of this machine.

    What requirements.txt adds goes into the instance's own folder: the toolkit's environment serves all jobs.
    """
    for name in ("home", "tmp", "packages", "staging"):
        (folder / name).mkdir(exist_ok=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    environment = {
        "PATH": f"{toolkit.parent}:{folder / 'packages' / 'bin'}:{SYSTEM_PATH}",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(folder / "packages" / "lib" / version / "site-packages"),
        "PIP_PREFIX": str(folder / "packages"),
    }
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")} | environment


def write_config(
    ml: Path, request: Mapping[str, object], host: str, hosts: Sequence[str], *, network_interface: str
) -> None:
    """Lay out /opt/ml as SageMaker does before the container starts: folders, and the files of input/config."""
    for name in ("input/config", "input/data", "model", "output/data", "checkpoints", "code"):
        (ml / name).mkdir(parents=True, exist_ok=True)
    resource = request["ResourceConfig"]
    assert isinstance(resource, dict)
    group = {"instance_group_name": "homogeneousCluster", "instance_type": resource["InstanceType"], "hosts": hosts}
    channels = request.get("InputDataConfig") or []
    assert isinstance(channels, list)
    algorithm = request["AlgorithmSpecification"]
    assert isinstance(algorithm, dict)
    files = {
        "hyperparameters": request.get("HyperParameters") or {},
        "resourceconfig": {
            "current_host": host,
            "current_instance_type": resource["InstanceType"],
            "current_group_name": "homogeneousCluster",
            "hosts": list(hosts),
            "instance_groups": [group],
            "network_interface_name": network_interface,
        },
        "inputdataconfig": {
            channel["ChannelName"]: {
                "TrainingInputMode": channel.get("InputMode", algorithm["TrainingInputMode"]),
                "S3DistributionType": channel["DataSource"]["S3DataSource"].get(
                    "S3DataDistributionType", "FullyReplicated"
                ),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
            }
            | ({"ContentType": channel["ContentType"]} if channel.get("ContentType") else {})
            for channel in channels
        },
    }
    for name, content in files.items():
        (ml / "input" / "config" / f"{name}.json").write_text(json.dumps(content))
