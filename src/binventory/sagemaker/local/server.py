"""The control plane on loopback: SageMaker's API over HTTP, moto beside it, and the jobs behind both."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from binventory.errors import ConfigError, InputError
from binventory.files import write_json
from binventory.sagemaker.local.api import Api, SeenRequest
from binventory.sagemaker.local.container import namespace_command
from binventory.sagemaker.local.errors import ServiceError
from binventory.sagemaker.local.faults import Faults
from binventory.sagemaker.local.guard import GuardedHandler, Keys
from binventory.sagemaker.local.jobs import Job
from binventory.sagemaker.local.life import JobLife, Plant
from binventory.sagemaker.local.logs import GROUP
from binventory.sagemaker.local.moto_server import MotoServer
from binventory.sagemaker.local.semantics import ACCOUNT
from binventory.sagemaker.local.toolkit import toolkit_python
from binventory.sagemaker.local.transfer import ORDERS

JSON_TYPE = "application/x-amz-json-1.1"
TARGET_PREFIX = "SageMaker."
ROLE = "binventory-local"
JOBS = "jobs"  # folder of the jobs that run
MOTO_SERVICES = ("S3", "STS", "IAM", "CLOUDWATCH_LOGS")  # as botocore writes them in AWS_ENDPOINT_URL_…


class LocalSageMaker:
    """SageMaker, S3, STS, IAM and CloudWatch logs on 127.0.0.1, as a context manager.

    Attributes:
        url, moto_url: endpoints of SageMaker and of the rest; known inside the `with`.
        faults: what is to go wrong.
        requests: every call of SageMaker's API, in order, refused ones included.
        unknown: operations that were called and that are not there.
        role_arn: a role that may be passed.
        keys: of this start: what is not signed with them is refused by all of the services.
        folder: holds requests/ and, while jobs run, jobs/; known inside the `with`.
        cache: where the training toolkit's environment is; see toolkit_python.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        cache: Path | None = None,
        port: int = 0,
        region: str = "us-east-1",
        time_scale: float = 1.0,
        checkpoint_period_s: float = 1.0,
        upload_order: str = "name",
        environment: Mapping[str, str] | None = None,
        namespaces: bool = True,
    ) -> None:
        """Say how jobs are run; nothing is started yet.

        Args:
            folder: where full requests are kept, and jobs while they run; None: a temporary folder.
            cache: see toolkit_python.
            port: of SageMaker's endpoint; 0: a free one.
            region: of all services.
            time_scale: job seconds per real second: with 60, MaxRuntimeInSeconds=3600 is over after a minute.
            checkpoint_period_s: real seconds between uploads of the checkpoint directory.
            upload_order: name, reversed, oldest, newest, small or large first.
            environment: variables that every container gets, e.g. PIP_NO_INDEX.
            namespaces: use a private /opt/ml where the system allows it; else SAGEMAKER_BASE_DIR.
        """
        if upload_order not in ORDERS:
            raise ConfigError(f"upload order {upload_order!r} is not known; take one of {', '.join(ORDERS)}")
        for name, value in (("time scale", time_scale), ("checkpoint period", checkpoint_period_s)):
            if not value > 0:
                raise ConfigError(f"{name} {value} must be above 0")
        self.faults = Faults()
        self.keys = Keys.new()
        self.requests: list[SeenRequest] = []
        self.unknown: list[str] = []
        self.role_arn = f"arn:aws:iam::{ACCOUNT}:role/{ROLE}"
        self.cache = cache
        self._given, self._port, self._region = folder, port, region
        self._time_scale, self._period_s, self._order = time_scale, checkpoint_period_s, ORDERS[upload_order]
        self._extra = dict(environment or {})
        self._namespace = namespace_command() if namespaces else None
        self._lives: list[threading.Thread] = []
        self._lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead AWS clients here: endpoints, a region, and the keys, so for nobody else to see.

        What has no endpoint of its own is led here too, where it is refused, so nothing reaches AWS.
        """
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ENDPOINT_URL_SAGEMAKER": self.url,
            **{f"AWS_ENDPOINT_URL_{service}": self.moto_url for service in MOTO_SERVICES},
            "AWS_ACCESS_KEY_ID": self.keys.access_key,
            "AWS_SECRET_ACCESS_KEY": self.keys.secret_key,
            "AWS_DEFAULT_REGION": self._region,
            "AWS_REGION": self._region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def jobs(self) -> dict[str, Job]:
        """Every job by name, oldest first."""
        return dict(self._api.jobs)

    def client(self, service: str) -> Any:
        """A boto3 client of one of the services, whatever the environment says."""
        import boto3
        from botocore.config import Config

        session: Any = boto3.Session(*self.keys, region_name=self._region)
        url = self.url if service == "sagemaker" else self.moto_url
        return session.client(service, endpoint_url=url, config=Config(retries={"total_max_attempts": 5}))

    def __enter__(self) -> Self:
        """Start everything.

        Raises:
            ConfigError: the port is taken, or moto is not installed.
            InputError: the folder cannot be written to.
        """
        with ExitStack() as undo:
            self._http = self._bind()
            undo.callback(self._http.server_close)
            self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
            self.folder = self._make_folder()
            undo.callback(self._remove_folder)
            self._moto = MotoServer(self.keys)
            undo.callback(self._moto.close)
            self.moto_url = self._moto.url
            self._set_up()
            undo.pop_all()
        threading.Thread(target=self._http.serve_forever, args=(0.05,), name="SageMaker API", daemon=True).start()
        return self

    def _bind(self) -> ThreadingHTTPServer:
        class Handler(_Handler):
            keys = self.keys
            control_plane = self

        try:
            return ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        except OSError as error:
            reason = f"port {self._port} of 127.0.0.1 cannot be used ({error.strerror}); take another"
            raise ConfigError(reason) from error

    def _make_folder(self) -> Path:
        if self._given is None:
            return Path(tempfile.mkdtemp(prefix="binventory-sagemaker-"))
        try:
            self._given.mkdir(parents=True, exist_ok=True)
            jobs = self._given / JOBS
            jobs.mkdir(exist_ok=True)
            jobs.chmod(0o700)  # their settings hold the keys
        except OSError as error:
            raise InputError(f"{self._given} cannot be written to ({error.strerror}); name another folder") from error
        return self._given.absolute()

    def _set_up(self) -> None:
        s3, logs, iam = (self.client(service) for service in ("s3", "logs", "iam"))
        logs.create_log_group(logGroupName=GROUP)
        principal = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [principal]})
        iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=policy)
        has_namespaces = self._namespace is not None
        self._api = Api(s3, self._region, self.faults, self._run, has_namespaces=has_namespaces)
        # A container knows its region by AWS_REGION alone
        container = {name: value for name, value in self.environment.items() if name != "AWS_DEFAULT_REGION"}
        self._plant = Plant(
            s3=s3,
            logs=logs,
            toolkit=lambda: toolkit_python(self.cache),
            folder=self.folder / JOBS,
            environment=container | self._extra,
            namespace=self._namespace,
            time_scale=self._time_scale,
            checkpoint_period_s=self._period_s,
            upload_order=self._order,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the jobs without their grace, then everything else."""
        try:
            self._http.shutdown()
            self._http.server_close()
            self._plant.is_closing.set()
            for job in self.jobs.values():
                job.ask_to_stop()
            for life in self._lives:
                life.join()
        finally:
            self._moto.close()
            self._remove_folder()

    def wait(self, name: str, timeout_s: float | None = None) -> Job:
        """Wait for a job's end and return it.

        Raises:
            TimeoutError: it runs on.
        """
        job = self._api.jobs[name]
        if not job.ended.wait(timeout_s):
            raise TimeoutError(f"training job {name} is still {job.status} ({job.secondary}) after {timeout_s} s")
        return job

    def _run(self, job: Job) -> None:
        life = threading.Thread(target=JobLife(job, self._plant).run, name=f"training job {job.name}", daemon=True)
        self._lives.append(life)
        life.start()

    def _remove_folder(self) -> None:
        if self._given is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def answer(self, operation: str, request: Any) -> dict[str, Any]:
        """Carry one call out and keep it."""
        error_code = ""
        try:
            return self._api.call(operation, request)
        except ServiceError as error:
            error_code = error.code
            if error_code == "UnknownOperationException":
                self.unknown.append(operation)
            raise
        finally:
            with self._lock:
                self.requests.append(SeenRequest(operation, request, error_code))
                name = f"{len(self.requests):06d}.json"
                content = {"operation": operation, "error": error_code, "request": request}
                write_json(self.folder / "requests" / name, content)


