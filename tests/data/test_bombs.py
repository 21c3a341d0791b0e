"""What is small on disk and would be large in memory or take for ever is refused before it is read or decoded."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from binventory.data.index import build_index
from binventory.data.preprocess import Preprocessing
from binventory.data.sources.base import BinFiles, Listing
from tests.data import hostile
from tests.data.hostile import encode, photo
from tests.data.test_hostile import one_bin
from tests.memory import peak_growth_bytes


@pytest.mark.parametrize(
    "name",
    [
        *("bomb.png", "claims.jpg", "narrow.png", "scans.jpg", "runs.bmp", "claims.webp", "claims.tif", "tags.tif"),
        *("chunks.png", "chunks.webp", "segments.jpg", "metadata", "photo"),
    ],
)
def test_bomb_is_refused_unread(tmp_path: Path, name: str) -> None:
    (tmp_path / "bin-images").mkdir()
    (tmp_path / "metadata").mkdir()
    listing = one_bin(tmp_path)
    (files,) = listing.bins
    content = {
        "bomb.png": hostile.real_bomb,
        "claims.jpg": lambda: hostile.jpeg_claiming(60_000, 60_000),
        "narrow.png": lambda: hostile.png(1, 100_000_000, b""),
        "scans.jpg": lambda: hostile.many_scans(1000),
        "runs.bmp": lambda: hostile.bmp_of_runs(10_000, 10_000),
        "claims.webp": lambda: hostile.webp_claiming(16_000, 16_000),
        "claims.tif": lambda: hostile.tiff_claiming(257, 60_000),
        "tags.tif": lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65_535 + 4),
        "chunks.png": lambda: encode(photo(1), "PNG")[:33] + hostile.png_chunk(b"tEXt", b"") * 300_000,
        "chunks.webp": lambda: b"RIFF" + (2_400_004).to_bytes(4, "little") + b"WEBP" + b"none\0\0\0\0" * 300_000,
        "segments.jpg": lambda: b"\xff\xd8\xff" + b"\xfe\0\2\xff" * 300_000,
    }.get(name, lambda: encode(photo(1)))()
    assert files.metadata is not None
    files.metadata.write_bytes(hostile.stated(1))
    path = (files.photo or tmp_path).with_suffix(Path(name).suffix or ".jpg")
    path.write_bytes(content)
    listing = Listing((BinFiles("1", path, files.metadata, needs_metadata=True),))
    if name in ("metadata", "photo"):
        with (files.metadata if name == "metadata" else path).open("rb+") as file:
            file.truncate(100_000_000)
    started = time.process_time()
    (index, _), growth_bytes = peak_growth_bytes(lambda: build_index(listing, tmp_path / "scan.parquet"))
    assert growth_bytes < 20_000_000
    assert time.process_time() - started < 0.5
    assert index["problem"].to_pylist()[0].startswith(("too many", "metadata file too large", "file too large"))


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_the_narrowest_photo_takes_little_memory(resize: str, size: tuple[int, int]) -> None:
    data = encode(photo(1, *size), "PNG")
    pixels, growth_bytes = peak_growth_bytes(lambda: Preprocessing(32, resize).pixels(data, "a.png"))
    assert pixels.shape == (3, 32, 32)
    assert growth_bytes < 20_000_000


def test_a_photo_is_cropped_as_ever_unless_it_is_very_long() -> None:
    for width, height in ((40, 20), (20, 80), (33, 77)):
        whole = photo(1, width, height)
        scale = 16 / min(width, height)
        resized = whole.resize((round(width * scale), round(height * scale)), 2)
        left, top = (-((16 - side) // 2) for side in resized.size)
        expected = resized.crop((left, top, left + 16, top + 16))
        pixels = Preprocessing(16, "crop").pixels(encode(whole, "PNG"), "a.png")
        difference = pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)
        assert np.abs(difference).max() <= 2, "torch rounds in other places than Pillow"
