"""What a rule says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["triggered", "ok", "not evaluable"]


@dataclass(frozen=True)
class Finding:
    """The judgement of one rule.

    Attributes:
        rule: its name.
        verdict: `ok` only where there was enough to judge by.
        figures: what it was judged by; the unit is the end of each name.
        short: the figure that decided, for one line on a terminal; empty unless triggered.
        meaning: what it means for this run, one or two sentences.
        override: what to add to the command line; None unless triggered.
    """

    rule: str
    verdict: Verdict
    figures: dict[str, float]
    meaning: str
    short: str = ""
    override: str | None = field(default=None)


def not_evaluable(rule: str, reason: str, **figures: float) -> Finding:
    """Return a finding that claims nothing, and why."""
    return Finding(rule, "not evaluable", figures, reason)
