"""What every source of bins gives: a listing of files on this machine, before anything is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)  # half a million of them are listed at once
class BinFiles:
    """Where one bin's files lie.

    Attributes:
        id: the bin's name as a string; `1000` and `01000` are two bins of the public bucket, so never a number.
        photo: the photo's file; None when it is missing although something else of the bin exists.
        metadata: the ABID metadata JSON; None when it is missing or the source has none.
        quantity: the label where the source itself states it (ImageFolder, table); None where metadata does.
        group: the source's own group of bins that must not be parted by a split; None where it states none.
        needs_metadata: whether a missing metadata file is a fault of this bin (bucket layout) or usual (ImageFolder).
        problem: why this bin cannot be used, when the source already knows (a failed download, a bad table row).
        note: what is odd about this bin, which is used all the same.
    """

    id: str
    photo: Path | None
    metadata: Path | None = None
    quantity: int | None = None
    group: str | None = None
    needs_metadata: bool = False
    problem: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Listing:
    """The bins of a source.

    Attributes:
        bins: every bin of which at least one file exists (or that has a `problem`), in listing order.
        absent: ids that were asked for and of which nothing exists here: a partial source, not a fault.
        split_list: bin id -> count in *file order* from the source's own file_list.json (or `data.file_list`);
            None where there is no such list. `data.split=report` splits it.
        not_taken: names of files that look like photos and are not read, such as a.heic.
    """

    bins: Sequence[BinFiles]
    absent: tuple[str, ...] = ()
    split_list: Mapping[str, int] | None = field(default=None)
    not_taken: tuple[str, ...] = ()


class Source(Protocol):
    """A reader of one layout.

    Constructed as `Class(location, *, file_list, limit, s3, data_dir, **options)`: `location` is `data.source`,
    `file_list` a path or S3 URI or None, `limit` the largest number of bins or None, `s3` the `s3` config node,
    `data_dir` where downloaded or drawn files are kept, `options` what else stands in `data.reader`.
    """

    def fetch(self) -> Listing:
        """Bring all files onto this machine and list them.

        Raises:
            InputError: the location, the list or the table as a whole cannot be used.
        """
        ...
