"""Photos decoded while they are read for the index, until the pack is built whose rows they become."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from torch import Tensor

from binventory.config.schema import DataConfig, PathsConfig
from binventory.data.preprocess import Preprocessing


class StagedPhotos:
    """Decoded photos of a listing, in a file without a name: whatever ends the process, nothing of it is left.

    A photo that is not there is decoded again by who wants it, so a disk without room is no error.

    Args:
        folder: on the disk where there is room for decoded photos: `paths.cache_dir`.
        preprocessing: bytes to pixels.
        counts: photos of bins with another quantity are not kept.
    """

    def __init__(self, folder: Path, preprocessing: Preprocessing, counts: Collection[int]) -> None:
        self.folder = folder
        self.preprocessing = preprocessing
        self.counts = frozenset(counts)
        self._file: IO[bytes] | None = None
        self._is_there = bytearray()

    @classmethod
    def of(cls, data: DataConfig, paths: PathsConfig) -> StagedPhotos:
        """Return what a run needs whose photos are packed."""
        preprocessing = Preprocessing(data.image_size, data.resize, data.interpolation)
        return cls(Path(paths.cache_dir), preprocessing, data.counts)

    def begin(self, num_bins: int) -> None:
        """Make room for the photos of a listing."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
            self._is_there = bytearray(num_bins)

    def put(self, place: int, pixels: Tensor) -> None:
        """Keep what `Preprocessing.pixels` gave for the bin at a place of the listing. Threads may call it at once."""
        is_there = self._is_there  # what another thread forgets meanwhile stays forgotten
        if not is_there:
            return
        data = pixels.permute(1, 2, 0).contiguous().numpy().data.cast("B")
        assert self._file is not None
        try:
            is_whole = os.pwrite(self._file.fileno(), data, place * len(data)) == len(data)
        except OSError:
            self.forget()
        else:
            is_there[place] = is_whole

    def get(self, place: int) -> npt.NDArray[np.uint8] | None:
        """Return the photo of a place, (image_size, image_size, 3); None where it was not kept."""
        if not self._is_there or not self._is_there[place]:
            return None
        assert self._file is not None
        side = self.preprocessing.image_size
        data = os.pread(self._file.fileno(), 3 * side**2, place * 3 * side**2)
        return np.frombuffer(data, dtype=np.uint8).reshape(side, side, 3)

    def forget(self) -> None:
        """Give the room on the disk back: the photos of the pack come first."""
        self._is_there = bytearray()
        if self._file is not None:
            self._file.truncate(0)  # not closed: a thread that writes at this moment may do so only here

    def close(self) -> None:
        """Keep nothing any more."""
        self._is_there = bytearray()
        if self._file is not None:
            self._file.close()
