"""Requests to S3, each tried again until it is answered or given up. The only module that knows boto3."""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from binventory.config.schema import S3Config
from binventory.data.reading import MAX_LIST_BYTES, MAX_PHOTO_BYTES
from binventory.errors import InputError

T = TypeVar("T")

SCHEME = "s3://"
BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
PAGE_KEYS = 1000  # the most that S3 lists in one answer
CHUNK_BYTES = 1 << 20
MAX_BACKOFF_S = 20.0
FIRST_BACKOFF_S = 0.2

GONE = {"NoSuchKey", "NotFound", "404"}
REFUSED = {"AccessDenied", "Forbidden", "403"}
TRANSIENT = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError"}
WHOLE_BUCKET = {  # no object of the bucket would fare better
    "NoSuchBucket": "no such bucket; check its name, s3.endpoint_url and s3.region",
    "InvalidBucketName": "no valid bucket name",
    "InvalidAccessKeyId": "the credentials are unknown there; renew them or set s3.anonymous=true",
    "SignatureDoesNotMatch": "the credentials are wrong; renew them or set s3.anonymous=true",
    "ExpiredToken": "the credentials have expired; renew them or set s3.anonymous=true",
    "InvalidToken": "the credentials are wrong; renew them or set s3.anonymous=true",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "PermanentRedirect": "the bucket lies in another region; set s3.region",
    "AuthorizationHeaderMalformed": "the bucket lies in another region; set s3.region",
}


class ObjectError(Exception):
    """One object cannot be had: refused, or still failing after every attempt. Others may be fine."""


class AccessDeniedError(ObjectError):
    """The object is there or not: this caller is not told."""


class StoppedError(Exception):
    """The work was called off while a request was waiting for its next attempt."""


@dataclass(frozen=True, slots=True)
class S3Object:
    """A listed object: its key, and its size in bytes."""

    key: str
    size_bytes: int


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Put the config key that names a location in front of what is wrong with the location."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
    except OSError as error:
        raise InputError(f"{key}: {error.filename}: cannot be read: {error.strerror}") from error


def is_s3(location: str) -> bool:
    """Whether a location is an S3 URI."""
    return location.startswith(SCHEME)


