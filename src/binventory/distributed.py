"""What several ranks of one training need from each other besides gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

T = TypeVar("T")


def is_distributed() -> bool:
    """Return whether this process is a rank among others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def all_gather_objects(value: T) -> list[T]:
    """Return the plain value of every rank, by rank; that of this process alone where there is one."""
    if not is_distributed():
        return [value]
    values: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return [found for found in values if found is not None]


def from_rank_0(read: Callable[[], T]) -> T:
    """Call `read` on rank 0 and return what it returned, on all ranks; called by all ranks together."""
    if not is_distributed():
        return read()
    box = [read() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(box, src=0)
    return cast(T, box[0])