class _Handler(GuardedHandler):
    """AWS's JSON protocol 1.1 over HTTP."""

    protocol_version = "HTTP/1.1"
    control_plane: LocalSageMaker

    def do_POST(self) -> None:  # noqa: N802  the names that http.server calls
        target = self.headers.get("X-Amz-Target", "")
        try:
            operation = target.removeprefix(TARGET_PREFIX) if target.startswith(TARGET_PREFIX) else target
            self._send(200, self.control_plane.answer(operation, self._body()))
        except ServiceError as error:
            # Some of SageMaker's errors are modelled with Message, others come with message
            self._send(error.status, {"__type": error.code, "message": error.message, "Message": error.message})

    def do_GET(self) -> None:  # noqa: N802  the names that http.server calls
        self._refuse_method()

    def do_PUT(self) -> None:  # noqa: N802  the names that http.server calls
        self._refuse_method()

    def do_DELETE(self) -> None:  # noqa: N802  the names that http.server calls
        self._refuse_method()

    def _refuse_method(self) -> None:
        """What comes here is another service's call; only SageMaker's are answered."""
        self.control_plane.unknown.append(f"{self.command} {self.path}")
        self.close_connection = True
        message = f"{self.command} {self.path}: no such service in the local control plane"
        self._send(404, {"__type": "UnknownOperationException", "message": message})

    def _body(self) -> Any:
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        except ValueError as error:
            raise ServiceError("SerializationException", f"The request is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise ServiceError("SerializationException", "The request is not a JSON object")
        return body

    def _send(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", JSON_TYPE)
        self.send_header("Content-Length", str(len(body)))
        if status != 200:
            self.send_header("x-amzn-ErrorType", str(content["__type"]))
        self.end_headers()
        self.wfile.write(body)
