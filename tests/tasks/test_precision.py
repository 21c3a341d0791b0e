"""Which precision a run computes in, and where."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from binventory.config.compose import compose_checked
from binventory.models.backbones import make_backbone
from binventory.tasks.precision import choose_precision, precision_options


@pytest.mark.parametrize(
    ("capabilities", "overrides", "precision"),
    [
        ({"avx512_bf16": True}, ["model.name=mobilenetv3_small_100", "data.image_size=64"], "32-true"),
        ({"avx512_bf16": True}, ["model.name=resnext50_32x4d"], "bf16-mixed"),
        ({"avx512_bf16": True}, [], "bf16-mixed"),
        ({"avx512_bf16": False, "amx_bf16": True}, ["model.finetune=last_stage"], "bf16-mixed"),
        ({"avx512_bf16": False, "amx_bf16": False}, [], "32-true"),
        ({"architecture": "aarch64"}, [], "32-true"),
        ({"avx512_bf16": True}, ["model.finetune=head"], "32-true"),
        ({"avx512_bf16": True}, ["trainer.precision=32-true"], "32-true"),
        ({}, ["trainer.precision=bf16-mixed", "model.finetune=head"], "bf16-mixed"),
    ],
)
def test_what_auto_stands_for_on_a_cpu(
    capabilities: dict[str, bool], overrides: list[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    config = compose_checked("train", ["trainer=cpu", *overrides])[0]
    assert choose_precision(config, make_backbone(config.model.name, "none", 5)) == precision


def test_a_torch_that_does_not_say_what_the_cpu_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision(compose_checked("train", ["trainer=cpu"])[0], TypesSeen()) == "32-true"


class TypesSeen(pl.LightningModule):
    """Notes the type of what a layer gives in each kind of step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.seen: dict[str, torch.dtype] = {}

    def _step(self, kind: str, batch: torch.Tensor) -> torch.Tensor:
        outputs = self.layer(batch)
        self.seen[kind] = outputs.dtype
        return outputs.sum()

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: torch.Tensor) -> None:
        self._step("val", batch)

    def test_step(self, batch: torch.Tensor) -> None:
        self._step("test", batch)

    def predict_step(self, batch: torch.Tensor) -> None:
        self._step("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_on_a_cpu_only_training_is_in_bfloat16(tmp_path: Path) -> None:
    config = compose_checked("train", ["trainer=cpu", "trainer.precision=bf16-mixed"])[0]
    module = TypesSeen()
    trainer = pl.Trainer(
        **precision_options(config, module), accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    batches = DataLoader(torch.ones(4, 3), batch_size=4)  # type: ignore[arg-type]
    trainer.fit(module, batches, batches)
    trainer.test(module, batches, verbose=False)
    trainer.predict(module, batches, return_predictions=False)
    full = torch.float32
    assert module.seen == {"train": torch.bfloat16, "val": full, "test": full, "predict": full}
    assert module.layer.weight.dtype == full
    assert trainer.precision == "bf16-mixed", "which the run's provenance says"
