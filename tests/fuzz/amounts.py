"""How many examples a fuzz test tries, and the inputs that failed once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings

CORPUS = Path(__file__).parent / "corpus"

# BINVENTORY_FUZZ_EXAMPLES=100000: so many new examples of every kind, drawn from BINVENTORY_FUZZ_SEED.
NUM_EXAMPLES = int(os.environ.get("BINVENTORY_FUZZ_EXAMPLES", "0"))
SEED = int(os.environ.get("BINVENTORY_FUZZ_SEED", "0"))


def fuzz(sample: int) -> Callable[[Any], Any]:
    """Try `sample` examples, the same every time; or as many as the environment asks for."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    options: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": checks}
    if not NUM_EXAMPLES:
        return settings(max_examples=sample, derandomize=True, **options)

    def full(test: Any) -> Any:
        new = seed(SEED)(settings(max_examples=NUM_EXAMPLES, print_blob=True, **options)(test))
        return pytest.mark.timeout(0)(new)

    return full


def check_refusal(error: Exception, max_chars: int = 500) -> None:
    """What a user is told is one short line."""
    assert 0 < len(str(error)) < max_chars
    assert str(error).isprintable()


def corpus(kind: str) -> list[Any]:
    """Return the saved inputs of a kind, as parameters of a test."""
    files = sorted(path for path in (CORPUS / kind).iterdir() if not path.name.startswith("."))
    assert files, f"the corpus of {kind} is empty"
    return [pytest.param(path, id=path.name) for path in files]
