"""The model bundle: what predict and serve load. Tensors and JSON only, no code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from binventory.data.preprocess import Preprocessing
from binventory.errors import InputError, UserError
from binventory.files import write_bytes, write_json
from binventory.models.backbones import make_backbone
from binventory.models.network import BinNetwork
from binventory.objectives import make_objective, num_outputs

FORMAT = 1
WEIGHTS = "weights.safetensors"
DESCRIPTION = "bundle.json"


def describe(config: Any, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what a network's weights mean, as plain values: model, objective, counts and preprocessing."""
    return {
        "model": {"name": config.model.name, "channels_last": config.model.channels_last},
        "objective": {str(name): value for name, value in config.objective.items()},
        "counts": list(config.data.counts),
        "preprocessing": preprocessing.to_dict(),
    }


def save_bundle(folder: Path, network: BinNetwork, description: dict[str, Any]) -> None:
    """Write `weights.safetensors` and `bundle.json` into a folder, the description last."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    weights = save(state)
    write_bytes(folder / WEIGHTS, weights)
    digest = hashlib.sha256(weights).hexdigest()
    write_json(folder / DESCRIPTION, {"format": FORMAT, **description, "weights_sha256": digest})


@dataclass
class Bundle:
    """A trained model, ready to predict.

    Attributes:
        network: uint8 pixels to outputs, in eval mode.
        objective: outputs to probabilities.
        counts: what the columns of the probabilities stand for.
        preprocessing: bytes to pixels.
        device: where the network lies.
        description: bundle.json.
    """

    network: BinNetwork
    objective: Any
    counts: list[int]
    preprocessing: Preprocessing
    device: torch.device
    description: dict[str, Any]

    @torch.inference_mode()
    def outputs(self, pixels: Tensor) -> Tensor:
        """Compute the network's outputs (B, num_outputs), on the device, from pixels (B, 3, H, W) uint8."""
        outputs: Tensor = self.network(pixels.to(self.device, non_blocking=True))
        return outputs

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Compute probabilities (B, C) float32 over `counts`, on the CPU, from pixels (B, 3, H, W) uint8."""
        probabilities: Tensor = self.objective.probabilities(self.outputs(pixels)).float().cpu()
        return probabilities


def find_bundle(run: Path) -> Path:
    """Return the bundle folder of a run folder, or the folder itself if it is one.

    Raises:
        InputError: no bundle there.
    """
    for folder in (run / "bundle", run):
        if (folder / DESCRIPTION).is_file():
            return folder
    hint = "; this run did not finish" if (run / "status.json").is_file() else ""
    raise InputError(
        f"run={run}: no bundle/{DESCRIPTION} in this folder{hint}; name the folder of a finished training run"
    )


def load_bundle(run: Path, accelerator: str = "cpu") -> Bundle:
    """Load a trained model.

    Args:
        run: a run folder or a bundle folder.
        accelerator: cpu, gpu, or auto (a GPU if there is one).

    Raises:
        InputError: no bundle there, or it is damaged.
    """
    folder = find_bundle(run)
    description = _read_description(folder)
    device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    try:
        return _build(folder, description, device)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{folder / DESCRIPTION}: not a whole description ({reason}); copy the bundle again"
        ) from error


def _build(folder: Path, description: dict[str, Any], device: torch.device) -> Bundle:
    preprocessing = Preprocessing.from_dict(description["preprocessing"])
    counts, objective = [int(count) for count in description["counts"]], description["objective"]
    if not str(objective["_target_"]).startswith("binventory.objectives."):
        raise InputError(f"{folder / DESCRIPTION}: objective {objective['_target_']} is none of binventory's")
    backbone = make_backbone(description["model"]["name"], "none", num_outputs(objective, counts))
    network = BinNetwork(backbone, preprocessing, channels_last=description["model"]["channels_last"])
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise InputError(
            f"{folder / WEIGHTS}: not the weights of this bundle ({str(error).splitlines()[0]})"
        ) from error
    network.eval().to(device)
    made: nn.Module = make_objective(objective, counts).to(device)
    return Bundle(network, made, counts, preprocessing, device, description)


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / DESCRIPTION}: cannot read this file ({error})") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(
            f"{folder / DESCRIPTION}: not a bundle of format {FORMAT}; train again or use the version that made it"
        )
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise InputError(f"{weights}: missing; copy the whole bundle folder")
    if hashlib.sha256(weights.read_bytes()).hexdigest() != description.get("weights_sha256"):
        raise InputError(
            f"{weights}: its checksum differs from the one in {DESCRIPTION}; the copy is damaged, copy it again"
        )
    return description
