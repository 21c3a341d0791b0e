"""Requests to S3, each tried again until it is answered or given up. The only module that knows boto3."""

from __future__ import annotations

import os
import random
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from binventory.config.schema import S3Config
from binventory.data.reading import MAX_LIST_BYTES, MAX_PHOTO_BYTES
from binventory.data.sources.watch import SlowError, StoppedError, watch_answers
from binventory.data.sources.workers import aside
from binventory.data.text import printable
from binventory.errors import InputError

T = TypeVar("T")

SCHEME = "s3://"
BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
# AWS's own servers, all of which know the same buckets; a partition of its own, such as us-gov, has others
AWS_HOST = re.compile(
    r"s3(-fips|-accelerate)?([.-]dualstack)?([.-](?!us-(gov|iso))[a-z]{2}(-[a-z]+)+-[0-9]+)?\.amazonaws\.com"
)
MIRRORS = "s3"  # the folder below `paths.data_dir` that holds them
PAGE_KEYS = 1000  # the most that S3 lists in one answer
MAX_OBJECTS = 10_000_000  # of one listing; the public bucket has a tenth
MAX_KEYS_A_HIT = 20  # a listing in which fewer keys than one of so many are sought costs more than to ask for these
MAX_EMPTY_PAGES = 100  # in a row; S3 itself has some where many objects were removed
CHUNK_BYTES = 1 << 20
MAX_BACKOFF_S = 20.0
FIRST_BACKOFF_S = 0.2

GONE = {"NoSuchKey", "NotFound", "404"}
NO_HEAD = {"405", "501"}  # of servers that only know GET
REFUSED = {"AccessDenied", "Forbidden", "403"}
TRANSIENT = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError"}
WHOLE_BUCKET = {  # no object of the bucket would fare better
    "NoSuchBucket": "no such bucket; check its name, s3.endpoint_url and s3.region",
    "InvalidBucketName": "no valid bucket name",
    "InvalidAccessKeyId": "the credentials are unknown there; renew them or set s3.anonymous=true",
    "SignatureDoesNotMatch": "the credentials are wrong; renew them or set s3.anonymous=true",
    "ExpiredToken": "the credentials have expired; renew them or set s3.anonymous=true",
    "ExpiredTokenException": "the credentials have expired; renew them or set s3.anonymous=true",
    "TokenRefreshRequired": "the credentials have expired; renew them or set s3.anonymous=true",
    "InvalidToken": "the credentials are wrong; renew them or set s3.anonymous=true",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    **dict.fromkeys(
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "301", "302", "307", "308"),
        "the bucket lies in another region; set s3.region or s3.endpoint_url",
    ),
}


class ObjectError(Exception):
    """One object cannot be had: refused, or still failing after every attempt. Others may be fine."""


class AccessDeniedError(ObjectError):
    """The object is there or not: this caller is not told."""


class UnreachableError(ObjectError):
    """No attempt got a whole answer, or one that is not the server's own trouble."""


@dataclass(frozen=True, slots=True)
class S3Object:
    """What the server says of an object.

    Attributes:
        key: its key.
        size_bytes: its size.
        etag: changes with the content, and is its MD5 in hexadecimal in many cases; None where the server has none.
        modified_s: when it was written, in whole seconds since 1970; None where the server does not say.
    """

    key: str
    size_bytes: int
    etag: str | None = None
    modified_s: int | None = None


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
    """Split `s3://bucket/some/key` into bucket and key. The key may be empty, and is as it stands: `/a`, `a` and `a/`
    are three keys.

    Raises:
        InputError: no bucket is named.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if BUCKET_NAME.fullmatch(bucket) is None:
        raise InputError(f"{uri}: names no bucket; write s3://BUCKET or s3://BUCKET/PREFIX")
    return bucket, key


def split_folder(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/some/prefix`, with or without a slash at its end, into bucket and prefix without that slash.

    Raises:
        InputError: no bucket is named, or the prefix is none of names with single slashes between them.
    """
    bucket, key = split_uri(uri)
    folder = key.removesuffix("/")
    if key and not _is_plain(folder):
        raise InputError(
            f"{uri}: the prefix cannot be a path on this machine; name one without '.', '..' and empty parts"
        )
    return bucket, folder


def _is_plain(key: str) -> bool:
    """Whether a key arrives at the server, and is a path here, as it stands: HTTP takes `a/../b` for `b`."""
    return not {"", ".", ".."}.intersection(key.split("/"))


