"""The photos of the benchmarks: real ones where they lie beside the checkout, else drawn ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

ABID = Path(__file__).resolve().parents[2] / "shared" / "abid"
COUNTS = [1, 2, 3, 4, 5]


def counted(source: Path, folder: Path) -> Path:
    """Make a folder of links to the bins with 1 to 5 items: those that are trained on."""
    for kind, suffix in (("bin-images", ".jpg"), ("metadata", ".json")):
        (folder / kind).mkdir(parents=True)
        for document in (source / "metadata").iterdir():
            if json.loads(document.read_bytes())["EXPECTED_QUANTITY"] in COUNTS:
                name = document.with_suffix(suffix).name
                (folder / kind / name).symlink_to((source / kind / name).absolute())
    return folder


def draw_photos(folder: Path, number: int, size: int) -> Path:
    """Draw photos as `<count>/<id>.jpg`: blurred noise, as large as photos of that size are."""
    generator = np.random.default_rng(0)
    for place in range(number):
        path = folder / str(COUNTS[place % len(COUNTS)]) / f"{place:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(generator.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        noise.resize((size, size), Image.Resampling.BILINEAR).save(path, quality=85)
    return folder
