"""The bins of a listing as columns: half a million of them as Python objects take a gigabyte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from binventory.data.columns import PackedRows
from binventory.data.sources.base import BinFiles


class PackedBins(PackedRows[BinFiles]):
    """Bins of a listing."""

    SCHEMA = pa.schema(
        [
            *((name, pa.binary()) for name in ("id", "photo", "metadata", "group", "problem", "note")),
            ("quantity", pa.int64()),
            ("needs_metadata", pa.bool_()),
        ]
    )

    def _row(self, *values: Any) -> BinFiles:
        bin_id, photo, metadata, group, problem, note, quantity, needs_metadata = values
        photo, metadata = (None if path is None else Path(path) for path in (photo, metadata))
        return BinFiles(bin_id, photo, metadata, quantity, group, needs_metadata, problem, note)