def mirror_folder(bucket: str, s3: S3Config, data_dir: str | Path) -> Path:
    """Where a bucket's objects are kept. A custom endpoint has its own folder, so two servers' buckets never mix.

    The config must be `resolved`: the endpoint may come from elsewhere.
    """
    root = Path(data_dir) / MIRRORS
    if s3.endpoint_url is not None:
        # Where, not who: a user and a password in the URL are no part of any folder's name.
        where = re.sub(r"//[^/]*@", "//", s3.endpoint_url).partition("?")[0]
        root /= quote(where.rstrip("/"), safe="")
    return root / bucket


def resolved(s3: S3Config) -> S3Config:
    """Return the config with the endpoint that boto3 goes to, from its variables and profile too; None for AWS.

    Raises:
        InputError: as `S3Connection`.
    """
    if s3.endpoint_url is not None:
        return s3
    url = str(_make_client(s3).meta.endpoint_url)
    return s3 if _is_aws(url) else _with_endpoint(s3, url)


def _with_endpoint(s3: S3Config, url: str) -> S3Config:
    settings = {field.name: getattr(s3, field.name) for field in fields(S3Config)}  # of a node of the config, too
    return S3Config(**(settings | {"endpoint_url": url}))


def _is_aws(url: str) -> bool:
    parts = urlsplit(url)
    return AWS_HOST.fullmatch(parts.netloc.lower()) is not None and parts.path in ("", "/")


def read_object(uri: str, s3: S3Config) -> bytes | None:
    """Read one object of at most 512 MiB into memory; None when the bucket has no such key.

    Raises:
        InputError: the bucket or the object cannot be reached, is refused or larger.
    """
    bucket, key = split_uri(uri)
    if not _is_plain(key):
        raise InputError(f"{uri}: is not read: its key has '.', '..' or empty parts; name the object's own key")
    connection = S3Connection(s3)
    return connection.answer(uri, lambda: b"".join(connection.chunks(bucket, key, MAX_LIST_BYTES)))


class UnreachableServerError(InputError):
    """The server did not answer, not to the end, or has trouble of its own."""


