"""Checks between values of a config that no single key can make."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from binventory.config.capture import to_plain
from binventory.config.suggest import did_you_mean
from binventory.config.targets import KNOWN
from binventory.errors import ConfigError, InputError

# Every network here halves its input five times.
NETWORK_STRIDE = 32
PRESET_MODELS = ("test_resnet", "resnet18", "resnet34", "resnet50", "resnet101")
LOCAL_READERS = tuple(
    f"binventory.data.sources.{name}"
    for name in ("bucket.BucketSource", "imagefolder.ImageFolderSource", "table.TableSource")
)
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz")
FLOAT16_NEEDS_GPU = "trainer.precision=16-mixed: float16 training needs a GPU; take 32-true or bf16-mixed"
OBJECTIVE_METRICS = ("accuracy", "cross_entropy", "loss", "rmse", "mae", "within_one", "expected_rmse", "ece")


def is_weight_file(weights: str) -> bool:
    """Return whether `model.weights` names a file, by its ending, a folder in it or because it is there; else a tag."""
    if weights == "none":
        return False
    try:
        return weights.lower().endswith(WEIGHT_FILES) or "/" in weights or Path(weights).is_file()
    except OSError:  # a name too long for the file system
        return False


def cross_check(config: DictConfig, *, runs_here: bool = True) -> None:
    """Refuse combinations of values that cannot work.

    Args:
        config: the checked config.
        runs_here: whether the job runs on this machine, so that its devices count.

    Raises:
        ConfigError: names the keys, their values and what to do.
    """
    for check in _CHECKS:
        check(config)
    if runs_here:
        _gpu(config)
        _float16(config)


def _has_bins(config: Any) -> bool:
    return "data" in config and "reader" in config.data  # predict and evaluate have another `data`


def _counts(config: Any) -> None:
    if not _has_bins(config):
        return
    counts = list(config.data.counts)
    if len(counts) < 2 or len(set(counts)) != len(counts) or counts != sorted(counts) or counts[0] < 0:
        raise ConfigError(f"data.counts={counts}: needs at least two different counts from 0 up, in ascending order")


def _model_name(config: Any) -> None:
    if "model" not in config or config.model.name in PRESET_MODELS or ":" in config.model.name:
        return
    # Only here: the presets' names are answered in a second.
    from binventory.models.timm_alone import check_model_name, timm

    name = config.model.name
    check_model_name(name)
    facts = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if facts is not None and facts.fixed_input_size and facts.input_size[-1] != config.data.image_size:
        side = facts.input_size[-1]
        raise ConfigError(
            f"data.image_size={config.data.image_size}: {name} takes {side} pixels only; set data.image_size={side}"
        )


def _finetune(config: Any) -> None:
    if "model" not in config or config.model.finetune == "full" or config.model.name in PRESET_MODELS:
        return
    from binventory.models.backbones import check_finetune  # only here, as above

    check_finetune(config.model.name, config.model.finetune)


def _weights_tag(config: Any) -> None:
    if "model" not in config or ":" in config.model.name:
        return
    name, weights = config.model.name, config.model.weights
    if weights in ("none", f"{name}.tv_in1k") or is_weight_file(weights):
        return
    from binventory.models.timm_alone import check_weights_tag

    check_weights_tag(name, weights)


def _image_size(config: Any) -> None:
    if "model" in config and config.data.image_size < NETWORK_STRIDE:
        size = config.data.image_size
        raise ConfigError(
            f"data.image_size={size}: below the stride of {config.model.name}; take {NETWORK_STRIDE} pixels or more"
        )


def _global_batch(config: Any) -> None:
    if "trainer" not in config:
        return
    world = config.trainer.devices * config.trainer.num_nodes
    batch = config.data.batch_size
    if batch % world:
        raise ConfigError(
            f"data.batch_size={batch}: the global batch doesn't divide over {world} devices"
            f" (trainer.devices={config.trainer.devices}, trainer.num_nodes={config.trainer.num_nodes});"
            f" take {max(1, batch // world) * world}"
        )


def _strategy(config: Any) -> None:
    if "trainer" not in config:
        return
    trainer = config.trainer
    if trainer.devices * trainer.num_nodes > 1 and trainer.strategy != "ddp":
        raise ConfigError(
            f"trainer.strategy={trainer.strategy}: several devices need trainer.strategy=ddp, as trainer=ddp and"
            " trainer=ddp_cpu set it"
        )
    if trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={trainer.num_nodes}: train.py starts processes on this machine only; set it to 1"
        )
    if trainer.sync_batchnorm and trainer.accelerator == "cpu":
        raise ConfigError("trainer.sync_batchnorm=true: torch has it on GPUs only; set it to false on the CPU")
    if trainer.precision == "16-mixed" and trainer.accelerator == "cpu":
        raise ConfigError(FLOAT16_NEEDS_GPU)


def _gpu(config: Any) -> None:
    accelerator = config.trainer.accelerator if "trainer" in config else config.get("accelerator", "cpu")
    if accelerator != "gpu":
        return
    wanted = config.trainer.devices if "trainer" in config else 1
    import torch  # only here: a config without a GPU is checked in a second

    found = torch.cuda.device_count()
    if found < wanted:
        key = "trainer.devices" if found else "trainer.accelerator"
        hint = f"set trainer.devices={found}" if found else "take trainer=cpu"
        raise ConfigError(f"{key}={wanted if found else 'gpu'}: this machine has {found or 'no'} GPU; {hint}")


def _float16(config: Any) -> None:
    if "trainer" not in config or config.trainer.precision != "16-mixed":
        return
    import torch  # only here, as above

    if not torch.cuda.is_available():  # with accelerator=auto, where Lightning would take bfloat16 without a word
        raise ConfigError(FLOAT16_NEEDS_GPU)


def _objective_metric(config: Any) -> None:
    if "objective_metric" not in config:
        return
    metric = config.objective_metric
    if config.data.val_fraction == 0 and config.trainer.overfit_batches is None:
        if metric is not None:
            raise ConfigError(
                f"objective_metric={metric}: with data.val_fraction=0 there is nothing to choose by;"
                " set objective_metric=null to keep the last epoch, or cut a validation split"
            )
        return
    known = [f"val/{name}" for name in OBJECTIVE_METRICS]
    if metric is None:
        return
    if metric.startswith("test/"):
        raise ConfigError(f"objective_metric={metric}: nothing is ever chosen on the test set; take a val/ metric")
    if metric not in known:
        hint = did_you_mean(metric, known) or "; choose one of " + ", ".join(known)
        raise ConfigError(f"objective_metric={metric}: no such metric{hint}")


def _early_stopping(config: Any) -> None:
    if "callbacks" in config and config.callbacks.early_stopping.patience_epochs and config.objective_metric is None:
        raise ConfigError(
            "callbacks.early_stopping.patience_epochs: needs an objective_metric; name one or set patience_epochs=null"
        )


def _optimizer(config: Any) -> None:
    if "optimizer" not in config:
        return
    optimizer = config.optimizer
    if optimizer.get("nesterov") and optimizer.get("momentum") == 0:
        raise ConfigError("optimizer.momentum=0: Nesterov momentum needs some; add optimizer.nesterov=false")
    betas = to_plain(optimizer).get("betas")
    is_torchs = str(optimizer.get("_target_")).startswith("torch.optim.")
    are_two = isinstance(betas, list) and len(betas) == 2 and all(map(_is_decay, betas))
    if is_torchs and betas is not None and not are_two:
        raise ConfigError(f"optimizer.betas={betas}: needs two values, each at least 0 and below 1")
    targets = {str(config[group].get("_target_")) for group in ("optimizer", "scheduler")}
    if not targets <= KNOWN.keys():  # what others take and do is not written down here
        from binventory.models.optimization import try_optimization

        try_optimization(config)


def _is_decay(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1


def _splits(config: Any) -> None:
    if not _has_bins(config):
        return
    data = config.data
    if data.split_list is not None and data.split != "report":
        raise ConfigError(
            f"data.split_list={data.split_list}: only data.split=report reads it; set that or drop the list"
        )
    if data.val_fraction * (1 - data.test_fraction) + data.test_fraction >= 1:
        raise ConfigError(
            f"data.test_fraction={data.test_fraction}, data.val_fraction={data.val_fraction}: nothing left to train on"
        )


def _residence(config: Any) -> None:
    if _has_bins(config) and not config.data.cache and config.data.residence != "auto":
        raise ConfigError(
            f"data.residence={config.data.residence}: says where the photo cache lies, and data.cache=false means none;"
            " drop one of them"
        )


def _warmup(config: Any) -> None:
    scheduler = config.get("scheduler")
    if scheduler is not None and scheduler.get("warmup_epochs", 0) >= config.trainer.max_epochs > 1:
        raise ConfigError(
            f"scheduler.warmup_epochs={scheduler.warmup_epochs}: as long as the run"
            f" (trainer.max_epochs={config.trainer.max_epochs}); warm up for less"
        )


def _files(config: Any) -> None:
    """Files that the config names must be there before a run folder is made for them."""
    _must_be_writable("paths.output_dir", Path(config.paths.output_dir))
    if _has_bins(config):
        if config.data.reader._target_ in LOCAL_READERS:
            _must_exist("data.source", config.data.source)
        for name in ("file_list", "split_list"):
            _check_list(f"data.{name}", config.data[name])
    if "model" in config and is_weight_file(config.model.weights):
        _must_exist("model.weights", config.model.weights)
    if config.get("init_from") is not None:
        _must_exist("init_from", config.init_from)
    if config.get("resume") not in (None, "auto"):
        _must_exist("resume", config.resume)
    if "run" in config:
        _must_exist("run", config.run)


def _s3_uri(config: Any) -> None:
    if "s3_uri" in config:
        from binventory.sagemaker.names import check_s3_uri

        check_s3_uri(config.s3_uri)


def _check_list(key: str, location: str | None) -> None:
    if location is None:  # the default, which need not import what reads lists
        return
    from binventory.data.sources.file_list import REPORT_LIST
    from binventory.data.sources.web import check_url, is_url

    if is_url(location):
        try:
            check_url(location)
        except InputError as error:
            raise ConfigError(f"{key}: {error}") from error
    elif location != REPORT_LIST:
        _must_exist(key, location)


def _must_exist(key: str, location: str | None) -> None:
    if location is None or location.startswith("s3://"):
        return
    try:
        found = Path(location).exists()
    except OSError as error:  # a name too long for the file system, say
        raise ConfigError(f"{key}={location[:200]}: {error.strerror}; name another") from error
    if not found:
        raise ConfigError(f"{key}={location}: no such file or folder (looked from {Path.cwd()})")


def _must_be_writable(key: str, folder: Path) -> None:
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise ConfigError(f"{key}={str(folder)[:200]}: {error.strerror}; name another") from error
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"{key}={folder}: {nearest} is no folder that can be written to; name another")


def _loggers(config: Any) -> None:
    for name, package in (("wandb", "wandb"), ("tensorboard", "tensorboard")):
        if name in (config.get("logger") or {}) and importlib.util.find_spec(package) is None:
            raise ConfigError(f"logger={name}: {package} is not installed; pip install 'binventory[{name}]'")


_CHECKS: tuple[Callable[[Any], None], ...] = (
    _counts,
    _model_name,
    _weights_tag,
    _finetune,
    _image_size,
    _global_batch,
    _strategy,
    _objective_metric,
    _early_stopping,
    _optimizer,
    _splits,
    _residence,
    _warmup,
    _files,
    _s3_uri,
    _loggers,
)
