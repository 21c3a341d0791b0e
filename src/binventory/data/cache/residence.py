"""Where decoded photos or frozen features lie while batches are gathered from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from binventory.data.cache.pack import FEATURES, PHOTOS
from binventory.errors import ConfigError

Rows = npt.NDArray[Any]

DEVICE_SHARE = 0.5  # of a GPU's free memory; the rest is the network's
CHUNK_BYTES = 256 * 2**20


def place_rows(rows: Rows, residence: str, device: torch.device) -> Rows | Tensor:
    """Return the rows of a pack where `data.residence` wants them.

    Args:
        rows: (N, …) uint8 or float32, mapped from a file.
        residence: device, memory (a copy in RAM), disk (the mapping, which the system keeps in RAM while it can), or
            auto: device on a GPU where they fit in half of its free memory, else disk.
        device: where the network is trained.

    Returns:
        The same as a tensor on the device, or as an array.

    Raises:
        ConfigError: they do not fit where they shall lie.
    """
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    if residence == "auto":
        fits = free_bytes is not None and rows.nbytes <= DEVICE_SHARE * free_bytes
        residence = "device" if fits else "disk"
    if residence == "disk":
        return rows
    kind = PHOTOS if rows.dtype == PHOTOS.dtype else FEATURES
    size = f"{rows.nbytes / 1e9:.1f} GB of {kind.rows}"
    if residence == "device" and free_bytes is not None and rows.nbytes > DEVICE_SHARE * free_bytes:
        raise ConfigError(
            f"data.residence=device: {size} do not fit in half of the {free_bytes / 1e9:.1f} GB that are free on"
            f" {device}; set data.residence=auto"
        )
    try:
        return _on_device(rows, device) if residence == "device" else np.array(rows)
    except (MemoryError, RuntimeError) as error:  # RuntimeError: how torch says it of the CPU's memory
        raise ConfigError(f"data.residence={residence}: no memory for {size}; set data.residence=disk") from error


def _on_device(rows: Rows, device: torch.device) -> Tensor:
    dtype = torch.uint8 if rows.dtype == np.uint8 else torch.float32
    placed = torch.empty(rows.shape, dtype=dtype, device=device)
    step = max(1, CHUNK_BYTES // max(1, rows[0].nbytes))
    for first in range(0, len(rows), step):
        placed[first : first + step] = torch.from_numpy(np.array(rows[first : first + step]))
    return placed
