"""Many S3 objects to files: in parallel, resumable, one process at a time for each bucket."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISREG

from binventory.config.schema import S3Config
from binventory.data.sources.progress import DownloadProgress
from binventory.data.sources.s3 import (
    MIRRORS,
    SCHEME,
    AccessDeniedError,
    ObjectError,
    S3Connection,
    S3Object,
    UnreachableError,
    UnreachableServerError,
    mirror_folder,
)
from binventory.data.sources.workers import in_parallel
from binventory.errors import InputError

MAX_KEY_PART_BYTES = 249  # a file name holds 255; the temporary file's is 6 longer
MIN_LISTED = 200  # files of one folder of which the server is asked by a listing, not one by one
MD5 = re.compile(r"[0-9a-f]{32}")
SECOND_NS = 10**9
DISTRUSTED_NS = 0  # the time of a file that could not be decoded
BROKEN_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
MAX_UNCONFIRMED = 20_000  # photos of one download that nobody confirmed
TYPICAL_PHOTO_BYTES = 65_000  # of the public bucket, where no listing tells the size

# A value of its own and no argument: readers that other people wrote call `download` too.
_is_confirmed: ContextVar[bool] = ContextVar("_is_confirmed", default=False)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An object, the file it becomes, and what the server says of it where that is known."""

    bucket: str
    key: str
    target: Path
    there: S3Object | None = None

    @property
    def uri(self) -> str:
        """The object's S3 URI."""
        return f"{SCHEME}{self.bucket}/{self.key}"

    @property
    def size_bytes(self) -> int | None:
        """Its size where that is known."""
        return None if self.there is None else self.there.size_bytes

    def status(self) -> os.stat_result | None:
        """The file's status; None where it is not here. Files appear whole or not at all."""
        try:
            status = self.target.lstat()  # a link may lead anywhere: it is replaced by the file
        except OSError:
            return None
        return status if S_ISREG(status.st_mode) else None


@dataclass
class Outcome:
    """What became of the files of one `download`.

    Attributes:
        missing: targets whose object does not exist.
        failed: targets that could not be had, and why.
        downloaded, present: number of files fetched now, and of those that were here already.
        unchecked: of those, the ones of which the server did not say whether they are what it has.
        size_bytes: bytes fetched now.
    """

    missing: set[Path] = field(default_factory=set)
    failed: dict[Path, str] = field(default_factory=dict)
    downloaded: int = 0
    present: int = 0
    unchecked: int = 0
    size_bytes: int = 0

    @property
    def num_done(self) -> int:
        """Files that are settled, one way or the other."""
        return self.downloaded + self.present + len(self.missing) + len(self.failed)

    def has(self, target: Path) -> bool:
        """Whether a target that was asked for is on this machine."""
        return target not in self.missing and target not in self.failed


def target_of(bucket: str, key: str, s3: S3Config, data_dir: str | Path) -> Path | None:
    """Where an object is kept; None for a key that is no safe relative path: keys come from outside."""
    parts = key.split("/")
    for part in parts:
        if not part or part.startswith(".") or "\\" in part or not part.isprintable():
            return None
        if len(part.encode("utf-8", "replace")) > MAX_KEY_PART_BYTES:
            return None
    return mirror_folder(bucket, s3, data_dir).joinpath(*parts)


@contextmanager
def large_downloads(confirmed: bool) -> Iterator[None]:
    """Let the block download any number of photos, if `confirmed`; else at most 20,000 at a time."""
    before = _is_confirmed.set(confirmed)
    try:
        yield
    finally:
        _is_confirmed.reset(before)


def download(files: Sequence[RemoteFile], s3: S3Config, data_dir: str | Path, title: str) -> Outcome:
    """Bring every file that is not here, or is not what the server has; `title` is what messages call the work.

    Where the server cannot be reached and all files are here, they are taken as they are, which is said on stderr.

    Raises:
        InputError: a bucket cannot be read at all, the disk cannot be written, or more than 20,000 photos would have
            to be brought and `large_downloads` does not let them.
    """
    outcome = Outcome()
    here: list[RemoteFile] = []
    absent: list[RemoteFile] = []
    for file in files:
        status = file.status()
        if status is not None and file.there is not None and _is_marked(status, file.there):
            outcome.present += 1
        else:
            (absent if status is None else here).append(file)
    with DownloadProgress(title, len(here) + len(absent)) as progress:
        if here or absent:
            pool = _Pool(s3, outcome, progress)
            buckets = sorted({file.bucket for file in here + absent})
            pending = absent + pool.check(here, buckets, can_do_without=not absent)
            _check_amount([file for file in pending if not file.key.endswith(".json")], title)
            if pending:
                with ExitStack() as locks:
                    for bucket in buckets:
                        locks.enter_context(_one_process(mirror_folder(bucket, s3, data_dir), Path(data_dir)))
                    _make_folders({file.target.parent for file in pending}, Path(data_dir))
                    pool.fetch(pending)
        progress.finish(outcome.downloaded, outcome.present, len(outcome.missing), outcome.failed, outcome.size_bytes)
    if outcome.unchecked:
        print(
            f"warning: {title}: {outcome.unchecked:,} files are taken as they are here: the server does not say "
            f"whether they are current ({pool.why_unchecked})",
            file=sys.stderr,
            flush=True,
        )
    return outcome


