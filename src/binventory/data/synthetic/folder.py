"""Drawn bins as files, in the public bucket's layout."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from binventory.cores import usable_cores
from binventory.data.progress import track
from binventory.data.synthetic.bins import Plan, make_bin, metadata_of, plan_bin
from binventory.data.synthetic.photo import draw_photo
from binventory.files import locked, refuse_linked, write_bytes, write_json, write_text

FILE_LIST = "file_list.json"
BATCH = 32  # bins that a process draws and writes at a time
WRITERS = 8  # files of a batch in flight: each waits for the disk


def draw_folder(folder: Path, *, num_bins: int, photo_size: int, seed: int) -> None:
    """Draw bins into `folder`: bin-images/ID.jpg, metadata/ID.json and, last, file_list.json.

    What is there already is kept, so a run that was killed is gone on with. Of two that draw at once, one waits:
    a photo that was drawn again would be another one to a run that has indexed it. On all cores.

    Args:
        folder: made if need be; it must hold no bins of other options.
        num_bins: how many.
        photo_size: width of each photo in pixels.
        seed: of the drawing; the same options give the same bytes.

    Raises:
        OSError: a file cannot be written.
        InputError: the folder, or one in it, is a link.
    """
    plans = [plan_bin(seed, index) for index in range(num_bins)]
    if (folder / FILE_LIST).exists() and not _missing(folder, plans):
        return
    for name in ("metadata", "bin-images"):
        refuse_linked(folder / name, folder.parent)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock")):
        missing = _missing(folder, plans)
        _draw(missing, partial(_draw_batch, folder=folder, photo_size=photo_size, seed=seed))
        listing = {str(count): _entries(plans, count) for count in sorted({plan.quantity for plan in plans})}
        write_json(folder / FILE_LIST, listing)


def _draw(missing: list[int], draw: Callable[[list[int]], list[int]]) -> None:
    batches = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
    if len(batches) <= 2 or not _can_spawn():  # of a few, a process would take longer to start
        for batch in batches:
            draw(batch)
        return
    workers = min(usable_cores(), len(batches))
    # spawn: the caller may hold threads and locks, which a fork would copy; a pool's workers end with their parent
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        drawn = (index for batch in pool.imap_unordered(draw, batches) for index in batch)
        for _ in track(drawn, len(missing), "drawing bins"):
            pass


def _can_spawn() -> bool:
    """Whether a new process can import the program: of one that was read from stdin, a pool starts workers for ever."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    return program is None or Path(program).is_file()


def _missing(folder: Path, plans: list[Plan]) -> list[int]:
    """Indexes of the bins of which a file is not there yet."""
    photos, metadata = ({path.name for path in (folder / name).glob("*")} for name in ("bin-images", "metadata"))
    return [
        index for index, plan in enumerate(plans) if f"{plan.id}.jpg" not in photos or f"{plan.id}.json" not in metadata
    ]


def _draw_batch(indexes: list[int], *, folder: Path, photo_size: int, seed: int) -> list[int]:
    with ThreadPoolExecutor(WRITERS) as writers:
        futures = []
        for index in indexes:
            drawn = make_bin(seed, index)
            text = json.dumps(metadata_of(drawn), indent=4) + "\n"
            photo = draw_photo(drawn, photo_size)
            futures.append(writers.submit(write_text, folder / "metadata" / f"{drawn.id}.json", text))
            futures.append(writers.submit(write_bytes, folder / "bin-images" / f"{drawn.id}.jpg", photo))
        for future in futures:
            future.result()
    return indexes


def _entries(plans: list[Plan], count: int) -> list[str]:
    return [f"data/metadata/{plan.id}.json" for plan in plans if plan.quantity == count]
