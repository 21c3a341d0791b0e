"""A data set sent to S3: in parallel, once for the same content, and taken up again where it was broken off."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from binventory.config.schema import S3Config
from binventory.data.sources.progress import DownloadProgress
from binventory.data.sources.s3 import SCHEME, S3Connection, StoppedError
from binventory.errors import InputError
from binventory.sagemaker.dataset import Dataset, DatasetObject
from binventory.sagemaker.names import check_s3_uri

MARKER = "complete.json"
LOG_IN = "log in, e.g. by `aws configure` or AWS_PROFILE"


@dataclass
class Upload:
    """What became of an upload.

    Attributes:
        uri: the prefix that holds the data set.
        sent, present: objects sent now, and those that were there already.
        sent_bytes: bytes sent now.
    """

    uri: str
    sent: int = 0
    present: int = 0
    sent_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, sent_bytes: int | None) -> None:
        """Count one object; None: it was there."""
        with self._lock:
            self.present += sent_bytes is None
            self.sent += sent_bytes is not None
            self.sent_bytes += sent_bytes or 0


def check_target(s3_uri: str, target: S3Config) -> None:
    """Find out whether the bucket can be reached before any work is done for it.

    Raises:
        InputError, ConfigError: `s3_uri` is malformed, or the bucket or the credentials cannot be used.
    """
    bucket, _ = check_s3_uri(s3_uri)
    with naming_target():
        S3Connection(target).check_bucket(bucket)


def upload(dataset: Dataset, s3_uri: str, target: S3Config, kms_key: str | None = None) -> Upload:
    """Send what is not there yet to `<s3_uri>/<content hash>/`, and a marker when all of it is there.

    An object of the same size counts as there when the marker is, or else when S3 knows the same SHA-256 of it.

    Args:
        dataset: what is sent.
        s3_uri: `s3://bucket` or `s3://bucket/prefix`.
        target: how that bucket is reached.
        kms_key: id or ARN of the key that the objects are encrypted with; None: the bucket's own setting.

    Raises:
        InputError: S3 refuses, cannot be reached in `target.max_attempts` tries, or a file changed since it was hashed.
    """
    bucket, prefix = check_s3_uri(s3_uri)
    folder = f"{prefix}/{dataset.content_hash}".lstrip("/")
    result = Upload(f"{SCHEME}{bucket}/{folder}")
    stop = threading.Event()
    with naming_target():
        place = _Place(S3Connection(target, stop), bucket, folder, kms_key)
        sizes = place.sizes()
        is_complete = MARKER in sizes
        _in_parallel(
            [*dataset.objects, *dataset.index],
            lambda entry: result.count(place.bring(entry, sizes.get(entry.key), is_trusted=is_complete)),
            result,
            stop,
            target.max_concurrency,
        )
        if not is_complete:
            facts = {"objects": len(dataset.objects), "bytes": sum(entry.size_bytes for entry in dataset.objects)}
            place.put(MARKER, json.dumps(facts | {"layout": dataset.layout}).encode(), {})
    return result


@dataclass(frozen=True)
class _Place:
    connection: S3Connection
    bucket: str
    folder: str
    kms_key: str | None

    def sizes(self) -> dict[str, int]:
        """Sizes in bytes of what is there, by key below the folder."""
        listed = self.connection.list_objects(self.bucket, self.folder, recursive=True)
        return {entry.key[len(self.folder) + 1 :]: entry.size_bytes for entry in listed}

    def bring(self, entry: DatasetObject, size_there: int | None, *, is_trusted: bool) -> int | None:
        """Send an object unless it is there; return the bytes sent."""
        checksum = base64.b64encode(bytes.fromhex(entry.sha256)).decode()
        if size_there == entry.size_bytes and (is_trusted or self._checksum(entry.key) == checksum):
            return None
        # S3 compares what arrives with the checksum, and keeps it
        self.put(entry.key, entry.read(), {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": checksum})
        return entry.size_bytes

    def put(self, key: str, content: bytes, options: dict[str, str]) -> None:
        if self.kms_key is not None:
            options = options | {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key}
        self._answer(key, lambda put, **where: put.put_object(**where, Body=content, **options))

    def _checksum(self, key: str) -> str | None:
        head = self._answer(key, lambda client, **where: client.head_object(**where, ChecksumMode="ENABLED"))
        found: str | None = head.get("ChecksumSHA256")
        return found

    def _answer(self, key: str, send: Callable[..., Any]) -> Any:
        where = {"Bucket": self.bucket, "Key": f"{self.folder}/{key}"}
        uri = f"{SCHEME}{self.bucket}/{self.folder}/{key}"
        answer = self.connection.answer(uri, lambda: send(self.connection.client, **where))
        if answer is None:
            raise InputError(f"{uri}: is gone; does somebody else remove objects there?")
        return answer


def _in_parallel(
    objects: Sequence[DatasetObject],
    bring: Callable[[DatasetObject], None],
    result: Upload,
    stop: threading.Event,
    max_concurrency: int,
) -> None:
    """Threads that draw from one iterator; the first failure ends them all, since the upload can be taken up again."""
    waiting, lock = iter(objects), threading.Lock()

    def work() -> None:
        while not stop.is_set():
            with lock:
                entry = next(waiting, None)
            if entry is None:
                return
            try:
                bring(entry)
            except StoppedError:
                return

    num_threads = min(max_concurrency, len(objects))
    with (
        DownloadProgress(f"upload to {result.uri}", len(objects)) as progress,
        ThreadPoolExecutor(num_threads, thread_name_prefix="s3") as threads,
    ):
        try:
            running = {threads.submit(work) for _ in range(num_threads)}
            while running:
                done, running = wait(running, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                progress.show(result.sent + result.present, result.sent_bytes)
        finally:  # also on Ctrl-C: leaving the pool waits for the threads
            stop.set()


@contextmanager
def naming_target() -> Iterator[None]:
    """The bucket that is written has its own config node: what is wrong with it is not said of `s3`."""
    try:
        yield
    except InputError as error:
        message = re.sub(r"\bs3(?=\.[a-z_]+\b| config\b)", "target", str(error))
        # a bucket that strangers may write is not what anybody has
        raise InputError(message.replace("set target.anonymous=true for a public bucket", LOG_IN)) from error