def _check_amount(photos: Sequence[RemoteFile], title: str) -> None:
    """State number and size of a large download; refuse it where it is not confirmed."""
    if len(photos) <= MAX_UNCONFIRMED:
        return
    known = [photo.size_bytes for photo in photos if photo.size_bytes is not None]
    mean = sum(known) / len(known) if known else TYPICAL_PHOTO_BYTES
    about = "" if len(known) == len(photos) else "about "
    amount = f"{len(photos):,} photos to download, {about}{mean * len(photos) / 1e9:,.1f} GB"
    if not _is_confirmed.get():
        raise InputError(
            f"{title}: {amount}, more than {MAX_UNCONFIRMED:,}; set data.confirm_download=true or take fewer"
        )
    print(f"{title}: {amount}", file=sys.stderr, flush=True)


def distrust(paths: Iterable[Path], data_dir: str | Path) -> None:
    """Let files that cannot be decoded be compared with the server's by their content the next time.

    A proxy may have answered in the server's name. Files that are not below `data_dir`'s mirrors stay as they are.
    """
    mirrors = Path(data_dir).absolute() / MIRRORS
    for path in paths:
        if mirrors in path.absolute().parents:
            with suppress(OSError):
                os.utime(path, ns=(DISTRUSTED_NS, DISTRUSTED_NS), follow_symlinks=False)


def _mark_ns(there: S3Object) -> int | None:
    """The time that the file of an object gets: the object's own, and in its fraction of a second the ETag.

    So a file says by itself, and from the moment that it is there, of which version it is.
    """
    if there.etag is None:
        return None if there.modified_s is None else there.modified_s * SECOND_NS
    return max(there.modified_s or 0, 1) * SECOND_NS + _fraction_ns(there.etag)


def _fraction_ns(etag: str) -> int:
    return int.from_bytes(hashlib.sha256(etag.encode("utf-8", "replace")).digest()[:8]) % SECOND_NS


def _is_marked(status: os.stat_result, there: S3Object) -> bool:
    """Whether a file is by its time what the server has."""
    if status.st_mtime_ns == DISTRUSTED_NS:
        return False
    is_as_large = there.size_bytes == status.st_size
    seconds, fraction_ns = divmod(status.st_mtime_ns, SECOND_NS)
    if there.etag is None:
        # a time that is not an object's own is that of the download, by an earlier release
        is_later = there.modified_s is None or (fraction_ns > 0 and seconds > there.modified_s)
        return is_as_large and (is_later or seconds == there.modified_s)
    if not fraction_ns:  # a file system, or a copy, that keeps whole seconds
        return is_as_large and seconds == there.modified_s
    # some servers say 0 of every object that is only asked for by HEAD
    return (is_as_large or not there.size_bytes) and fraction_ns == _fraction_ns(there.etag)


def _is_current(file: RemoteFile, there: S3Object) -> bool:
    status = file.status()
    return status is not None and (_is_marked(status, there) or _is_same(file.target, there.etag))


def _is_same(path: Path, etag: str | None) -> bool:
    """Whether a file is by its content what the server has: of many objects the ETag is the MD5."""
    if etag is None or MD5.fullmatch(etag) is None:
        return False
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == etag
    except OSError:
        return False


