"""Drawn bins, for a first run without any photos: made once, then read like any other folder in bucket layout."""

from __future__ import annotations

import hashlib
from pathlib import Path

from binventory.config.schema import S3Config
from binventory.data.sources.base import Listing
from binventory.data.sources.bucket import BucketSource
from binventory.data.synthetic.folder import draw_folder
from binventory.errors import ConfigError, InputError

NAME = "synthetic"
DRAWING_VERSION = 1  # raise it with any change of what is drawn: old folders are then left alone


class SyntheticSource:
    """Draws bins below `data_dir`, then reads them as a `BucketSource` does; other arguments as in `Source`.

    Args:
        location: must be "synthetic".
        num_bins: bins drawn; fewer are a part of more.
        photo_size: width of a photo in pixels; its height is 0.68 to 1.0 of that.
        seed: of the drawing.
    """

    def __init__(
        self,
        location: str,
        *,
        file_list: str | None,
        limit: int | None,
        s3: S3Config,
        data_dir: str | Path,
        num_bins: int,
        photo_size: int,
        seed: int,
    ) -> None:
        self.location = location
        self.file_list = file_list
        self.limit = limit
        self.s3 = s3
        self.data_dir = Path(data_dir)
        self.num_bins = num_bins
        self.photo_size = photo_size
        self.seed = seed

    @property
    def folder(self) -> Path:
        """Where bins of these options lie."""
        options = f"version={DRAWING_VERSION} num_bins={self.num_bins} photo_size={self.photo_size} seed={self.seed}"
        return self.data_dir / NAME / hashlib.sha256(options.encode()).hexdigest()[:12]

    def fetch(self) -> Listing:
        """Draw what is not there yet, then list.

        Raises:
            ConfigError: the location names photos, which would not be read.
            InputError: the bins cannot be written, or the file list cannot be used.
        """
        if self.location != NAME:
            raise ConfigError(
                f"data.source={self.location}: data=synthetic draws its own bins and reads no others; for photos in "
                f"bucket layout set data=abid, else data=imagefolder or data=table"
            )
        folder = self.folder
        try:
            draw_folder(folder, num_bins=self.num_bins, photo_size=self.photo_size, seed=self.seed)
        except OSError as error:
            raise InputError(
                f"paths.data_dir={self.data_dir}: synthetic bins cannot be written: {error}; "
                "name a folder with room that may be written to"
            ) from error
        return BucketSource(
            str(folder), file_list=self.file_list, limit=self.limit, s3=self.s3, data_dir=self.data_dir
        ).fetch()
