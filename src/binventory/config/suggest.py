"""Did you mean: the nearest right name for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` most probably stands for, or None when nothing is close.

    A dotted key is compared whole first, then by its last part, so that `lr` finds `optimizer.lr`.
    """
    names = sorted(known)
    if whole := difflib.get_close_matches(name, names, n=1, cutoff=0.7):
        return whole[0]
    leaf = name.rsplit(".", 1)[-1]
    by_leaf: dict[str, str] = {}
    for candidate in names:
        by_leaf.setdefault(candidate.rsplit(".", 1)[-1], candidate)
    same_leaf = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.75)
    return by_leaf[same_leaf[0]] if same_leaf else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, or an empty string when nothing is close."""
    guess = nearest(name, known)
    return f"; did you mean {guess}?" if guess else ""