class _Pool:
    """Threads that settle files."""

    def __init__(self, s3: S3Config, outcome: Outcome, progress: DownloadProgress) -> None:
        self._num_threads = s3.max_concurrency
        self._outcome = outcome
        self._progress = progress
        self._already = outcome.num_done
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._connection = S3Connection(s3, self._stop)
        self.why_unchecked = ""
        self._is_out_of_reach = False

    def check(self, files: Sequence[RemoteFile], buckets: Iterable[str], *, can_do_without: bool) -> list[RemoteFile]:
        """Find out which files that are here are not what the server has, and return these."""
        try:
            for bucket in buckets:
                self._connection.check_bucket(bucket)
        except UnreachableServerError as error:
            if not can_do_without:
                raise
            self._leave_unchecked(error, len(files))
            return []
        stale: list[RemoteFile] = []

        def settle(file: RemoteFile) -> None:
            found = self._checked(file)
            if found is not None:
                stale.append(found)

        self._run(self._listed(files), settle)
        return stale

    def _listed(self, files: Sequence[RemoteFile]) -> list[RemoteFile]:
        """Look up in a listing what is not known of many files of one folder: a request each would take longer."""
        folders: dict[tuple[str, str], list[str]] = defaultdict(list)
        for file in files:
            if file.there is None:
                folders[file.bucket, file.key.rpartition("/")[0]].append(file.key)
        there = {
            (bucket, key): found
            for (bucket, folder), keys in folders.items()
            if len(keys) >= MIN_LISTED
            for key, found in self._connection.listed(bucket, folder, keys).items()
        }
        return [replace(file, there=file.there or there.get((file.bucket, file.key))) for file in files]

    def fetch(self, files: Sequence[RemoteFile]) -> None:
        """Bring the files, but those that another process brought while this one waited for the lock."""
        self._run(files, self._settle)

    def _run(self, files: Sequence[RemoteFile], settle: Callable[[RemoteFile], None]) -> None:
        def show() -> None:
            self._progress.show(self._outcome.num_done - self._already, self._outcome.size_bytes)

        in_parallel(files, settle, min(self._num_threads, len(files)), self._stop, show)

    def _checked(self, file: RemoteFile) -> RemoteFile | None:
        """Settle a file that is here if it is current or cannot be checked; return it as the server has it if not."""
        if self._is_out_of_reach:
            self._leave_unchecked(None, 1)
            return None
        try:
            there = file.there or self._connection.head(file.bucket, file.key)
        except AccessDeniedError as error:
            self._fail(file, str(error))
            return None
        except ObjectError as error:
            if isinstance(error, UnreachableError) and not self._is_in_reach(file.bucket):
                self._is_out_of_reach = True
            self._leave_unchecked(error, 1)
            return None
        if there is not None and not _is_current(file, there):
            return replace(file, there=there)
        with self._lock:
            if there is None:
                self._outcome.missing.add(file.target)
            else:
                self._outcome.present += 1
        return None

    def _is_in_reach(self, bucket: str) -> bool:
        try:
            self._connection.check_bucket(bucket)
        except UnreachableServerError:
            return False
        return True

    def _settle(self, file: RemoteFile) -> None:
        if file.status() is not None and self._checked(file) is None:
            return
        size_bytes, failure = None, None
        try:
            size_bytes = self._connection.download(file.bucket, file.key, file.target, mtime_ns=_mark_ns)
        except ObjectError as error:
            failure = str(error)
        except OSError as error:
            if error.errno in BROKEN_DISK:
                raise InputError(f"{file.target.parent}: cannot be written: {error.strerror}") from error
            failure = f"cannot become a file: {error.strerror}"
        if failure is not None:
            self._fail(file, failure)
            return
        with self._lock:
            if size_bytes is None:
                self._outcome.missing.add(file.target)
            else:
                self._outcome.downloaded += 1
                self._outcome.size_bytes += size_bytes

    def _fail(self, file: RemoteFile, reason: str) -> None:
        with self._lock:
            self._outcome.failed[file.target] = reason

    def _leave_unchecked(self, error: Exception | None, number: int) -> None:
        with self._lock:
            self.why_unchecked = self.why_unchecked or str(error)
            self._outcome.present += number
            self._outcome.unchecked += number


def _make_folders(folders: Collection[Path], data_dir: Path) -> None:
    for folder in folders:
        _refuse_links(folder, data_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for entry in os.scandir(folder):  # what a killed run left half-written; nobody else writes: see the lock
                if entry.name.startswith(".") and entry.name.endswith(".part"):
                    Path(entry.path).unlink(missing_ok=True)
        except (FileExistsError, NotADirectoryError):
            continue  # one key is the folder of another ("a" and "a/b"): fetching that file says so
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}; change paths.data_dir") from error


def _refuse_links(folder: Path, data_dir: Path) -> None:
    """What is downloaded stays below `data_dir`: a folder that came with links in it must not send it elsewhere."""
    for path in (folder, *folder.parents):
        if path == data_dir:
            return
        if path.is_symlink():
            raise InputError(f"{path}: is a symbolic link, and downloads follow none; remove it or set paths.data_dir")


@contextmanager
def _one_process(folder: Path, data_dir: Path) -> Iterator[None]:
    """Hold the bucket's lock, so that jobs of a sweep that start together download once. It ends with the process."""
    lock = folder.with_name(f".{folder.name}.lock")
    _refuse_links(lock, data_dir)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise InputError(f"{lock.parent}: cannot be written: {error.strerror}; change paths.data_dir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that downloads into {folder}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
