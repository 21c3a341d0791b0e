"""The published table with our runs beside it, as the page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from binventory.compare.cells import figure_text
from binventory.compare.published import REPORT_TEST_PHOTOS, PresetRun, PublishedResult, published_results
from binventory.compare.table import Comparison
from binventory.data.text import printable

ABSENT = "(no such key)"
REMARKS = (
    "“Modify FC” is read as: the ImageNet backbone is frozen, a new linear head is trained. model.finetune=full is the"
    " other reading.",
    "The standard error of an accuracy near 0.3 on 2,089 photos is 0.010: one that agrees within 0.02 agrees.",
    "The presets cut off no validation photos, as the report did: the last epoch is tested.",
    "The report chose on its test set: exp4_hpo to exp8_hpo were scored on the photos that test exp9_best.",
    "The report's split leaks: 54% of its test photos show a bin whose other photo is in train.",
    "The public records are of 50 times as many photos and of another split.",
    "RMSE is taken on the most probable count, as in the public benchmark. The report states none.",
    "The minutes are as published; 40 for the 40 epochs of exp9_best does not go with 15 for the 5 of exp8_hpo.",
)


def published_rows(comparison: Comparison, labels: Sequence[str], colors: Sequence[int]) -> list[dict[str, Any]]:
    """Return the published row of each preset that was run, our runs of it below it, and the public records last."""
    if not comparison.presets:
        return []
    rows = []
    for result in published_results():
        ours = [each for each in comparison.presets if each.preset == result.preset]
        if ours or not result.preset:
            rows.append(_published(result))
        rows.extend(_ours(comparison, each, labels[each.run], colors[each.run]) for each in ours)
    return rows


def _published(result: PublishedResult) -> dict[str, Any]:
    is_record = not result.preset
    return {
        "kind": "published",
        "name": result.source if is_record else result.preset,
        "run": "published",
        "color": None,
        "figures": [
            _cell(figure_text("accuracy", result.accuracy), result.accuracy),
            _cell(figure_text("rmse", result.rmse), result.rmse),
            _cell("-" if result.minutes is None else f"{result.minutes:.0f}", result.minutes),
            _cell("-", None) if is_record else _cell(f"{REPORT_TEST_PHOTOS:,}", REPORT_TEST_PHOTOS),
        ],
        "machine": result.instance or "-",
        "differences": [],
        "remark": "" if is_record else result.source,
    }


def _ours(comparison: Comparison, ours: PresetRun, label: str, color: int) -> dict[str, Any]:
    run = comparison.runs[ours.run]
    accuracy, rmse = run.figures.get("test/accuracy"), run.figures.get("test/rmse")
    minutes = run.figures["train_seconds"] / 60 if "train_seconds" in run.figures else None
    told = [
        f"{printable(key, 100)}: {ABSENT if shipped is None else shipped} → {ABSENT if own is None else own}"
        for key, shipped, own in ours.differences
    ]
    remark = "" if told else "nothing: the config is as shipped"
    return {
        "kind": "ours",
        "name": ours.preset,
        "run": label,
        "color": color,
        "figures": [
            _cell(figure_text("accuracy", accuracy), accuracy),
            _cell(figure_text("rmse", rmse), rmse),
            _cell("-" if minutes is None else f"{minutes:.1f}", minutes),
            _cell(f"{run.num_tested:,}", run.num_tested),
        ],
        "machine": printable(run.machine, 80) if run.machine else "-",
        "differences": told,
        "remark": ours.problem or remark,
    }


def _cell(text: str, order: float | None) -> dict[str, Any]:
    return {"text": text, "order": order, "is_best": False}
