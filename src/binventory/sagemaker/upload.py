"""A data set sent to S3: in parallel, once for the same content, and taken up again where it was broken off."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from binventory.config.schema import S3Config
from binventory.data.sources.progress import DownloadProgress
from binventory.data.sources.s3 import SCHEME, S3Connection
from binventory.data.sources.watch import StoppedError
from binventory.data.sources.workers import in_parallel
from binventory.sagemaker.bucket import S3Folder, naming_node
from binventory.sagemaker.dataset import Dataset, DatasetObject
from binventory.sagemaker.names import check_s3_uri

MARKER = "complete.json"


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
    with naming_node("target"):
        S3Connection(target).check_bucket(bucket)


def upload(
    dataset: Dataset,
    s3_uri: str,
    target: S3Config,
    kms_key: str | None = None,
    *,
    node: str = "target",
    interrupt: threading.Event | None = None,
) -> Upload:
    """Send what is not there yet to `<s3_uri>/<content hash>/`, and a marker when all of it is there.

    An object of the same size counts as there when the marker is, or else when S3 knows the same SHA-256 of it.

    Args:
        dataset: what is sent.
        s3_uri: `s3://bucket` or `s3://bucket/prefix`.
        target: how that bucket is reached.
        kms_key: id or ARN of the key that the objects are encrypted with; None: the bucket's own setting.
        node: what `target` is called in messages.
        interrupt: set by another thread, or a signal's handler, to break the upload off with StoppedError.

    Raises:
        InputError: S3 refuses, cannot be reached in `target.max_attempts` tries, or a file changed since it was hashed.
    """
    bucket, prefix = check_s3_uri(s3_uri)
    folder = f"{prefix}/{dataset.content_hash}".lstrip("/")
    result = Upload(f"{SCHEME}{bucket}/{folder}")
    stop = threading.Event()
    with naming_node(node):
        place = S3Folder(S3Connection(target, stop), bucket, folder, kms_key)
        sizes = place.sizes()
        is_complete = MARKER in sizes
        _in_parallel(
            [*dataset.objects, *dataset.index],
            lambda entry: result.count(place.bring(entry, sizes.get(entry.key), is_trusted=is_complete)),
            result,
            stop,
            interrupt or stop,
            target.max_concurrency,
        )
        if not is_complete:
            facts = {"objects": len(dataset.objects), "bytes": sum(entry.size_bytes for entry in dataset.objects)}
            place.put(MARKER, json.dumps(facts | {"layout": dataset.layout}).encode())
    return result


def _in_parallel(
    objects: Sequence[DatasetObject],
    bring: Callable[[DatasetObject], None],
    result: Upload,
    stop: threading.Event,
    interrupt: threading.Event,
    max_concurrency: int,
) -> None:
    """Bring all; the first failure ends it, since the upload can be taken up again."""
    with DownloadProgress(f"upload to {result.uri}", len(objects)) as progress:

        def look() -> None:
            if interrupt is not stop and interrupt.is_set():
                raise StoppedError
            progress.show(result.sent + result.present, result.sent_bytes)

        in_parallel(objects, bring, min(max_concurrency, len(objects)), stop, look)
