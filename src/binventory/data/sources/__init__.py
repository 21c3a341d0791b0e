"""Where bins come from. `make_source` builds what `data.reader` names."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from binventory.config.schema import DataConfig, S3Config
from binventory.config.targets import import_target
from binventory.data.sources.base import Source
from binventory.errors import ConfigError


def make_source(data: DataConfig, s3: S3Config, data_dir: str | Path) -> Source:
    """Build the reader of `data.source`; nothing is read or fetched before its `fetch()`.

    Args:
        data: the `data` config node. `data.reader` holds `_target_`, the class, and its options.
        s3: the `s3` config node.
        data_dir: folder under which downloaded and drawn files are kept.

    Raises:
        ConfigError: `data.reader` names no class that can be imported, or options that it doesn't take.
    """
    reader = OmegaConf.to_container(data.reader, resolve=True) if OmegaConf.is_config(data.reader) else data.reader
    if not isinstance(reader, dict) or not isinstance(reader.get("_target_"), str):
        raise ConfigError(f"data.reader={reader!r}: needs _target_: package.module.Class; set data=… or data.reader")
    options = {str(key): value for key, value in reader.items() if key != "_target_"}
    reader_class = import_target("data.reader", reader["_target_"])
    arguments = {"file_list": data.file_list, "limit": data.limit, "s3": s3, "data_dir": data_dir} | options
    try:
        inspect.signature(reader_class).bind(data.source, **arguments)
    except TypeError as error:
        raise ConfigError(f"data.reader: {reader['_target_']} does not fit these options: {error}") from error
    return cast(Source, reader_class(data.source, **arguments))
