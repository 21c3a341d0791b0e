"""`prepare`: everything that comes before training, without training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from binventory.config.schema import PrepareConfig
from binventory.data.cache.photos import open_photos
from binventory.data.cache.staging import StagedPhotos
from binventory.data.datamodule import make_preprocessing
from binventory.data.export import export_imagefolder
from binventory.data.prepare import prepare_bins
from binventory.files import write_json


def run(config: PrepareConfig, run_dir: Path) -> None:
    """Fetch, read, split and write the index of `config.data`; say what became of the bins, also in `summary.json`.

    With `data.cache=true` their photos are decoded too, for the trainings that take them.

    With `layout=imagefolder` the photos are also written as a folder tree, to `output` or, when that is null, to
    `<paths.data_dir>/imagefolder/<fingerprint>`.

    Raises:
        ConfigError, InputError: as `prepare_bins` and `export_imagefolder`.
    """
    staged = StagedPhotos.of(config.data, config.paths) if config.data.cache else None
    bins = prepare_bins(config.data, config.s3, config.paths, staged)
    print(*bins.summary.lines(), sep="\n")
    print(f"index: {bins.index_path}")
    if config.data.cache:
        photos = open_photos(config.data, config.paths, bins, make_preprocessing(config.data, bins), staged)
        print(f"photos: {photos.folder}")
    if config.layout == "imagefolder":
        default = Path(config.paths.data_dir) / "imagefolder" / bins.fingerprint[:16]
        output = default if config.output is None else Path(config.output)
        print(f"imagefolder: {export_imagefolder(bins, output)}")
    write_json(run_dir / "summary.json", asdict(bins.summary))
