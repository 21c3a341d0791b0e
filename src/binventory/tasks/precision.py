"""In which floating-point format a run computes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

from binventory.config.schema import TrainConfig

# x86's instructions that multiply in bfloat16; without them autocast is slower than float32.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


class TrainingInBFloat16(MixedPrecision):
    """bfloat16 autocast in training steps on a CPU; validation, test and prediction in float32.

    So `predict.py` gives the run's probabilities: in bfloat16 they would differ with the batch that a photo is in.
    """

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    @contextmanager
    def val_step_context(self) -> Generator[None]:
        """Change nothing."""
        yield

    test_step_context = predict_step_context = val_step_context


def precision_options(config: TrainConfig, network: nn.Module) -> dict[str, Any]:
    """Return what says the precision of a run, as keywords of Lightning's Trainer: `precision` or `plugins`."""
    precision = choose_precision(config, network)
    if precision == "bf16-mixed" and not runs_on_gpu(config):
        return {"precision": None, "plugins": [TrainingInBFloat16()]}
    return {"precision": precision, "plugins": []}


def choose_precision(config: TrainConfig, network: nn.Module) -> str:
    """Return `trainer.precision`, or what `auto` stands for on this machine.

    That is bf16-mixed where the device computes in bfloat16, else 32-true. On a CPU it is 32-true also

    - where a head alone is trained: its backbone computes only once (`model.cache_features`), and in float32 what it
      computes does not differ with the batch that a photo is in;
    - for networks with depthwise convolutions, which gain nothing from bfloat16 or lose: MobileNetV3 trains 1.6 times
      as long, where ResNet-18 trains half as long.
    """
    if config.trainer.precision != "auto":
        return config.trainer.precision
    if runs_on_gpu(config):
        has_bfloat16 = gpu_has_bfloat16()
    else:
        has_bfloat16 = config.model.finetune != "head" and _cpu_has_bfloat16() and not _is_depthwise(network)
    return "bf16-mixed" if has_bfloat16 else "32-true"


def runs_on_gpu(config: TrainConfig) -> bool:
    """Return whether a config's training is on an NVIDIA GPU of this machine."""
    return config.trainer.accelerator != "cpu" and torch.cuda.is_available()


def gpu_has_bfloat16() -> bool:
    """Return whether this machine's GPU computes in bfloat16."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _is_depthwise(network: nn.Module) -> bool:
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return any(1 < one.groups == one.in_channels for one in convolutions)


def _cpu_has_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BFLOAT16_INSTRUCTIONS)
