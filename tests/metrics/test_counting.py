"""The figures of metrics.json, against scikit-learn and numpy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error

from binventory.metrics.counting import ECE_BINS, CountingMetrics

COUNTS = [1, 2, 3, 5, 9]  # not consecutive, so that positions and counts can't be mixed up


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(2 * torch.randn(500, len(COUNTS), generator=generator), dim=1)
    return probabilities, torch.randint(0, len(COUNTS), (500,), generator=generator)


@pytest.fixture(scope="module")
def figures(drawn: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    metrics = CountingMetrics(COUNTS)
    for probabilities, target in zip(drawn[0].split(64), drawn[1].split(64), strict=True):
        metrics.update(probabilities, target)
    return metrics.compute()


def test_against_scikit_learn(drawn: tuple[torch.Tensor, torch.Tensor], figures: dict[str, Any]) -> None:
    probabilities, target = drawn[0].double().numpy(), drawn[1].numpy()
    counts = np.array(COUNTS)
    quantity, predicted = counts[target], counts[probabilities.argmax(1)]
    expected = {
        "accuracy": accuracy_score(quantity, predicted),
        "rmse": mean_squared_error(quantity, predicted) ** 0.5,
        "mae": mean_absolute_error(quantity, predicted),
        "within_one": np.mean(np.abs(quantity - predicted) <= 1),
        "expected_rmse": mean_squared_error(quantity, probabilities @ counts) ** 0.5,
        "cross_entropy": log_loss(target, probabilities, labels=range(len(COUNTS))),
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-5), name
    assert figures["num_images"] == 500
    assert "loss" not in figures
    for count in COUNTS:
        rows = quantity == count
        of_count = figures["per_count"][str(count)]
        assert of_count["num_images"] == rows.sum()
        assert of_count["accuracy"] == pytest.approx(np.mean(predicted[rows] == count))
        assert of_count["rmse"] == pytest.approx(np.sqrt(np.mean((predicted[rows] - count) ** 2)))


def test_expected_calibration_error(drawn: tuple[torch.Tensor, torch.Tensor], figures: dict[str, Any]) -> None:
    probabilities, target = drawn[0].numpy(), drawn[1].numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == target
    bins = np.clip((confidence * ECE_BINS).astype(int), 0, ECE_BINS - 1)
    ece = sum(
        (bins == b).mean() * abs(confidence[bins == b].mean() - right[bins == b].mean())
        for b in range(ECE_BINS)
        if (bins == b).any()
    )
    assert figures["ece"] == pytest.approx(ece, abs=1e-5)


def test_figures_are_json_also_for_a_count_without_photos() -> None:
    metrics = CountingMetrics([1, 2])
    metrics.update(torch.tensor([[0.9, 0.1]]), torch.tensor([0]), torch.tensor(0.5))
    figures = metrics.compute()
    assert figures["per_count"]["2"] == {"accuracy": None, "rmse": None, "num_images": 0}
    assert figures["loss"] == 0.5
    json.dumps(figures, allow_nan=False)


def test_certain_and_wrong_is_finite_and_reset_forgets() -> None:
    metrics = CountingMetrics([1, 2])
    metrics.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert np.isfinite(metrics.compute()["cross_entropy"])
    metrics.reset()
    metrics.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    metrics.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    assert metrics.compute()["accuracy"] == 1.0
    assert metrics.compute()["num_images"] == 1


def test_autocast_costs_no_precision(drawn: tuple[torch.Tensor, torch.Tensor], figures: dict[str, Any]) -> None:
    metrics = CountingMetrics(COUNTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metrics.update(*drawn)
        assert metrics.compute()["expected_rmse"] == pytest.approx(figures["expected_rmse"], abs=1e-5)


def test_the_loss_is_a_mean_over_photos_not_over_batches(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    metrics = CountingMetrics(COUNTS)
    for size, loss in ((30, 1.0), (10, 2.0)):
        metrics.update(drawn[0][:size], drawn[1][:size], torch.tensor(loss))
    assert metrics.compute()["loss"] == pytest.approx(1.25)
    metrics.update(drawn[0][:40], drawn[1][:40], torch.tensor(float("nan")))
    assert metrics.compute()["loss"] is None
