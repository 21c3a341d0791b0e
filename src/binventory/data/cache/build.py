"""Building a pack: every row is made once, and what was made before a kill is kept."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from binventory.data.cache.pack import JOURNAL, LOCK, Pack, is_mapped
from binventory.data.cache.staging import StagedPhotos
from binventory.data.decode import PhotoError, read_photo
from binventory.data.preprocess import Preprocessing
from binventory.data.progress import track
from binventory.errors import ConfigError
from binventory.files import atomic_path, locked, open_own, refuse_linked, refuse_links

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class PhotoFile(NamedTuple):
    """Where the photo of a row lies, its `stamp_of` when it was indexed, and its place among the staged ones."""

    path: str
    stamp: tuple[int, int]
    place: int | None = None


class PhotoFiles(Protocol):
    """A list of `PhotoFile`, or what looks them up."""

    def __getitem__(self, row: int, /) -> PhotoFile:
        """Return the photo of a row."""
        ...


# From the numbers of some rows to the rows, in C order, and why some of them are not what they should be.
MakeRows = Callable[[range], tuple[npt.NDArray[Any], dict[int, str]]]


class Opened(NamedTuple):
    """The rows of a pack, mapped, and row -> what is wrong with it."""

    rows: npt.NDArray[Any]
    bad: dict[int, str]


class Block(NamedTuple):
    """A block that is on disk; `bad` says why rows of it are no good, and a block with such rows is not built."""

    number: int
    checksum: str
    bad: dict[int, str]


def build(
    pack: Pack,
    photos: PhotoFiles,
    preprocessing: Preprocessing,
    num_workers: int,
    staged: StagedPhotos | None = None,
) -> Opened:
    """Make a pack of decoded photos whole; see `build_rows`.

    Args:
        pack: where, and what of.
        photos: one a row.
        preprocessing: bytes to pixels.
        num_workers: threads that decode. The decoder runs outside the interpreter's lock, so threads use all cores.
        staged: photos that this process decoded, by the same preprocessing, when it indexed them.

    Returns:
        The photos, and row -> why its photo could not be read; the row is black.
    """
    decode = partial(_decode, photos, preprocessing, staged)
    label = f"decoding photos to {preprocessing.image_size} pixels, once"
    return build_rows(pack, decode, num_workers, label, None if staged is None else staged.forget)


def build_rows(
    pack: Pack, make: MakeRows, num_workers: int, label: str, make_room: Callable[[], object] | None = None
) -> Opened:
    """Make a pack whole, whatever there is of it, and map it; another process that builds it is waited for.

    Rows that a run has mapped stay as they are: what is made anew becomes another file.

    Args:
        pack: where, and what of.
        make: gives rows of it.
        num_workers: threads that call `make`.
        label: what the progress line calls this.
        make_room: gives room on a full disk back.

    Returns:
        The rows, and row -> what is wrong with it. Then the pack is not finished: the next build tries again.

    Raises:
        ConfigError: the folder cannot be written to, or has no room.
        InputError: it is, or holds, a link.
    """
    refuse_linked(pack.folder, pack.folder.parents[1])
    if pack.folder.exists():
        refuse_links(pack.folder)
    with _writing(pack), locked(pack.folder / LOCK):
        damage = pack.find_damage(every_block=True) if pack.is_finished() else "not finished"
        if damage is None:
            return Opened(pack.mapped(), {})
        if pack.is_finished():
            print(f"{pack.kind.name} {pack.folder}: {damage}; made again", file=sys.stderr, flush=True)
        with _opened(pack, make_room) as file, _journal(pack) as journal:
            blocks = _build_blocks(_Builder(pack, make, pack.known_blocks(), file, journal), num_workers, label)
            os.fsync(file)
        bad = {row: reason for block in blocks for row, reason in block.bad.items()}
        if not bad:
            pack.write_meta([block.checksum for block in sorted(blocks)])
            (pack.folder / JOURNAL).unlink()
        return Opened(pack.mapped(), bad)


@dataclass(frozen=True)
class _Builder:
    """What every thread needs to build any block."""

    pack: Pack
    make: MakeRows
    known: dict[int, str]
    file: int
    journal: FileIO

    def build(self, number: int) -> Block:
        """Put a block on disk, unless it is there and whole, and write down that it is."""
        if number in self.known and self.pack.checksum(number) == self.known[number]:
            return Block(number, self.known[number], {})
        rows, bad = self.make(self.pack.blocks[number])
        checksum = self.pack.write_block(self.file, number, rows)
        if not bad:
            self.journal.write(f"{number} {checksum}\n".encode())  # one write: lines of two threads do not mix
        return Block(number, checksum, bad)


def _decode(
    photos: PhotoFiles, preprocessing: Preprocessing, staged: StagedPhotos | None, rows: range
) -> tuple[npt.NDArray[np.uint8], dict[int, str]]:
    pixels = np.zeros((len(rows), preprocessing.image_size, preprocessing.image_size, 3), dtype=np.uint8)
    bad = {}
    for place, row in enumerate(rows):
        photo = photos[row]
        known = None if staged is None or photo.place is None else staged.get(photo.place)
        try:
            pixels[place] = _read(photo, preprocessing) if known is None else known
        except PhotoError as error:
            bad[row] = str(error)
    return pixels, bad


def _read(photo: PhotoFile, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    data = read_photo(Path(photo.path), photo.stamp)
    return preprocessing.pixels(data, photo.path).permute(1, 2, 0).numpy()


def _build_blocks(builder: _Builder, num_workers: int, label: str) -> list[Block]:
    """Build all blocks on threads and say how far it is."""
    pack = builder.pack
    blocks: list[Block] = []

    def rows() -> Iterator[int]:
        for future in as_completed([threads.submit(builder.build, number) for number in range(len(pack.blocks))]):
            block = future.result()
            blocks.append(block)
            yield from pack.blocks[block.number]

    with ThreadPoolExecutor(num_workers, thread_name_prefix="pack") as threads:
        try:
            for _ in track(rows(), pack.num_photos, label):
                pass
        finally:
            threads.shutdown(cancel_futures=True)  # after an interrupt only the blocks under way are waited for
    return blocks


@contextmanager
def _opened(pack: Pack, make_room: Callable[[], object] | None) -> Iterator[int]:
    """Open the file of the rows at its full size; what it held stays. One that is mapped is left, for a copy of it."""
    was_there = pack.path.exists()
    descriptor = open_own(pack.path, os.O_RDWR | os.O_CREAT)
    if is_mapped(descriptor, unknown=True):
        os.close(descriptor)
        with atomic_path(pack.path) as temporary:
            shutil.copyfile(pack.path, temporary)
        descriptor = open_own(pack.path, os.O_RDWR | os.O_CREAT)
        is_mapped(descriptor, unknown=True)
    try:
        try:
            # now, and not in the middle: a full disk is known before any work is done
            _reserve(descriptor, pack, make_room)
        except OSError:
            if not was_there:
                pack.path.unlink()
            raise
        os.ftruncate(descriptor, pack.size_bytes)  # what stood behind the last row
        yield descriptor
    finally:
        os.close(descriptor)


def _journal(pack: Pack) -> FileIO:
    """Open the list of the blocks that are on disk, for further ones."""
    return os.fdopen(open_own(pack.folder / JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab", buffering=0)


def _reserve(descriptor: int, pack: Pack, make_room: Callable[[], object] | None) -> None:
    try:
        os.posix_fallocate(descriptor, 0, pack.size_bytes)
    except OSError:
        if make_room is None:
            raise
        make_room()
        os.posix_fallocate(descriptor, 0, pack.size_bytes)


@contextmanager
def _writing(pack: Pack) -> Iterator[None]:
    """What the file system refuses is the user's to mend."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if error.errno in NO_ROOM:
            size = f"{pack.size_bytes / 1e9:.1f} GB" if pack.size_bytes >= 1e8 else f"{pack.size_bytes / 1e6:.1f} MB"
            raise ConfigError(
                f"paths.cache_dir: {pack.folder} has no room for {size} of {pack.kind.rows} ({reason}); make some,"
                f" name another folder, or set {pack.kind.without}"
            ) from error
        raise ConfigError(
            f"paths.cache_dir: {pack.folder} cannot be written to ({reason}); name another folder, or set"
            f" {pack.kind.without}"
        ) from error
