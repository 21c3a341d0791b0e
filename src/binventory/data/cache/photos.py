"""The decoded photos of an index, ready to be gathered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from binventory.config.schema import DataConfig, PathsConfig
from binventory.cores import num_threads
from binventory.data.cache.build import PhotoFile, build
from binventory.data.cache.pack import Pack
from binventory.data.cache.staging import StagedPhotos
from binventory.data.columns import Column
from binventory.data.prepare import PreparedBins
from binventory.data.preprocess import Preprocessing

FILE_COLUMNS = ("path", "bytes", "mtime_ns", "place")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PackedPhotos:
    """Decoded photos and where those of each split lie among them.

    Attributes:
        folder: the pack's.
        pixels: (num_photos, image_size, image_size, 3) uint8, RGB, mapped from the file, read-only.
        rows: split -> (num_bins,) int64, the row of each of its bins in the index's order. Bins whose photo files are
            equal share a row.
        bad: row -> why its photo could not be read after it was indexed; it is black.
    """

    folder: Path
    pixels: npt.NDArray[np.uint8]
    rows: dict[str, Rows]
    bad: dict[int, str]


def open_photos(
    data: DataConfig,
    paths: PathsConfig,
    prepared: PreparedBins,
    preprocessing: Preprocessing,
    staged: StagedPhotos | None = None,
) -> PackedPhotos:
    """Return the photos of all splits, decoded now unless they were before.

    They lie in `<paths.cache_dir>/photos/<key>`, and the key is a hash of what the pixels depend on: the content of the
    photos, size, resize mode, interpolation and the decoder's version. So another split of the same photos reads the
    same file, and a photo that changed is never taken for the one that was packed. Several processes may call this at
    once. What `prepare_bins` put into `staged` is not decoded again; nothing is left there.

    Raises:
        ConfigError: the folder cannot be written to, or has no room.
    """
    table, rows = _distinct(prepared.index)
    hashes = (scalar.as_py() for scalar in table["sha256"])
    pack = Pack.of(Path(paths.cache_dir), preprocessing.pixel_facts(), hashes, len(table))
    pixels = pack.open()
    bad: dict[int, str] = {}
    if pixels is None:
        is_wanted = staged is not None and staged.preprocessing.pixel_facts() == preprocessing.pixel_facts()
        num_workers = num_threads(data.num_workers)
        pixels, bad = build(pack, _Files(table), preprocessing, num_workers, staged if is_wanted else None)
    if staged is not None:
        staged.close()
    return PackedPhotos(pack.folder, pixels, rows, bad)


def _distinct(index: pa.Table) -> tuple[pa.Table, dict[str, Rows]]:
    """Return one index row for each distinct photo of any split, and each split's bins as places among them."""
    index = index.append_column("place", pa.array(np.arange(len(index))))
    used = index.select(["split", "sha256", *FILE_COLUMNS]).filter(pc.is_valid(index["split"]))
    encoded = used["sha256"].combine_chunks().dictionary_encode()  # numbers the hashes as they come
    row = encoded.indices.to_numpy().astype(np.int64)
    _, first = np.unique(row, return_index=True)
    rows = {
        split: row[pc.equal(used["split"], split).to_numpy(zero_copy_only=False)]
        for split in pc.unique(used["split"]).to_pylist()
    }
    return used.take(pa.array(first)), rows


class _Files:
    """The photos of a table, each looked up when it is decoded."""

    def __init__(self, table: pa.Table) -> None:
        self.columns = [Column[Any](table[name]) for name in FILE_COLUMNS]

    def __getitem__(self, row: int) -> PhotoFile:
        path, size, mtime_ns, place = (column[row] for column in self.columns)
        return PhotoFile(path, (size, mtime_ns), place)
