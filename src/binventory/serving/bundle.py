"""The model bundle: what predict and serve load. Tensors and JSON only, no code."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from binventory.config.capture import redact
from binventory.config.targets import check_targets
from binventory.data.preprocess import Preprocessing
from binventory.errors import ConfigError, InputError, UserError
from binventory.files import MAX_WEIGHTS_BYTES, read_limited, write_bytes, write_json
from binventory.models.backbones import make_backbone
from binventory.models.finite import DivergedError, find_not_finite, finite_probabilities
from binventory.models.network import BinNetwork
from binventory.objectives import make_objective, num_outputs

FORMAT = 1
WEIGHTS = "weights.safetensors"
DESCRIPTION = "bundle.json"
MAX_IMAGE_SIZE = 4096
MAX_COUNT = 10**9


def describe(config: Any, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what a network's weights mean, as plain values: model, objective, counts and preprocessing.

    Secrets are redacted: it travels in checkpoints and bundles.
    """
    objective = OmegaConf.to_container(OmegaConf.create(config.objective), resolve=True)
    return {
        "model": {"name": config.model.name, "channels_last": config.model.channels_last},
        "objective": redact(objective, at="objective"),
        "counts": list(config.data.counts),
        "preprocessing": preprocessing.to_dict(),
    }


def save_bundle(folder: Path, network: BinNetwork, description: dict[str, Any]) -> None:
    """Write `weights.safetensors` and `bundle.json` into a folder, the description last.

    Raises:
        DivergedError: weights are not finite; nothing is written.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    if name := find_not_finite(state):
        raise DivergedError(f"{name} holds NaN or infinity: such weights make no bundle")
    folder.mkdir(parents=True, exist_ok=True)
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
        """Compute probabilities (B, C) float32 over `counts`, on the CPU, from pixels (B, 3, H, W) uint8.

        A photo whose outputs are not all finite has NaN.
        """
        return finite_probabilities(self.objective, self.outputs(pixels)).float().cpu()


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
    weights = _read_weights(folder, description)
    device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    try:
        return _build(folder, description, weights, device)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{folder / DESCRIPTION}: not a whole description ({reason}); copy the bundle again"
        ) from error


def _build(folder: Path, description: dict[str, Any], weights: bytes, device: torch.device) -> Bundle:
    where = str(folder / DESCRIPTION)
    preprocessing = _preprocessing(description["preprocessing"])
    counts, objective = _counts(description["counts"]), dict(description["objective"])
    check_targets({"objective": objective}, where)
    model = description["model"]
    try:
        backbone = make_backbone(model["name"], "none", num_outputs(objective, counts))
    except ConfigError as error:  # it speaks of a key of the config; here the file is what to look at
        raise InputError(f"{where}: {error}") from error
    network = BinNetwork(backbone, preprocessing, channels_last=bool(model["channels_last"]))
    try:
        network.load_state_dict(load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder / WEIGHTS}: not the weights of this bundle ({str(error).splitlines()[0][:200]});"
            " copy the whole bundle folder"
        ) from error
    if name := find_not_finite(network.state_dict()):
        raise InputError(f"{folder / WEIGHTS}: {name} holds NaN or infinity: this model diverged; name another run")
    network.eval().to(device)
    made: nn.Module = make_objective(objective, counts).to(device)
    return Bundle(network, made, counts, preprocessing, device, description)


def _preprocessing(values: Any) -> Preprocessing:
    """Read preprocessing of which every value is one that `Preprocessing` knows."""
    made = Preprocessing.from_dict(values)
    numbers = (*made.mean, *made.std)
    known = (
        type(made.image_size) is int
        and 1 <= made.image_size <= MAX_IMAGE_SIZE
        and made.resize in ("squash", "letterbox", "crop")
        and made.interpolation in ("bilinear", "bicubic")
        and len(made.mean) == len(made.std) == 3
        and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        and all(number > 0 for number in made.std)
    )
    if not known:
        raise ValueError(f"preprocessing {values}")
    return made


def _counts(values: Any) -> list[int]:
    counts = list(values)
    whole = all(type(count) is int and 0 <= count <= MAX_COUNT for count in counts)
    if len(counts) < 2 or not whole or counts != sorted(set(counts)):
        raise ValueError(f"counts {values}: need whole numbers from 0 up, in ascending order")
    return counts


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads(read_limited(folder / DESCRIPTION))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / DESCRIPTION}: cannot read this file ({error}); copy the bundle again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(
            f"{folder / DESCRIPTION}: not a bundle of format {FORMAT}; train again or use the version that made it"
        )
    return description


def _read_weights(folder: Path, description: dict[str, Any]) -> bytes:
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path}: missing; copy the whole bundle folder")
    try:
        weights = read_limited(path, MAX_WEIGHTS_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); copy the bundle again") from error
    if hashlib.sha256(weights).hexdigest() != description.get("weights_sha256"):
        raise InputError(
            f"{path}: its checksum differs from the one in {DESCRIPTION}; the copy is damaged, copy it again"
        )
    return weights
