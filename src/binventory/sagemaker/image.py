"""The training image: AWS's own for PyTorch, by its pinned version."""

from __future__ import annotations

import re

from binventory.errors import ConfigError

# The newest that sagemaker-core knows; tests run a training under these versions of torch and Python.
TORCH, PYTHON = "2.10.0", "3.13"
_PYTHON_TAG = re.compile(r":.*\bpy(3)(\d+)\b")


def default_image(region: str, instance_type: str) -> str:
    """Return the URI of AWS's PyTorch training image for a region, with CUDA where the instance has a GPU.

    Raises:
        ConfigError: AWS has none for that region or instance type.
    """
    from sagemaker.core import image_uris

    try:
        uri: str = image_uris.retrieve(
            "pytorch",
            region,
            version=TORCH,
            py_version="py" + PYTHON.replace(".", ""),
            instance_type=instance_type,
            image_scope="training",
        )
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"hydra.launcher.instance_type={instance_type}, region {region}: AWS has no PyTorch image for them"
            f" ({error}); name another instance or region, or an image of yours by hydra.launcher.image_uri"
        ) from error
    return uri


def python_of(image_uri: str) -> str | None:
    """Return the Python version that an image's tag names, as "3.13"; None where it names none."""
    match = _PYTHON_TAG.search(image_uri)
    return None if match is None else f"{match[1]}.{match[2]}"
