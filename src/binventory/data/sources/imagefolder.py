"""Bins laid out as `<count>/<id>.jpg`, as torchvision's ImageFolder reads them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from binventory.config.schema import S3Config
from binventory.data.reading import MAX_LIST_BYTES
from binventory.data.sources.base import BinFiles, Listing
from binventory.data.sources.file_list import own_list_of_folder, read_file_list, take
from binventory.data.sources.photo_tree import COUNT_NAME, PhotoFile, count_of, ids_of, list_photos
from binventory.data.sources.s3 import is_s3, naming
from binventory.data.text import cell_text, id_of_name, printable
from binventory.errors import InputError
from binventory.files import UnreadableError, read_limited

_TREE_HINT = "folders are named by quantity: 1/, 2/, …"


class ImageFolderSource:
    """Reads one tree of count folders with photos; the folder's name is the label.

    A bin's id is its photo's file name without the ending where no other photo has the same, else made of the path.
    Taken are the bins of `file_list` or of the tree's own file_list.json where there is one, else all; of these the
    first `limit` by name. A tree on S3 is fetched whole. Arguments as in `Source`.
    """

    def __init__(
        self, location: str, *, file_list: str | None, limit: int | None, s3: S3Config, data_dir: str | Path
    ) -> None:
        self.location = location
        self.file_list = file_list
        self.limit = limit
        self.s3 = s3
        self.data_dir = data_dir

    def fetch(self) -> Listing:
        """List the tree. Raises InputError when it is no tree of counts or two photos would have one id."""
        folder = Path(self.location)
        with naming("data.file_list"):
            wanted = None if self.file_list is None else read_file_list(self.file_list, self.s3)
        with naming("data.source"):
            if not is_s3(self.location):
                _check_tree(folder)
                wanted = wanted or own_list_of_folder(folder)
            tree = list_photos(self.location, self.s3, self.data_dir)
            return take(self._bins(tree.photos), wanted, self.limit, self.location, tree.not_taken)

    def _bins(self, photos: Sequence[PhotoFile]) -> Iterator[BinFiles]:
        groups = _exported_groups(Path(self.location))
        in_tree = []
        for photo in photos:
            if photo.path is None and count_of(photo.name) is None:  # not fetched because of what its key is
                yield BinFiles(id_of_name(photo.name)[0], None, problem=photo.error)
            else:
                in_tree.append(photo)
        with naming(self.location):
            made = ids_of([photo.name for photo in in_tree])
        for photo, photo_id in zip(in_tree, made, strict=True):
            found = _bin_files(photo, photo_id, self.location)
            yield replace(found, group=groups.get(found.id))


def _bin_files(photo: PhotoFile, photo_id: str, where: str) -> BinFiles:
    count = count_of(photo.name)
    if count is None:
        name = printable(photo.name)
        raise InputError(f"{where}: {name} is not <count>/<id>.jpg with a whole number as count; {_TREE_HINT}")
    bin_id, problem = id_of_name(photo_id)
    is_shared = photo_id != PurePosixPath(photo.name).stem
    note = "its file name stands more than once, so the id is made of its path" if is_shared else None
    return BinFiles(bin_id, photo.path, quantity=count, problem=photo.error or problem, note=note)


def _exported_groups(folder: Path) -> dict[str, str]:
    """Read the groups of a tree that `layout=imagefolder` wrote: without them its siblings could be parted."""
    meta = folder.with_name(f"{folder.name}_meta.csv")
    if not meta.is_file():
        return {}
    try:
        lines = io.StringIO(read_limited(meta, MAX_LIST_BYTES).decode(errors="replace"), newline="")
        rows = [(row.get("id"), cell_text(row.get("group"))) for row in csv.DictReader(lines)]
        return {bin_id: group for bin_id, group in rows if bin_id and group}
    except (csv.Error, UnreadableError) as error:
        raise InputError(f"{meta}: cannot be read as csv: {error}; mend or remove it") from error


def _check_tree(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check the path")
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    parts = [name for name in names if name in ("train", "test", "val")]
    if parts:
        raise InputError(f"{folder}: has {'/ and '.join(parts)}/; name one, e.g. data.source={folder / parts[0]}")
    odd = [name for name in names if not COUNT_NAME.fullmatch(name)]
    if odd:
        raise InputError(f"{folder}: folder {odd[0]!r} is no count; {_TREE_HINT}")