def split_uri(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/some/key` into bucket and key; the key has no slash at either end and may be empty.

    Raises:
        InputError: no bucket is named.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if BUCKET_NAME.fullmatch(bucket) is None:
        raise InputError(f"{uri}: names no bucket; write s3://BUCKET or s3://BUCKET/PREFIX")
    return bucket, key.strip("/")


def mirror_folder(bucket: str, s3: S3Config, data_dir: str | Path) -> Path:
    """Where a bucket's objects are kept. A custom endpoint has its own folder, so two servers' buckets never mix."""
    root = Path(data_dir) / "s3"
    if s3.endpoint_url is not None:
        # Where, not who: a user and a password in the URL are no part of any folder's name.
        where = re.sub(r"//[^/]*@", "//", s3.endpoint_url).partition("?")[0]
        root /= quote(where.rstrip("/"), safe="")
    return root / bucket


def read_object(uri: str, s3: S3Config) -> bytes | None:
    """Read one object of at most 512 MiB into memory; None when the bucket has no such key.

    Raises:
        InputError: the bucket or the object cannot be reached, is refused or larger.
    """
    bucket, key = split_uri(uri)
    connection = S3Connection(s3)
    return connection.answer(uri, lambda: b"".join(connection.chunks(bucket, key, MAX_LIST_BYTES)))


class S3Connection:
    """A client that may be shared by threads. Setting `stop` ends every wait between two attempts.

    Raises:
        InputError: boto3 is not installed, or the `s3` config names an endpoint, region or profile that cannot be.
    """

    def __init__(self, s3: S3Config, stop: threading.Event | None = None) -> None:
        self.s3 = s3
        self.stop = stop or threading.Event()
        self._random = random.Random()  # its own generator: waiting must not move the ones that training is seeded by
        self.client = _make_client(s3)

    def answer(self, uri: str, send: Callable[[], T]) -> T | None:
        """What `send` returns; None when there is no such object. Raises InputError when it cannot be had."""
        try:
            return self.request(uri, send)
        except ObjectError as error:
            who = "anonymous requests are" if self.s3.anonymous else "these credentials are"
            hint = f"; {who} not let in, change s3.anonymous" if isinstance(error, AccessDeniedError) else ""
            raise InputError(f"{uri}: {error}{hint}") from error

    def check_bucket(self, bucket: str) -> None:
        """One request that tells a bucket or server that isn't there before thousands of objects are tried.

        Raises:
            InputError: no such bucket, or the server cannot be reached. Being refused is no verdict on the objects.
        """
        try:
            found = self.request(f"{SCHEME}{bucket}", lambda: self.client.head_bucket(Bucket=bucket))
        except AccessDeniedError:
            return
        except ObjectError as error:
            raise InputError(f"{SCHEME}{bucket}: {error}; check s3.endpoint_url and the network") from error
        if found is None:
            raise InputError(f"{SCHEME}{bucket}: {WHOLE_BUCKET['NoSuchBucket']}")

    def list_objects(
        self, bucket: str, folder: str, *, recursive: bool, page_keys: int = PAGE_KEYS, name_start: str = ""
    ) -> Iterator[S3Object]:
        """List the objects below `folder` ("" for all) in S3's order, page by page as they are asked for.

        With `name_start` those alone whose names below the folder begin so.

        Raises:
            InputError: the bucket is missing or refuses to be listed.
        """
        prefix = (f"{folder}/" if folder else "") + name_start
        options = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": min(page_keys, PAGE_KEYS)}
        if not recursive:
            options["Delimiter"] = "/"
        while True:
            objects, token = self._page(f"{SCHEME}{bucket}/{prefix}", options)
            yield from objects
            if token is None:
                return
            options["ContinuationToken"] = token

    def _page(self, uri: str, options: dict[str, Any]) -> tuple[list[S3Object], str | None]:
        """One page of a listing, and by what the next one is asked for."""
        try:
            page = self.answer(uri, lambda: self.client.list_objects_v2(**options))
            if page is None:
                raise InputError(f"{uri}: {WHOLE_BUCKET['NoSuchBucket']}")
            # a key that ends in a slash is the marker that consoles make for an empty folder
            listed = [entry for entry in page.get("Contents", []) if not entry["Key"].endswith("/")]
            token: str | None = page["NextContinuationToken"] if page.get("IsTruncated") else None
            return [S3Object(entry["Key"], entry["Size"]) for entry in listed], token
        except InputError:
            raise
        except (KeyError, ValueError) as error:  # botocore's of values that are no numbers or dates
            raise InputError(f"{uri}: what the server lists cannot be read: {_one_line(error)}") from error

    def chunks(self, bucket: str, key: str, max_bytes: int) -> Iterator[bytes]:
        """The bytes of an object, in one request. Raises ObjectError at once when there are more than `max_bytes`."""
        answer = self.client.get_object(Bucket=bucket, Key=key)
        size_bytes = answer.get("ContentLength") or 0  # a server that sends chunks may not know it
        if size_bytes <= max_bytes:
            size_bytes = 0
            # botocore compares what arrived with Content-Length and raises on a body that was cut off
            for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
                size_bytes += len(chunk)
                if size_bytes > max_bytes:
                    break
                yield chunk
            else:
                return
        answer["Body"].close()
        raise ObjectError(f"too large: {size_bytes / 2**20:,.0f} MiB, at most {max_bytes // 2**20} MiB are fetched")

    def download(self, bucket: str, key: str, target: Path, max_bytes: int = MAX_PHOTO_BYTES) -> int | None:
        """Bring one object to `target`, which is whole or not there. Returns its size in bytes, None if there is none.

        The temporary file has a fixed name: a killed run's leftover is removed, and so is a link that somebody put
        there to have another file written over.

        Raises:
            ObjectError: refused, over `max_bytes` (64 MiB), or failing in each of `s3.max_attempts` tries.
            InputError: the bucket as a whole cannot be read.
            OSError: the file cannot be written.
        """
        temporary = target.with_name(f".{target.name}.part")

        def send() -> int:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                for chunk in self.chunks(bucket, key, max_bytes):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                size_bytes = file.tell()
            temporary.replace(target)
            return size_bytes

        try:
            return self.request(f"{SCHEME}{bucket}/{key}", send)
        finally:
            temporary.unlink(missing_ok=True)

    def request(self, uri: str, send: Callable[[], T]) -> T | None:
        """Send until answered: None for a missing key; a transient failure is tried again after a growing wait.

        Raises:
            ObjectError, InputError: as `download`. StoppedError: `stop` was set.
        """
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        for attempt in range(1, self.s3.max_attempts + 1):
            try:
                return send()
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if code in GONE:
                    return None
                reason = _transient_reason(error, code, uri)
            except (BotoCoreError, ResponseParserError, HTTPError) as error:
                reason = _connection_reason(error, uri)
            if attempt < self.s3.max_attempts and self.stop.wait(self._backoff_s(attempt)):
                raise StoppedError
        raise ObjectError(f"gave up after {self.s3.max_attempts} attempts: {reason}")

    def _backoff_s(self, attempt: int) -> float:
        ceiling = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 16))
        return ceiling * self._random.uniform(0.5, 1.0)  # spread: objects that failed together don't return together


def _transient_reason(error: Any, code: str, uri: str) -> str:
    """Why it may work the next time. Raises when it never will."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in WHOLE_BUCKET:
        raise InputError(f"{uri}: {WHOLE_BUCKET[code]} ({code})") from error
    if code in REFUSED:
        raise AccessDeniedError(f"access denied (HTTP {status})") from error
    if code not in TRANSIENT and status < 500 and status != 429:
        raise ObjectError(f"HTTP {status} {code}") from error
    return f"HTTP {status} {code}" if code != str(status) else f"HTTP {status}"


def _connection_reason(error: Exception, uri: str) -> str:
    """Why it may work the next time. Raises when it never will."""
    from botocore import exceptions as boto

    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        raise InputError(f"{uri}: {_one_line(error)}; set s3.anonymous=true for a public bucket") from error
    retryable = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError)
    if isinstance(error, boto.BotoCoreError) and not isinstance(error, retryable):
        raise InputError(f"{uri}: {_one_line(error)}; check the s3 config") from error
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _make_client(s3: S3Config) -> Any:
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise InputError("s3:// locations need boto3: pip install 'binventory[s3]'") from error
    config = Config(
        signature_version=UNSIGNED if s3.anonymous else None,
        connect_timeout=s3.timeout_s,
        read_timeout=s3.timeout_s,
        max_pool_connections=s3.max_concurrency,
        retries={"total_max_attempts": 1},  # attempts are counted here, where a cut-off body is one too
        # bucket.host names exist for AWS; other servers seldom have them in DNS
        s3={"addressing_style": "auto" if s3.endpoint_url is None else "path"},
    )
    try:
        # a session of its own: boto3's default one is shared by the process and not thread-safe
        session = boto3.Session(region_name=s3.region)
        return session.client("s3", endpoint_url=s3.endpoint_url, config=config)
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        found = f"s3.endpoint_url={s3.endpoint_url} s3.region={s3.region}"
        raise InputError(f"{found}: S3 cannot be reached so: {_one_line(error)}") from error