class S3Connection:
    """A client that may be shared by threads. Setting `stop` ends every wait for an answer and between two attempts.

    Raises:
        InputError: boto3 is not installed, or the `s3` config names an endpoint, region or profile that cannot be.
    """

    def __init__(self, s3: S3Config, stop: threading.Event | None = None) -> None:
        self.s3 = s3
        self.stop = stop or threading.Event()
        self._random = random.Random()  # its own generator: waiting must not move the ones that training is seeded by
        self.client = _make_client(s3)
        watch_answers(self.client._endpoint.http_session, self.stop, s3.timeout_s)

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
            InputError: no such bucket, or none to be read. Being refused is no verdict on the objects.
            UnreachableServerError: the server cannot be reached.
        """
        try:
            found = self.request(
                f"{SCHEME}{bucket}",
                lambda: self.client.head_bucket(Bucket=bucket),
                lambda: self.client.list_objects_v2(Bucket=bucket, MaxKeys=1),
            )
        except AccessDeniedError:
            return
        except UnreachableError as error:
            raise UnreachableServerError(f"{SCHEME}{bucket}: {error}; check s3.endpoint_url and the network") from error
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
            InputError: the bucket is missing or refuses to be listed, or the listing does not advance.
        """
        prefix = (f"{folder}/" if folder else "") + name_start
        options = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": min(page_keys, PAGE_KEYS)}
        if not recursive:
            options["Delimiter"] = "/"
        latest, num_empty, num_objects = b"", 0, 0
        while True:
            uri = f"{SCHEME}{bucket}/{prefix}"
            objects, last, token = self._page(uri, options)
            for entry in objects:
                # a server that knows no prefix or no delimiter lists what is not there
                if entry.key.startswith(prefix) and (recursive or "/" not in entry.key[len(prefix) :]):
                    yield entry
            if token is None:
                return
            # the order that S3 promises; else a server that repeats itself would be listed for ever
            num_empty = 0 if last else num_empty + 1
            if (last and last <= latest) or num_empty > MAX_EMPTY_PAGES:
                shown = printable(latest.decode("utf-8", "replace"))
                raise InputError(f"{uri}: the server's listing does not advance beyond {shown!r}; is it an S3 server?")
            latest = last or latest
            num_objects += len(objects)
            if num_objects > MAX_OBJECTS:
                raise InputError(f"{uri}: lists more than {MAX_OBJECTS:,} objects; name a prefix with fewer")
            options["ContinuationToken"] = token

    def listed(self, bucket: str, folder: str, keys: Iterable[str]) -> dict[str, S3Object]:
        """What a listing of `folder` says of some of its objects, as long as they are close together in it.

        A page of a thousand costs what some twenty HEADs do. What is not named may be there all the same.
        """
        found: dict[str, S3Object] = {}
        left = deque(sorted((key.encode("utf-8", "surrogatepass"), key) for key in keys))
        start = left[0][1][:-1] if left else ""
        while left:
            prefix = f"{folder}/" if folder else ""
            options = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE_KEYS, "StartAfter": start}
            try:
                objects, last, token = self._page(f"{SCHEME}{bucket}/{folder}", options)
            except InputError:  # who may not list the bucket may still read its objects
                return found
            there = {entry.key: entry for entry in objects}
            num_left = len(left)
            while left and left[0][0] <= last:
                _, key = left.popleft()
                if key in there:
                    found[key] = there[key]
            if token is None or (num_left - len(left)) * MAX_KEYS_A_HIT < max(len(objects), 1):
                return found
            start = last.decode("utf-8", "surrogatepass")
        return found

    def _page(self, uri: str, options: dict[str, Any]) -> tuple[list[S3Object], bytes, str | None]:
        """One page of a listing, the last key or folder of it in S3's order, and by what the next one is requested."""
        try:
            page = self.answer(uri, lambda: self.client.list_objects_v2(**options))
            if page is None:
                raise InputError(f"{uri}: {WHOLE_BUCKET['NoSuchBucket']}")
            entries = page.get("Contents", [])
            names = [*(entry["Key"] for entry in entries), *(part["Prefix"] for part in page.get("CommonPrefixes", []))]
            # a key that ends in a slash is the marker that consoles make for an empty folder
            objects = [
                _object(entry["Key"], entry["Size"], entry) for entry in entries if not entry["Key"].endswith("/")
            ]
            token: str | None = page["NextContinuationToken"] if page.get("IsTruncated") else None
            last = max((name.encode("utf-8", "surrogatepass") for name in names), default=b"")
            return objects, last, token
        except InputError:
            raise
        except (KeyError, ValueError) as error:  # botocore's of values that are no numbers or dates
            raise InputError(f"{uri}: what the server lists cannot be read: {_one_line(error)}") from error

    def chunks(self, bucket: str, key: str, max_bytes: int) -> Iterator[bytes]:
        """The bytes of an object, in one request. Raises ObjectError at once when there are more than `max_bytes`."""
        yield from _body(self.client.get_object(Bucket=bucket, Key=key), max_bytes)

    def head(self, bucket: str, key: str) -> S3Object | None:
        """What the server says of an object now, without its bytes; None if there is none.

        Raises:
            ObjectError, InputError: as `download`.
        """
        where = {"Bucket": bucket, "Key": key}

        def by_get() -> Any:
            answer = self.client.get_object(**where)
            answer["Body"].close()
            return answer

        answer = self.request(f"{SCHEME}{bucket}/{key}", lambda: self.client.head_object(**where), by_get)
        return None if answer is None else _object(key, answer.get("ContentLength") or 0, answer)

    def download(
        self,
        bucket: str,
        key: str,
        target: Path,
        max_bytes: int = MAX_PHOTO_BYTES,
        mtime_ns: Callable[[S3Object], int | None] = lambda _: None,
    ) -> int | None:
        """Bring one object to `target`, which is whole or not there. Returns its size in bytes, None if there is none.

        The temporary file has a fixed name: a killed run's leftover is removed, and so is a link that somebody put
        there to have another file written over.

        Args:
            bucket, key: the object.
            target: the file.
            max_bytes: of a larger object nothing is fetched.
            mtime_ns: gives the time that the file of an object gets; None: that of now.

        Raises:
            ObjectError: refused, over `max_bytes` (64 MiB), or failing in each of `s3.max_attempts` tries.
            InputError: the bucket as a whole cannot be read.
            OSError: the file cannot be written.
        """
        temporary = target.with_name(f".{target.name}.part")

        def send() -> int:
            answer = self.client.get_object(Bucket=bucket, Key=key)
            if self.stop.is_set():  # nobody may be waiting any more, and another process write the same file
                raise StoppedError
            temporary.unlink(missing_ok=True)
            try:
                with temporary.open("xb") as file:
                    for chunk in _body(answer, max_bytes):
                        file.write(chunk)
                    file.flush()
                    size_bytes = file.tell()
                    if (time_ns := mtime_ns(_object(key, size_bytes, answer))) is not None:
                        os.utime(file.fileno(), ns=(time_ns, time_ns))
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            return size_bytes

        return self.request(f"{SCHEME}{bucket}/{key}", send)

    def request(self, uri: str, send: Callable[[], T], by_get: Callable[[], T] | None = None) -> T | None:
        """Send until answered: None for a missing key; a transient failure is tried again after a growing wait.

        Args:
            uri: the object, for messages.
            send: the request.
            by_get: the same as a GET where `send` is a HEAD: an answer to that has no words for what is wrong.

        Raises:
            ObjectError, InputError: as `download`. StoppedError: `stop` was set.
        """
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        worded = send if by_get is None else partial(_in_words, send, by_get)
        for attempt in range(1, self.s3.max_attempts + 1):
            try:
                return aside(worded) if threading.current_thread() is threading.main_thread() else worded()
            except ClientError as error:
                code = _code(error)
                if code in GONE:
                    return None
                reason = _transient_reason(error, code, uri)
            except (
                BotoCoreError,
                ResponseParserError,
                HTTPError,
                ValueError,
            ) as error:  # the last: a date that is none
                if self.stop.is_set():
                    raise StoppedError from error
                reason = _connection_reason(error, uri)
            if attempt < self.s3.max_attempts and self.stop.wait(self._backoff_s(attempt)):
                raise StoppedError
        raise UnreachableError(f"gave up after {self.s3.max_attempts} attempts: {reason}")

    def _backoff_s(self, attempt: int) -> float:
        ceiling = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 16))
        return ceiling * self._random.uniform(0.5, 1.0)  # spread: objects that failed together don't return together


