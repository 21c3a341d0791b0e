"""Many S3 objects to files: in parallel, resumable, one process at a time for each bucket."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

from binventory.config.schema import S3Config
from binventory.data.sources.progress import DownloadProgress
from binventory.data.sources.s3 import SCHEME, ObjectError, S3Connection, StoppedError, mirror_folder
from binventory.errors import InputError

MAX_KEY_PART_BYTES = 249  # a file name holds 255; the temporary file's is 6 longer
BROKEN_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
MAX_UNCONFIRMED = 20_000  # photos of one download that nobody confirmed
TYPICAL_PHOTO_BYTES = 65_000  # of the public bucket, where no listing tells the size

# A value of its own and no argument: readers that other people wrote call `download` too.
_is_confirmed: ContextVar[bool] = ContextVar("_is_confirmed", default=False)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An object, the file it becomes, and its size where a listing told it: a file of another size is fetched again."""

    bucket: str
    key: str
    target: Path
    size_bytes: int | None = None

    @property
    def uri(self) -> str:
        """The object's S3 URI."""
        return f"{SCHEME}{self.bucket}/{self.key}"

    def is_whole(self) -> bool:
        """Whether the file is here. Files appear whole or not at all, so being there is enough without a known size."""
        try:
            status = self.target.lstat()  # a link may lead anywhere: it is replaced by the file
        except OSError:
            return False
        return S_ISREG(status.st_mode) and self.size_bytes in (None, status.st_size)


@dataclass
class Outcome:
    """What became of the files of one `download`.

    Attributes:
        missing: targets whose object does not exist.
        failed: targets that could not be had, and why.
        downloaded, present: number of files fetched now, and of those that were here already.
        size_bytes: bytes fetched now.
    """

    missing: set[Path] = field(default_factory=set)
    failed: dict[Path, str] = field(default_factory=dict)
    downloaded: int = 0
    present: int = 0
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
    """Bring every file that is not whole yet; `title` is what progress and summary call the work.

    Raises:
        InputError: a bucket cannot be read at all, the disk cannot be written, or more than 20,000 photos would have
            to be brought and `large_downloads` does not let them.
    """
    outcome = Outcome()
    pending = [file for file in files if not file.is_whole()]
    _check_amount([file for file in pending if not file.key.endswith(".json")], title)
    outcome.present = len(files) - len(pending)
    with DownloadProgress(title, len(pending)) as progress:
        if pending:
            buckets = sorted({file.bucket for file in pending})
            with ExitStack() as locks:
                for bucket in buckets:
                    locks.enter_context(_one_process(mirror_folder(bucket, s3, data_dir), Path(data_dir)))
                _make_folders({file.target.parent for file in pending}, Path(data_dir))
                _Pool(pending, s3, outcome).run(buckets, progress)
        progress.finish(outcome.downloaded, outcome.present, len(outcome.missing), outcome.failed, outcome.size_bytes)
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


class _Pool:
    """Threads that draw from one iterator, so that nothing is queued however many files there are."""

    def __init__(self, files: Sequence[RemoteFile], s3: S3Config, outcome: Outcome) -> None:
        self._files: Iterator[RemoteFile] = iter(files)
        self._num_threads = min(s3.max_concurrency, len(files))
        self._outcome = outcome
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._connection = S3Connection(s3, self._stop)

    def run(self, buckets: Iterable[str], progress: DownloadProgress) -> None:
        for bucket in buckets:
            self._connection.check_bucket(bucket)
        already = self._outcome.num_done
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="s3") as threads:
            try:
                running = {threads.submit(self._work) for _ in range(self._num_threads)}
                while running:
                    done, running = wait(running, timeout=0.2, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    progress.show(self._outcome.num_done - already, self._outcome.size_bytes)
            finally:  # also on Ctrl-C: leaving the pool waits for the threads
                self._stop.set()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                file = next(self._files, None)
            if file is None:
                return
            try:
                self._settle(file)
            except StoppedError:
                return

    def _settle(self, file: RemoteFile) -> None:
        if file.is_whole():  # another process brought it while this one waited for the lock
            with self._lock:
                self._outcome.present += 1
            return
        size_bytes, failure = None, None
        try:
            size_bytes = self._connection.download(file.bucket, file.key, file.target)
        except ObjectError as error:
            failure = str(error)
        except OSError as error:
            if error.errno in BROKEN_DISK:
                raise InputError(f"{file.target.parent}: cannot be written: {error.strerror}") from error
            failure = f"cannot become a file: {error.strerror}"
        with self._lock:
            if failure is not None:
                self._outcome.failed[file.target] = failure
            elif size_bytes is None:
                self._outcome.missing.add(file.target)
            else:
                self._outcome.downloaded += 1
                self._outcome.size_bytes += size_bytes


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
