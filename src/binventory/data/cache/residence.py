"""Where decoded photos lie while batches are gathered from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from binventory.errors import ConfigError

Pixels = npt.NDArray[np.uint8]

DEVICE_SHARE = 0.5  # of a GPU's free memory; the rest is the network's
CHUNK_BYTES = 256 * 2**20


def place_photos(pixels: Pixels, residence: str, device: torch.device) -> Pixels | Tensor:
    """Return photos where `data.residence` wants them.

    Args:
        pixels: (N, H, W, 3) uint8, mapped from a file.
        residence: device, memory (a copy in RAM), disk (the mapping, which the system keeps in RAM while it can), or
            auto: device on a GPU where they fit in half of its free memory, else disk.
        device: where the network is trained.

    Returns:
        (N, H, W, 3) uint8: a tensor on the device, or an array.

    Raises:
        ConfigError: the photos do not fit where they shall lie.
    """
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    if residence == "auto":
        fits = free_bytes is not None and pixels.nbytes <= DEVICE_SHARE * free_bytes
        residence = "device" if fits else "disk"
    if residence == "disk":
        return pixels
    size = f"{pixels.nbytes / 1e9:.1f} GB of decoded photos"
    if residence == "device" and free_bytes is not None and pixels.nbytes > DEVICE_SHARE * free_bytes:
        raise ConfigError(
            f"data.residence=device: {size} do not fit in half of the {free_bytes / 1e9:.1f} GB that are free on"
            f" {device}; set data.residence=auto"
        )
    try:
        return _on_device(pixels, device) if residence == "device" else np.array(pixels)
    except (MemoryError, RuntimeError) as error:  # RuntimeError: how torch says it of the CPU's memory
        raise ConfigError(f"data.residence={residence}: no memory for {size}; set data.residence=disk") from error


def _on_device(pixels: Pixels, device: torch.device) -> Tensor:
    placed = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    step = max(1, CHUNK_BYTES // max(1, pixels[0].nbytes))
    for first in range(0, len(pixels), step):
        placed[first : first + step] = torch.from_numpy(np.array(pixels[first : first + step]))
    return placed
