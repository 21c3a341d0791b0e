"""Small bins in the public bucket's layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def write_bin() -> Callable[..., None]:
    """Write one bin's photo (noise drawn from its id) and metadata into a folder in bucket layout."""

    def write(folder: Path, bin_id: str, quantity: int, items: Mapping[str, int] | None = None) -> None:
        (folder / "bin-images").mkdir(parents=True, exist_ok=True)
        (folder / "metadata").mkdir(exist_ok=True)
        pixels = np.random.default_rng(list(bin_id.encode())).integers(0, 256, (8, 10, 3), dtype=np.uint8)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        (folder / "bin-images" / f"{bin_id}.jpg").write_bytes(buffer.getvalue())
        listing = {asin: {"quantity": n} for asin, n in (items or {f"ASIN{bin_id}": quantity}).items()}
        document = {"BIN_FCSKU_DATA": listing, "EXPECTED_QUANTITY": quantity}
        (folder / "metadata" / f"{bin_id}.json").write_text(json.dumps(document))

    return write
