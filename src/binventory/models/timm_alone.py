"""timm, imported without W&B: timm.utils imports wandb wherever it is installed, for a helper not used here."""

from __future__ import annotations

import sys
from typing import Any, cast

from binventory.config.suggest import did_you_mean
from binventory.errors import ConfigError

__all__ = ["check_model_name", "check_weights_tag", "timm"]

_modules = cast(dict[str, Any], sys.modules)
_hide = "wandb" not in _modules
if _hide:
    _modules["wandb"] = None  # an import of it fails now, which timm expects
try:
    import timm
finally:
    if _hide:
        del _modules["wandb"]


def check_model_name(name: str) -> None:
    """Raise ConfigError when timm has no model of this name."""
    if not timm.is_model(name):
        raise ConfigError(f"model.name={name}: timm has no such model{did_you_mean(name, timm.list_models())}")


def check_weights_tag(name: str, weights: str) -> None:
    """Raise ConfigError when timm has no pretrained weights of this model by this name."""
    tags = timm.list_pretrained(f"{name}.*")
    if weights not in tags:
        hint = did_you_mean(weights, tags) or f"; timm has {', '.join(tags) or 'none'}"
        raise ConfigError(f"model.weights={weights}: no pretrained weights of {name} by this name{hint}")
