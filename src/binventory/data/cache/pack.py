"""What a pack is: what was made of the photos of an index, row after row in one file, and what makes it whole."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import random
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from binventory.files import open_limited, read_limited, write_json

FORMAT = 1  # raise it when the files of a pack change their meaning
META, JOURNAL, LOCK = "meta.json", "blocks.txt", "lock"

MAX_BLOCK_ROWS, MAX_BLOCK_BYTES = 64, 16 * 2**20
MAX_ROWS_BYTES = 2**44  # of all photos: what is opened as a file of rows at all
NUM_CHECKED_BLOCKS = 4  # when a pack is opened whose file nobody wrote to since

_JOURNAL_LINE = re.compile(r"(\d+) ([0-9a-f]{64})\n")


class Kind(NamedTuple):
    """What packs of a kind hold.

    Attributes:
        folder: its name below `paths.cache_dir`.
        file: name of the file of the rows.
        dtype: of the rows.
        name: what messages call such a pack.
        rows: what they call its rows.
        without: the override that does without such packs.
    """

    folder: str
    file: str
    dtype: str
    name: str
    rows: str
    without: str


PHOTOS = Kind("photos", "photos.u8", "uint8", "photo cache", "decoded photos", "data.cache=false")
FEATURES = Kind("features", "features.f32", "float32", "feature cache", "frozen features", "model.cache_features=false")


@dataclass(frozen=True)
class Pack:
    """A folder that holds, or will hold, what was made of photos.

    The file of the rows is of `shape`, in C order, without a header. `meta.json` is written last: a folder without it
    is not finished, and `blocks.txt` says which blocks of rows are.

    Attributes:
        kind: decoded photos, (num_photos, image_size, image_size, 3) uint8 RGB, or frozen features,
            (num_photos, num_views, num_features) float32.
        folder: `<paths.cache_dir>/<kind>/<key>`.
        facts: plain values that the rows depend on.
        shape: of all rows together.
    """

    kind: Kind
    folder: Path
    facts: dict[str, Any]
    shape: tuple[int, ...]

    @classmethod
    def at(cls, cache_dir: Path, kind: Kind, facts: dict[str, Any], shape: tuple[int, ...]) -> Pack:
        """Return the pack of some facts, at the place below `paths.cache_dir` that they decide."""
        facts = {"format": FORMAT, **facts}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return cls(kind, cache_dir / kind.folder / key, facts, shape)

    @classmethod
    def of(cls, cache_dir: Path, pixel_facts: dict[str, Any], photo_hashes: Iterable[str], num_photos: int) -> Pack:
        """Return the pack of some photos, decoded.

        Args:
            cache_dir: `paths.cache_dir`.
            pixel_facts: `Preprocessing.pixel_facts`.
            photo_hashes: SHA-256 of each photo's file in hexadecimal, in the order of the rows.
            num_photos: how many.
        """
        digest = hashlib.sha256()
        for photo_hash in photo_hashes:
            digest.update(photo_hash.encode())
        side = pixel_facts["image_size"]
        return cls.at(cache_dir, PHOTOS, {**pixel_facts, "photos": digest.hexdigest()}, (num_photos, side, side, 3))

    @property
    def path(self) -> Path:
        """The file of the rows."""
        return self.folder / self.kind.file

    @property
    def num_photos(self) -> int:
        """Rows: there is one for each photo."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return math.prod(self.shape[1:]) * np.dtype(self.kind.dtype).itemsize

    @property
    def size_bytes(self) -> int:
        """Size of all rows."""
        return self.num_photos * self.row_bytes

    @cached_property
    def blocks(self) -> list[range]:
        """The rows of each block: what is made, written and checked as one."""
        step = max(1, min(MAX_BLOCK_ROWS, MAX_BLOCK_BYTES // self.row_bytes))
        return [range(first, min(first + step, self.num_photos)) for first in range(0, self.num_photos, step)]

    def is_finished(self) -> bool:
        """Return whether it was built to its end; it may have been damaged since."""
        return (self.folder / META).exists()

    def find_damage(self, *, every_block: bool = False) -> str | None:
        """Return what is wrong with a finished pack, in words; None: nothing that was looked at.

        Size and time of the last change are compared with what was written down, and a few blocks with their
        checksums. Where the time differs, all blocks are, as with `every_block`.
        """
        try:
            with open_limited(self.path, MAX_ROWS_BYTES) as file:
                return self._damage_of(file, every_block=every_block)
        except OSError as error:
            return f"{self.kind.file}: {error.strerror or error}"

    def _damage_of(self, file: BinaryIO, *, every_block: bool) -> str | None:
        meta = self._read_meta()
        if meta is None:
            return f"{META} is not as it was written"
        status = os.fstat(file.fileno())
        if status.st_size != self.size_bytes:
            return f"{self.kind.file} has {status.st_size:,} bytes instead of {self.size_bytes:,}"
        checksums: list[str] = meta["blocks"]
        looked_at = list(range(len(checksums)))
        is_untouched = status.st_mtime_ns == meta["mtime_ns"]
        if is_untouched and not every_block and len(looked_at) > NUM_CHECKED_BLOCKS:
            # a generator of its own: the global one is seeded for the run
            looked_at = random.SystemRandom().sample(looked_at, NUM_CHECKED_BLOCKS)
        for number in looked_at:
            if self._checksum(file, number) != checksums[number]:
                return f"block {number + 1} of {len(checksums)} has another checksum"
        if not is_untouched:
            with suppress(OSError):  # a folder that is only read
                self._write_meta(checksums, status.st_mtime_ns)  # all is as it was: a copy, or a backup brought back
        return None

    def checksum(self, number: int) -> str:
        """Return the SHA-256 of a block as it lies on disk."""
        with open_limited(self.path, MAX_ROWS_BYTES) as file:
            return self._checksum(file, number)

    def _checksum(self, file: BinaryIO, number: int) -> str:
        rows = self.blocks[number]
        data = os.pread(file.fileno(), len(rows) * self.row_bytes, rows.start * self.row_bytes)
        return hashlib.sha256(data).hexdigest()

    def write_block(self, descriptor: int, number: int, rows: npt.NDArray[Any]) -> str:
        """Write the rows of a block, in C order, and return its SHA-256."""
        data = memoryview(rows.data).cast("B")
        position = self.blocks[number].start * self.row_bytes
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], position + written)
        return hashlib.sha256(data).hexdigest()

    def write_meta(self, checksums: list[str]) -> None:
        """Declare the pack finished; everything else is on disk by then."""
        self._write_meta(checksums, self.path.stat().st_mtime_ns)

    def _write_meta(self, checksums: list[str], mtime_ns: int) -> None:
        content = {
            **{"facts": self.facts, "num_photos": self.num_photos, "size_bytes": self.size_bytes},
            **{"mtime_ns": mtime_ns, "blocks": checksums},
        }
        write_json(self.folder / META, {**content, "sha256": _digest(content)})

    def open(self) -> npt.NDArray[Any] | None:
        """Return the rows of a finished pack, as `mapped`; None where there are none, or damage is found.

        What is looked at is what is mapped, whatever another process does to the folder meanwhile.
        """
        self.mark_used()  # first: looking for damage may take a while
        if not self.is_finished():
            return None
        try:
            with open_limited(self.path, MAX_ROWS_BYTES) as file:
                if not _lease(file.fileno(), fcntl.LOCK_SH):
                    return None  # it is mended or removed at this moment
                return None if self._damage_of(file, every_block=False) else self._map(file)
        except OSError:
            return None

    def mapped(self) -> npt.NDArray[Any]:
        """Return the rows, `shape`, mapped from the file and read-only. For who holds the folder's lock."""
        self.mark_used()
        with open_limited(self.path, MAX_ROWS_BYTES) as file:
            _lease(file.fileno(), fcntl.LOCK_SH)
            return self._map(file)

    def _map(self, file: BinaryIO) -> npt.NDArray[Any]:
        # The map keeps the file open, and with it the lease.
        return np.asarray(np.memmap(file, self.kind.dtype, "r", shape=self.shape))

    def mark_used(self) -> None:
        """Say that the pack is used now, for `binventory cache prune`."""
        with suppress(OSError):  # a folder that is only read has no use for it
            os.utime(self.folder / META, follow_symlinks=False)

    def known_blocks(self) -> dict[int, str]:
        """Return the checksum of each block that was written earlier, of a finished pack or of one under way."""
        meta = self._read_meta()
        if meta is not None:
            return dict(enumerate(meta["blocks"]))
        try:
            text = read_limited(self.folder / JOURNAL).decode()
        except (OSError, UnicodeDecodeError):
            return {}
        lines = {int(number): checksum for number, checksum in _JOURNAL_LINE.findall(text)}
        return {number: checksum for number, checksum in lines.items() if number < len(self.blocks)}

    def _read_meta(self) -> dict[str, Any] | None:
        meta = read_meta(self.folder)
        if meta is None or meta["facts"] != self.facts or len(meta["blocks"]) != len(self.blocks):
            return None
        return meta


def is_mapped(descriptor: int, *, unknown: bool) -> bool:
    """Return whether another open file of a pack's rows is mapped; `unknown` where the file system cannot tell.

    If not, none will be while this one is open.
    """
    return not _lease(descriptor, fcntl.LOCK_EX, default=not unknown)


def _lease(descriptor: int, kind: int, *, default: bool = True) -> bool:
    """Lock a file of rows: shared by all that have it mapped, alone by who writes it; `default` where nothing can be.

    The lock belongs to the open file, so it is there as long as one of the descriptors or maps made of it.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without such locks
        return default
    return True


def read_meta(folder: Path) -> dict[str, Any] | None:
    """Return what a finished pack says of itself; None where there is nothing or not what was written."""
    try:
        meta: dict[str, Any] = json.loads(read_limited(folder / META))
        checksum = meta.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return meta if checksum == _digest(meta) else None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