def _object(key: str, size_bytes: int, answer: Mapping[str, Any]) -> S3Object:
    """An object by what a listing, or the answer to HEAD or GET, says of it."""
    etag, modified = answer.get("ETag"), answer.get("LastModified")
    return S3Object(
        key,
        size_bytes,
        str(etag).removeprefix("W/").strip('"') or None if etag is not None else None,
        int(modified.timestamp()) if isinstance(modified, datetime) else None,
    )


def _body(answer: Mapping[str, Any], max_bytes: int) -> Iterator[bytes]:
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


def _in_words(send: Callable[[], T], by_get: Callable[[], T]) -> T:
    from botocore.exceptions import ClientError

    try:
        return send()
    except ClientError as error:
        code = _code(error)
        if code in NO_HEAD:
            return by_get()
        if code.startswith(("3", "4")) and code not in GONE:
            by_get()
        raise


def _code(error: Any) -> str:
    """S3's code; the HTTP status where the answer has none, as a page of HTML."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return str(error.response.get("Error", {}).get("Code") or status)


def _transient_reason(error: Any, code: str, uri: str) -> str:
    """Why it may work the next time. Raises when it never will."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in WHOLE_BUCKET:
        raise InputError(f"{uri}: {WHOLE_BUCKET[code]} ({code})") from error
    if code in REFUSED:
        raise AccessDeniedError(f"access denied (HTTP {status})") from error
    if code not in TRANSIENT and status < 500 and status != 429:
        raise ObjectError(_shown(status, code)) from error
    return _shown(status, code)


def _shown(status: int, code: str) -> str:
    return f"HTTP {status}" if code == str(status) else f"HTTP {status} {code}"


def _connection_reason(error: Exception, uri: str) -> str:
    """Why it may work the next time. Raises when it never will."""
    from botocore import exceptions as boto

    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        raise InputError(f"{uri}: {_one_line(error)}; set s3.anonymous=true for a public bucket") from error
    slow: BaseException | None = error
    while slow is not None and not isinstance(slow, SlowError):
        slow = slow.__cause__ or slow.__context__
    if slow is not None:
        return str(slow)
    retryable = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError)
    if isinstance(error, boto.BotoCoreError) and not isinstance(error, retryable):
        raise InputError(f"{uri}: {_one_line(error)}; check the s3 config") from error
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _make_client(s3: S3Config) -> Any:
    try:
        import boto3
        import botocore.session
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
        own = botocore.session.Session()
        own.register_component("data_loader", _loader())
        session = boto3.Session(botocore_session=own, region_name=s3.region)
        client = session.client("s3", endpoint_url=s3.endpoint_url, config=config)
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        found = f"s3.endpoint_url={s3.endpoint_url} s3.region={s3.region}"
        raise InputError(f"{found}: S3 cannot be reached so: {_one_line(error)}") from error
    if s3.endpoint_url is None and not _is_aws(url := str(client.meta.endpoint_url)):
        return _make_client(_with_endpoint(s3, url))
    # botocore asks the bucket where it lies when a redirect does not say, and would ask again when that is one too
    client.meta.events.register_first("needs-retry.s3", _end_of_redirects)
    return client


@cache
def _loader() -> Any:
    """What reads the description of S3 from the package, once: it is a megabyte of JSON."""
    import botocore.session

    return botocore.session.Session().get_component("data_loader")


def _end_of_redirects(request_dict: dict[str, Any], response: Any, operation: Any, **_: Any) -> None:
    if response is None or operation.name != "HeadBucket":
        return
    headers = response[1].get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if "x-amz-bucket-region" not in headers:
        request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True
