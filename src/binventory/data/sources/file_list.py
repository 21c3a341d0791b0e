"""Which bins are taken: file lists (JSON, count -> list of `data/metadata/ID.json`), names and limits."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from binventory.config.schema import S3Config
from binventory.data.reading import MAX_LIST_BYTES
from binventory.data.sources.base import BinFiles, Listing
from binventory.data.sources.s3 import is_s3, read_object
from binventory.data.sources.web import is_url, read_url
from binventory.data.text import MAX_ID_BYTES, brief, can_be_id
from binventory.errors import InputError
from binventory.files import UnreadableError, read_limited

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

FILE_LIST_NAME = "file_list.json"
REPORT_LIST = "report"  # the source report's list, which comes with the package; ./report is a file of that name
NAME_SUFFIX = b".jpg"  # of the keys by which bins are in order


def read_file_list(location: str | Path, s3: S3Config | None = None) -> dict[str, int]:
    """Read the source report's list ("report"), or a file list from a local path, a URL or, with `s3`, an S3 URI.

    Returns:
        Bin id -> count, in file order: the counts in the order of the JSON's keys, within a count the ids as listed.

    Raises:
        InputError: the list is missing or is not what a file list must be; the message names it.
    """
    name = str(location)
    return parse_file_list(file_list_bytes(name, s3), name)


def file_list_bytes(name: str, s3: S3Config | None = None) -> bytes:
    """Read the bytes of a file list, at most 512 MiB. Arguments and errors as `read_file_list`."""
    if name == REPORT_LIST:
        return gzip.decompress(Path(__file__).with_name("report_list.json.gz").read_bytes())
    if is_url(name):
        return read_url(name, MAX_LIST_BYTES)
    if not is_s3(name):
        try:
            return read_limited(name, MAX_LIST_BYTES)
        except UnreadableError as error:
            raise InputError(f"file list {name}: {error}") from error
    if s3 is None:
        raise InputError(f"file list {name}: S3 needs the s3 config; name a local file instead")
    data = read_object(name, s3)
    if data is None:
        raise InputError(f"file list {name}: no such object; check the bucket and the key")
    return data


def parse_file_list(data: bytes, name: str) -> dict[str, int]:
    """Parse a file list's bytes; `name` is what error messages call it. Returns and raises as `read_file_list`."""
    counts: dict[str, int] = {}
    for key, entries in _load_object(data, name).items():
        if re.fullmatch(r"[0-9]{1,9}", key) is None:
            raise InputError(f"file list {name}: key {brief(key)} is no count; keys are whole numbers such as '3'")
        if not isinstance(entries, list):
            raise InputError(
                f"file list {name}: count {key} holds {brief(entries)}, not a list of data/metadata/ID.json"
            )
        for entry in entries:
            bin_id = _entry_id(entry, key, name)
            if bin_id in counts:
                raise InputError(f"file list {name}: id {bin_id} is listed twice, under {counts[bin_id]} and {key}")
            counts[bin_id] = int(key)
    if not counts:
        raise InputError(f"file list {name}: lists no bins")
    return counts


def check_id(bin_id: str, where: str) -> str:
    """Return the id when it can be a file name in any folder, and never one outside of it.

    Raises:
        InputError: naming the id and `where` it stands.
    """
    if not can_be_id(bin_id):
        raise InputError(
            f"{where}: {brief(bin_id)} cannot be a bin id: an id is a file name without '/' or '\\', not hidden, "
            f"printable, at most {MAX_ID_BYTES} bytes"
        )
    return bin_id


def name_order(bin_id: str) -> bytes:
    """Sort key that orders ids as S3 lists their photos: by the bytes of the key, suffix included."""
    return bin_id.encode() + NAME_SUFFIX


def take(
    bins: Iterable[BinFiles],
    wanted: Mapping[str, int] | None,
    limit: int | None,
    where: str,
    not_taken: Sequence[str] = (),
) -> Listing:
    """Return what exists (`bins`, and pictures that are not read) as a listing, cut and raising as `places_of`."""
    from binventory.data.listing import PackedBins
    from binventory.data.summary import not_taken_lines

    packed = PackedBins(bins)
    if not_taken and not len(packed):
        raise InputError(f"{where}: holds no bins; {'; '.join(not_taken_lines(not_taken))}")
    places, absent = places_of(packed.table["id"], wanted, limit, where)
    return Listing(bins=packed.at(places), absent=absent, split_list=wanted, not_taken=tuple(not_taken))


def places_of(
    ids: pa.ChunkedArray, wanted: Mapping[str, int] | None, limit: int | None, where: str
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Cut what exists (`ids` in UTF-8, none twice) to the ids of a file list, if any, and to `limit`.

    The limit takes the first ids by name, not in file order: a file list goes count by count, so the head of it would
    be one class. It counts listed ids whether they exist or not, so that a partial source takes the same bins.

    Returns:
        The places among `ids` of what is taken, in the order of names, and the ids of the list that do not exist.

    Raises:
        InputError: nothing is left; the message starts with `where`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    taken = None if wanted is None else pa.array(sorted(wanted, key=name_order)[:limit]).cast(pa.binary())
    if taken is None:
        places = pc.sort_indices(pc.binary_join_element_wise(ids, NAME_SUFFIX, b"")).to_numpy()[:limit]
        absent: tuple[str, ...] = ()
    else:
        found = pc.index_in(taken, value_set=ids.combine_chunks())
        places = found.drop_null().to_numpy()
        absent = tuple(taken.filter(found.is_null()).cast(pa.string()).to_pylist())
    if not len(places):
        reason = "holds no bins" if taken is None else f"holds none of the {len(taken)} bins of the file list"
        raise InputError(f"{where}: {reason}; check the location, or set data.file_list=null to take all that is there")
    return places.astype("int64"), absent


def own_list_of_folder(folder: Path) -> dict[str, int] | None:
    """Read the file_list.json that lies in a source's folder; None where there is none."""
    path = folder / FILE_LIST_NAME
    return read_file_list(path) if path.exists() else None


def _load_object(data: bytes, name: str) -> dict[str, object]:
    def refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        merged = dict(pairs)
        if len(merged) < len(pairs):  # json would keep the last and lose the others' bins without a word
            raise InputError(f"file list {name}: a key stands twice among {brief([key for key, _ in pairs])}")
        return merged

    try:
        parsed = json.loads(data, object_pairs_hook=refuse_repeats)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON and bad UTF-8 alike
        raise InputError(f"file list {name}: is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise InputError(f"file list {name}: holds {brief(parsed)}, not an object of count -> list")
    return parsed


def _entry_id(entry: object, count: str, name: str) -> str:
    where = f"file list {name}: count {count}"
    if not isinstance(entry, str):
        raise InputError(f"{where}: entry {brief(entry)} is no text such as 'data/metadata/00001.json'")
    path = PurePosixPath(entry.replace("\\", "/"))  # lists written on Windows; no id has a backslash
    if not entry.endswith(".json") or ".." in path.parts:
        raise InputError(f"{where}: entry {brief(entry)} is not of the form data/metadata/ID.json")
    return check_id(path.name.removesuffix(".json"), where)
