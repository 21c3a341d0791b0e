"""SageMaker, CloudWatch logs and S3 of one region, and their errors as one line each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from binventory.config.capture import one_line
from binventory.config.schema import S3Config
from binventory.data.sources.s3 import S3Connection
from binventory.errors import ConfigError, InputError
from binventory.sagemaker.bucket import LOG_IN

T = TypeVar("T")
RETRIES: Any = {"total_max_attempts": 10, "mode": "standard"}
TIMEOUT_S = 60.0
CHATTY = ("boto3", "botocore", "s3transfer", "urllib3", "sagemaker")  # they tell Hydra's log where credentials are
DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
BAD_LOGIN = {
    "UnrecognizedClientException", "InvalidClientTokenId", "ExpiredToken", "ExpiredTokenException",
    "InvalidSignatureException", "SignatureDoesNotMatch", "AuthFailure",
}  # fmt: skip


class CallError(InputError):
    """An API call was refused. `code` is AWS's, e.g. ResourceInUse."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Aws:
    """The services that the launcher calls, with the credentials of boto3's own chain.

    Args:
        region: None: the environment's or the profile's.

    Attributes:
        region: where everything is.
        stop: set to end every wait of S3 requests.
        session: boto3's.
        sagemaker, logs: boto3 clients; SageMaker's comes from sagemaker-core, and is the one that its resources use.

    Raises:
        ConfigError: no region, no such profile, or a package of the extra is missing.
    """

    def __init__(self, region: str | None) -> None:
        try:
            import boto3
            import sagemaker.core  # noqa: F401
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"hydra/launcher=sagemaker: {error.name} is not installed; pip install 'binventory[sagemaker]'"
            ) from error
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            self.session: Any = boto3.Session(region_name=region)
            if not self.session.region_name:
                raise ConfigError(
                    "hydra.launcher.region: no region is set; add hydra.launcher.region=us-east-1 or set AWS_REGION"
                )
            self.region: str = self.session.region_name
            # Throttled calls are tried ten times there, after growing waits; AWS_MAX_ATTEMPTS says otherwise.
            self.sagemaker: Any = self._clients().sagemaker_client
            self.logs: Any = self.session.client("logs", config=Config(retries=RETRIES))
        except (BotoCoreError, ValueError) as error:  # ValueError: botocore's for an endpoint that is no URL
            reason = one_line(str(error))
            raise ConfigError(f"hydra.launcher.region={region}: {reason}; mend it or the AWS config") from error
        self.stop = threading.Event()
        self._s3: S3Connection | None = None

    def _clients(self) -> Any:
        """Return sagemaker-core's clients of this session: kept, so that its resources call by the same ones."""
        from sagemaker.core.utils.utils import SageMakerClient

        return SageMakerClient(session=self.session, region_name=self.region)

    @cached_property
    def account(self) -> str:
        """The account that the credentials belong to. Raises CallError."""
        sts = self.session.client("sts")
        return str(self.call("GetCallerIdentity", sts.get_caller_identity)["Account"])

    def training_job(self, name: str) -> Any:
        """Return sagemaker-core's TrainingJob. Raises CallError."""
        from sagemaker.core.resources import TrainingJob

        return self.call("DescribeTrainingJob", lambda: TrainingJob.get(name, session=self.session, region=self.region))

    def s3(self) -> S3Connection:
        """Return the connection to S3 with these credentials."""
        self._s3 = self._s3 or S3Connection(self.s3_config(), self.stop)
        return self._s3

    def s3_config(self) -> S3Config:
        """Return the same as the config node that readers of S3 take."""
        return S3Config(
            anonymous=False,
            endpoint_url=None,
            region=self.region,
            max_concurrency=16,
            max_attempts=6,
            timeout_s=TIMEOUT_S,
        )

    def call(self, what: str, send: Callable[[], T]) -> T:
        """Return what `send` returns.

        Args:
            what: the operation, for messages.
            send: one call of a boto3 client; throttling was retried in it.

        Raises:
            CallError: refused; the service cannot be reached; no credentials.
        """
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        try:
            return send()
        except ClientError as error:
            found = error.response.get("Error", {})
            code, message = str(found.get("Code", "")), one_line(str(found.get("Message", error)))
            if code in DENIED:
                raise CallError(f"{what}: {message}; let your credentials do that", code) from error
            if code in BAD_LOGIN:
                raise CallError(f"{what}: {message}; {LOG_IN}", code) from error
            raise CallError(f"{what}: {message} ({code})", code) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise CallError(f"{what}: no AWS credentials ({one_line(str(error))}); {LOG_IN}", "") from error
        except BotoCoreError as error:
            raise CallError(f"{what}: {one_line(str(error))}; check the network and AWS_ENDPOINT_URL*", "") from error
