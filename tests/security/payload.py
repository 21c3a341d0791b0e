"""Files with code in them. The canary is a folder that the code makes when it runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def one_line(error: BaseException) -> str:
    said = str(error)
    assert "\n" not in said
    return said


def as_zip(path: Path, payload: Payload) -> None:
    torch.save({"state_dict": {"w": payload}}, path)


def as_legacy(path: Path, payload: Payload) -> None:
    torch.save({"w": payload}, path, _use_new_zipfile_serialization=False)


def as_pickle(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


def as_tensor_attribute(path: Path, payload: Payload) -> None:
    tensor = torch.zeros(2)
    tensor.extra = payload
    torch.save({"w": tensor}, path)


def as_torchscript(path: Path, payload: Payload) -> None:
    """A TorchScript archive, which torch.load hands over to another loader."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps(payload))
        archive.writestr("archive/data.pkl", pickle.dumps(payload))
        archive.writestr("archive/version", "3\n")


WRITERS = [as_zip, as_legacy, as_pickle, as_tensor_attribute, as_torchscript]
