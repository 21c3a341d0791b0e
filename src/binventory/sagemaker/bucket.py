"""A prefix of a bucket that is written to: objects by content, files, and what is wrong in the right words."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from binventory.data.sources.s3 import SCHEME, S3Connection
from binventory.errors import InputError
from binventory.sagemaker.dataset import DatasetObject

LOG_IN = "log in, e.g. by `aws configure` or AWS_PROFILE"


@dataclass(frozen=True)
class S3Folder:
    """A prefix of a bucket.

    Attributes:
        connection: how the bucket is reached.
        bucket, folder: where; the folder has no slash at either end.
        kms_key: id or ARN of the key that objects are encrypted with; None: the bucket's own setting.
    """

    connection: S3Connection
    bucket: str
    folder: str
    kms_key: str | None = None

    @property
    def uri(self) -> str:
        """The prefix as a URI without a slash at its end."""
        return f"{SCHEME}{self.bucket}/{self.folder}".rstrip("/")

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return sizes in bytes of what is there, by key below the folder."""
        folder = "/".join(part for part in (self.folder, below) if part)
        listed = self.connection.list_objects(self.bucket, folder, recursive=True)
        return {entry.key.removeprefix(f"{self.folder}/"): entry.size_bytes for entry in listed}

    def bring(self, entry: DatasetObject, size_there: int | None, *, is_trusted: bool) -> int | None:
        """Send an object unless it is there; return the bytes sent."""
        checksum = base64.b64encode(bytes.fromhex(entry.sha256)).decode()
        if size_there == entry.size_bytes and (is_trusted or self._checksum(entry.key) == checksum):
            return None
        # S3 compares what arrives with the checksum, and keeps it
        self.put(entry.key, entry.read(), {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": checksum})
        return entry.size_bytes

    def put(self, key: str, content: bytes, options: dict[str, str] | None = None) -> None:
        """Write an object. Raises InputError when S3 refuses."""
        options = (options or {}) | self._encryption()
        self._answer(key, lambda client, **where: client.put_object(**where, Body=content, **options))

    def put_file(self, key: str, path: Path) -> bool:
        """Send a file of any size under a key that names its content; return whether it was not there yet."""
        if self.sizes(key.rpartition("/")[0]).get(key) == path.stat().st_size:
            return False

        def send(client: Any, **where: str) -> bool:
            from boto3.exceptions import S3UploadFailedError
            from boto3.s3.transfer import TransferConfig

            try:
                # no threads of its own: after a signal the process would wait for them to send the whole file
                options = {"ExtraArgs": self._encryption(), "Config": TransferConfig(use_threads=False)}
                client.upload_file(str(path), where["Bucket"], where["Key"], **options)
            except S3UploadFailedError as error:
                raise error.__context__ or error from None  # botocore's own, which says whether to try again
            return True

        self._answer(key, send)
        return True

    def read(self, key: str, max_bytes: int) -> bytes | None:
        """Return an object's bytes; None when there is none."""
        uri = f"{self.uri}/{key}"
        where = f"{self.folder}/{key}".lstrip("/")
        return self.connection.answer(uri, lambda: b"".join(self.connection.chunks(self.bucket, where, max_bytes)))

    def _encryption(self) -> dict[str, str]:
        if self.kms_key is None:
            return {}
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key}

    def _checksum(self, key: str) -> str | None:
        head = self._answer(key, lambda client, **where: client.head_object(**where, ChecksumMode="ENABLED"))
        found: str | None = head.get("ChecksumSHA256")
        return found

    def _answer(self, key: str, send: Callable[..., Any]) -> Any:
        where = {"Bucket": self.bucket, "Key": f"{self.folder}/{key}".lstrip("/")}
        answer = self.connection.answer(f"{self.uri}/{key}", lambda: send(self.connection.client, **where))
        if answer is None:
            raise InputError(f"{self.uri}/{key}: is gone; does somebody else remove objects there?")
        return answer


@contextmanager
def naming_node(node: str) -> Iterator[None]:
    """The bucket that is written has its own config node: what is wrong with it is not said of `s3`.

    Args:
        node: `target`, or `hydra.launcher`, which has none of the keys but the region.
    """
    try:
        yield
    except InputError as error:
        message = re.sub(r"\bs3(?=\.[a-z_]+\b| config\b)", node, str(error))
        # a bucket that strangers may write is not what anybody has
        message = message.replace(f"set {node}.anonymous=true for a public bucket", LOG_IN)
        if node != "target":
            message = message.replace(f", change {node}.anonymous", f": let them, or name another {node}.s3_uri")
            message = message.replace(f" or set {node}.anonymous=true", "")
            message = message.replace(f"{node}.endpoint_url", "AWS_ENDPOINT_URL_S3")
            message = message.replace(f"{node} config", "AWS config")
        raise InputError(message) from error
