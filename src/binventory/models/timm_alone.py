"""timm, imported without W&B: timm.utils imports wandb wherever it is installed, for a helper not used here."""

from __future__ import annotations

import sys
from typing import Any, cast

_modules = cast(dict[str, Any], sys.modules)
_hide = "wandb" not in _modules
if _hide:
    _modules["wandb"] = None  # an import of it fails now, which timm expects
try:
    import timm
finally:
    if _hide:
        del _modules["wandb"]

__all__ = ["timm"]
