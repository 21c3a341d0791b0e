"""Photos that runs count differently: where to look to see what one run sees and another does not."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from binventory.compare.run import Run
from binventory.compare.tested import Tested, TestSet
from binventory.data.reading import MAX_LIST_BYTES
from binventory.files import UnreadableError, read_limited

MAX_PHOTOS = 60
MAX_ANSWERS = 24  # of one photo: those of the best runs; all are in the tally


@dataclass(frozen=True)
class Answer:
    """What a run said of a photo.

    Attributes:
        run: position in the list of runs.
        predicted: the likeliest count.
        certainty: its probability; None where predictions.csv does not say.
    """

    run: int
    predicted: int
    certainty: float | None


@dataclass(frozen=True)
class DisputedPhoto:
    """A photo that runs count differently.

    Attributes:
        id: of the bin.
        path: of the photo, as the first run's predictions.csv has it.
        quantity: recorded.
        test_set: position in the list of test sets.
        share: of the pairs of runs, those that count it differently: 0..1.
        tally: predicted count → number of runs, of all runs of the test set, ascending.
        answers: of the best runs.
    """

    id: str
    path: str
    quantity: int
    test_set: int
    share: float
    tally: Mapping[int, int]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Disagreement:
    """Where the runs of a test set disagree.

    Attributes:
        num_photos: of all test sets of two or more runs.
        num_disputed: of these, those that not all runs count alike.
        photos: those with most disagreement first; at most 60.
    """

    num_photos: int
    num_disputed: int
    photos: tuple[DisputedPhoto, ...]


@dataclass(frozen=True)
class _Candidate:
    share: float
    spread: float
    test_set: int
    photo: int


def find_disagreement(runs: Sequence[Run], tested: Tested) -> Disagreement:
    """Find the photos on which runs of the same test set disagree most: by pairs of runs, then by how far apart."""
    shared = [(number, same) for number, same in enumerate(tested.sets) if len(same.runs) > 1]
    candidates: list[_Candidate] = []
    num_disputed = 0
    for number, same in shared:
        found, of_set = _candidates(number, same, tested)
        candidates += found
        num_disputed += of_set
    chosen = sorted(candidates, key=lambda each: (-each.share, -each.spread))[:MAX_PHOTOS]
    photos: dict[tuple[int, int], DisputedPhoto] = {}
    for number, same in shared:
        for candidate, photo in _details(runs, same, tested, [each for each in chosen if each.test_set == number]):
            photos[number, candidate.photo] = photo
    ordered = tuple(photos[each.test_set, each.photo] for each in chosen)
    return Disagreement(sum(same.num_images for _, same in shared), num_disputed, ordered)


def _candidates(number: int, same: TestSet, tested: Tested) -> tuple[list[_Candidate], int]:
    """Return the photos of a test set with most disagreement, and how many there are with any."""
    told = np.stack([tested.predictions[place].predicted for place in same.runs])
    num_runs, num_images = told.shape
    told.sort(axis=0)
    changes = np.vstack([np.zeros((1, num_images), dtype=bool), told[1:] != told[:-1]])
    alike = changes.cumsum(axis=0) + np.arange(num_images) * num_runs  # one number for each answer to each photo
    sizes = np.bincount(alike.ravel(), minlength=num_runs * num_images).reshape(num_images, num_runs)
    shares = (num_runs**2 - (sizes**2).sum(axis=1)) / (num_runs * (num_runs - 1))
    spreads = told.astype(np.float64).std(axis=0)
    order = np.lexsort((-spreads, -shares))[:MAX_PHOTOS]
    found = [_Candidate(float(shares[photo]), float(spreads[photo]), number, int(photo)) for photo in order]
    return [each for each in found if each.share > 0], int((shares > 0).sum())


def _details(
    runs: Sequence[Run], same: TestSet, tested: Tested, chosen: Sequence[_Candidate]
) -> list[tuple[_Candidate, DisputedPhoto]]:
    if not chosen:
        return []
    first = tested.predictions[same.runs[0]]
    ids = {first.ids[each.photo] for each in chosen}
    rows = {place: _rows_of(runs[place].path / "predictions.csv", ids) for place in same.runs[:MAX_ANSWERS]}
    found = []
    for each in chosen:
        name = first.ids[each.photo]
        told = Counter(int(tested.predictions[place].predicted[each.photo]) for place in same.runs)
        answers = []
        for place, of_run in rows.items():
            predicted = int(tested.predictions[place].predicted[each.photo])
            answers.append(Answer(place, predicted, _certainty(of_run.get(name, {}), predicted)))
        photo = DisputedPhoto(
            id=name,
            path=rows[same.runs[0]].get(name, {}).get("path") or "",
            quantity=int(first.quantities[each.photo]),
            test_set=each.test_set,
            share=each.share,
            tally=dict(sorted(told.items())),
            answers=tuple(answers),
        )
        found.append((each, photo))
    return found


def _rows_of(path: Path, ids: set[str]) -> dict[str, dict[str, str]]:
    """Return the rows of predictions.csv with these ids. It could be read before; what changed since is left out."""
    try:
        rows = csv.reader(io.StringIO(read_limited(path, MAX_LIST_BYTES).decode(), newline=""))
        header = next(rows, [])
        column = header.index("id")
        return {row[column]: dict(zip(header, row, strict=False)) for row in rows if row[column] in ids}
    except (UnreadableError, ValueError, IndexError, csv.Error):
        return {}


def _certainty(row: Mapping[str, str], predicted: int) -> float | None:
    try:
        share = float(row.get(f"p_{predicted}", ""))
    except ValueError:
        return None
    return share if math.isfinite(share) and 0 <= share <= 1 else None
