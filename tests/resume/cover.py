"""The ways to stop and resume a training, and a small choice of them in which every pair of values comes together."""

from __future__ import annotations

import itertools
from typing import NamedTuple


class Case(NamedTuple):
    """One way to stop a training and resume it."""

    way: str
    place: str  # in the middle of an epoch and of an accumulation window, in its last batch, in its validation
    workers: int
    ranks: int
    ema: bool
    accumulate: int
    scheduler: str
    times: int  # stops before it may finish

    @property
    def overrides(self) -> list[str]:
        """What decides the numbers: equal for a run and the undisturbed one that it is compared with."""
        return [
            f"callbacks.ema.decay={0.8 if self.ema else 'null'}",
            f"trainer.accumulate_grad_batches={self.accumulate}",
            f"scheduler={self.scheduler}",
            *(["scheduler.step_size_epochs=1"] if self.scheduler == "step" else []),
        ]

    def __str__(self) -> str:
        ema = "ema" if self.ema else "plain"
        return (
            f"{self.way}-{self.place}-{self.workers}workers-{self.ranks}ranks-{ema}-accumulate{self.accumulate}"
            f"-{self.scheduler}-{self.times}x"
        )


EVERY_CASE = [
    Case(*values)
    for values in itertools.product(
        ("SIGTERM", "SIGINT", "raise", "SIGKILL"),
        ("middle", "last", "validation"),
        (0, 2),
        (1, 2),
        (False, True),
        (1, 3),
        ("constant", "step", "cosine"),
        (1, 2),
    )
]


def pairs(case: Case) -> set[tuple[tuple[int, object], ...]]:
    """Return every pair of (field, value) of a case."""
    return set(itertools.combinations(enumerate(case), 2))


def pairwise(cases: list[Case]) -> list[Case]:
    """Return few of the cases that together have every pair that all of them have; the cheaper of equally good ones."""
    missing = set().union(*map(pairs, cases))
    chosen = []
    while missing:
        best = max(cases, key=lambda case: (len(pairs(case) & missing), -case.ranks * case.times - case.workers))
        chosen.append(best)
        missing -= pairs(best)
    return chosen
