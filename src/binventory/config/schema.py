"""Dataclass schemas of every config group: the names, types and ranges that a config may use.

Values live in `configs/*.yaml`; what a key means and may hold lives here, once. `binventory.config.check` merges a
composed config into these classes, so an unknown key, a wrong type or a value out of range is refused before any work.
No heavy imports: this module is read by `--help` and `--cfg job`.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, Dict, List, Optional

from omegaconf import MISSING

RANGE = "range"
CHOICES = "choices"
SHARE = "share"
PATH = "path"


def declared(cls: type, prefix: str = "") -> dict[str, Field[Any]]:
    """Return the fields of a schema by their dotted keys, those of its parts included."""
    found: dict[str, Field[Any]] = {}
    for own in fields(cls):
        found[f"{prefix}{own.name}"] = own
        if isinstance(own.default_factory, type) and is_dataclass(own.default_factory):
            found |= declared(own.default_factory, f"{prefix}{own.name}.")
    return found


def key(
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[str, ...] = (),
    share: bool = False,
    path: bool = False,
    default: Any = MISSING,
) -> Any:
    """Declare a config key: its meaning and, where there is one, its range or its choices.

    Args:
        help: its meaning.
        ge, gt, le, lt: its range.
        choices: all that it may be.
        share: a whole number is a count, and a float is a share of all, at most 1.0, as in Lightning.
        path: it names a file or folder, so it is never empty, and `~` at its start is the home.
        default: of a key that configs of earlier versions lack.
    """
    bounds = {name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None}
    facts = {"help": help, RANGE: bounds, CHOICES: choices, SHARE: share, PATH: path}
    return field(default=default, metadata=facts)


@dataclass
class PathsConfig:
    """Where things are kept."""

    output_dir: str = key("root under which run folders are made", path=True)
    data_dir: str = key("downloaded and drawn photos", path=True)
    cache_dir: str = key("indexes and other things that can be made again", path=True)


@dataclass
class S3Config:
    """How S3 is reached, for `data.source=s3://…` and `input=s3://…`."""

    anonymous: bool = key("unsigned requests, as the public bucket allows; false: boto3's own credential chain")
    endpoint_url: Optional[str] = key("another S3 server than AWS, as http(s)://host:port")
    region: Optional[str] = key("AWS region; null: boto3's own")
    max_concurrency: int = key("objects in flight", ge=1, le=256)
    max_attempts: int = key("tries of one object before it is given up", ge=1, le=100)
    timeout_s: float = key(
        "seconds without a byte, or below 1,024 bytes a second, after which a request is tried again", gt=0
    )


@dataclass
class PlainReaderConfig:
    """A reader without options of its own."""

    _target_: str = key("class")


@dataclass
class SyntheticReaderConfig:
    """How synthetic bins are drawn."""

    _target_: str = key("class")
    num_bins: int = key("bins drawn", ge=20)
    photo_size: int = key("width of a drawn photo, in pixels", ge=32, le=1024)
    seed: int = key("seed of the drawing", ge=0, lt=2**32)


@dataclass
class DownloadConfig:
    """The one value of `data` that tasks without a data set have."""

    confirm_download: bool = key(
        "download more than 20,000 photos; their number and size are stated first", default=False
    )


@dataclass
class DataConfig:
    """The bins: where they come from, which are taken, how they are split and turned into tensors."""

    reader: Any = key("class that reads the source, as {_target_: package.module.Class, …options}")
    source: str = key(
        "location: a folder, an S3 URI, an ImageFolder tree or a table; synthetic bins take a name", path=True
    )
    file_list: Optional[str] = key(
        "what to take: report (the source report's 10,441 photos), or JSON, count -> list of data/metadata/ID.json, in"
        " a file, on S3 or at an https URL; null: the source's own, else all",
        path=True,
    )
    limit: Optional[int] = key("take at most this many bins, in listing order", ge=1)
    confirm_download: bool = key(
        "download more than 20,000 photos; their number and size are stated first", default=False
    )
    split: str = key("how test is cut", choices=("grouped", "report"))
    split_list: Optional[str] = key(
        "file list that split=report splits; null: data.file_list, else the source's own", path=True
    )
    split_seed: int = key("seed of the split, independent of `seed` so that runs share one test set", ge=0, lt=2**32)
    val_fraction: float = key("share of train that becomes validation", ge=0, lt=1)
    test_fraction: float = key("share of all bins that becomes test", gt=0, lt=1)
    counts: List[int] = key("quantities that are classes; bins of any other quantity are left out and counted")
    normalize: str = key("statistics that pixels are normalised by", choices=("imagenet", "dataset"))
    image_size: int = key("side of the square network input, in pixels", ge=8, le=4096)
    resize: str = key("how a photo becomes a square", choices=("squash", "letterbox", "crop"))
    interpolation: str = key("resampling filter", choices=("bilinear", "bicubic"))
    hflip: float = key("probability of a horizontal flip in training", ge=0, le=1)
    shift: float = key("largest shift in training, as a share of the side; each way, drawn evenly", ge=0, le=0.25)
    scale: float = key("largest change of size in training: 0.1 draws factors from 1/1.1 to 1.1", ge=0, le=0.5)
    rotation_degrees: float = key("largest rotation in training, either way", ge=0, le=45)
    brightness: float = key("largest change of brightness in training: 0.2 draws factors from 0.8 to 1.2", ge=0, lt=1)
    contrast: float = key("the same for contrast", ge=0, lt=1)
    saturation: float = key("the same for saturation", ge=0, lt=1)
    batch_size: int = key("global batch, divided over the devices", ge=1)
    cache: bool = key("decode photos once and keep them under paths.cache_dir; false: decode them again every epoch")
    residence: str = key(
        "where decoded photos lie in training; auto: on a GPU where they fit in half its free memory, else on disk",
        choices=("auto", "device", "memory", "disk"),
    )
    num_workers: Optional[int] = key(
        "with the cache, threads that fill it; null: one per core. Without, loader processes; null: none on the CPU, on"
        " a GPU one per core, at most 8",
        ge=0,
        le=256,
    )
    on_bad: str = key("what a photo or metadata file that cannot be used does", choices=("skip", "fail"))
    max_bad_fraction: float = key("share of bad bins above which prepare and train end with an error", ge=0, le=1)


@dataclass
class ModelConfig:
    """The network."""

    name: str = key("timm model name, e.g. resnet18")
    weights: str = key(
        "pretrained weights: a timm tag such as resnet18.tv_in1k, a .safetensors or .pth file, or none", path=True
    )
    finetune: str = key("what is trained", choices=("full", "head", "last_stage"))
    channels_last: bool = key("NHWC memory format: about twice as fast for convolutions")
    cache_features: bool = key(
        "with finetune=head and data.cache, compute the frozen backbone's features of each photo once and keep them"
        " under paths.cache_dir"
    )


@dataclass
class ClassificationConfig:
    """Cross-entropy over the counts."""

    _target_: str = key("class")
    label_smoothing: float = key("share of the target spread over all counts", ge=0, lt=1)


@dataclass
class SGDConfig:
    """torch.optim.SGD."""

    _target_: str = key("class")
    _partial_: bool = key("completed with the parameters in configure_optimizers")
    lr: float = key("learning rate", gt=0)
    momentum: float = key("momentum", ge=0, lt=1)
    weight_decay: float = key("L2 penalty", ge=0)
    nesterov: bool = key("Nesterov momentum")


@dataclass
class AdamWConfig:
    """torch.optim.AdamW."""

    _target_: str = key("class")
    _partial_: bool = key("completed with the parameters in configure_optimizers")
    lr: float = key("learning rate", gt=0)
    betas: List[float] = key("decay rates of the two moments")
    weight_decay: float = key("decoupled weight decay", ge=0)


@dataclass
class ConstantScheduleConfig:
    """The learning rate stays as it is."""

    _target_: str = key("function")
    _partial_: bool = key("completed with the optimizer and the length of the run")


@dataclass
class StepScheduleConfig:
    """The learning rate is multiplied by gamma every few epochs."""

    _target_: str = key("function")
    _partial_: bool = key("completed with the optimizer and the length of the run")
    step_size_epochs: int = key("epochs between two steps", ge=1)
    gamma: float = key("factor of each step", gt=0, le=1)


@dataclass
class CosineScheduleConfig:
    """Linear warm-up, then half a cosine."""

    _target_: str = key("function")
    _partial_: bool = key("completed with the optimizer and the length of the run")
    warmup_epochs: float = key("epochs of linear warm-up", ge=0)
    min_lr_ratio: float = key("last learning rate as a share of the first", ge=0, le=1)


@dataclass
class TrainerConfig:
    """Where and how long training runs."""

    max_epochs: int = key("passes over the training photos", ge=1)
    accelerator: str = key("device kind", choices=("cpu", "gpu", "auto"))
    devices: int = key("devices on each node", ge=1)
    num_nodes: int = key("machines", ge=1)
    strategy: str = key("how devices work together", choices=("auto", "ddp"))
    precision: str = key(
        "auto: bf16-mixed where the device is faster in it, else 32-true",
        choices=("auto", "32-true", "16-mixed", "bf16-mixed"),
    )
    accumulate_grad_batches: int = key("batches per optimizer step", ge=1)
    gradient_clip_val: Optional[float] = key("largest gradient norm; null: no clipping", gt=0)
    sync_batchnorm: bool = key("BatchNorm statistics over all devices")
    deterministic: bool = key("only algorithms that give the same bits every time")
    compile: bool = key("torch.compile the network, in place")
    limit_train_batches: Optional[int | float] = key(
        "batches per epoch: 1 is one of them, 0.5 half, 1.0 and null all", gt=0, share=True
    )
    limit_val_batches: Optional[int | float] = key("the same for validation", gt=0, share=True)
    limit_test_batches: Optional[int | float] = key("the same for the test", gt=0, share=True)
    overfit_batches: Optional[int | float] = key(
        "train and validate on this many training batches only, or on this share of them; null: off", gt=0, share=True
    )
    log_every_n_steps: int = key("optimizer steps between two points of train/loss_step and lr_step", ge=1)
    profiler: Optional[str] = key(
        "Lightning profiler whose report lies in the run folder", choices=("simple", "advanced")
    )


@dataclass
class CheckpointConfig:
    """When a run saves, besides the end of training and a stop. best.ckpt is written whenever an epoch is the best."""

    every_n_epochs: Optional[int] = key("save last.ckpt at the end of every so many epochs; null: of the last", ge=1)
    every_n_steps: Optional[int] = key("save it also after so many optimizer steps", ge=1)
    every_n_minutes: Optional[float] = key("save it also after so many minutes", gt=0)


@dataclass
class EmaConfig:
    """Exponential moving average of the weights."""

    decay: Optional[float] = key(
        "share of the average kept at each step; the average is validated, tested and shipped; null: no average",
        gt=0,
        lt=1,
    )


@dataclass
class ProgressConfig:
    """What is said while a run goes on."""

    every_n_steps: int = key("steps between two plain lines where stdout is no terminal", ge=1)


@dataclass
class EarlyStoppingConfig:
    """Stop when objective_metric no longer improves."""

    patience_epochs: Optional[int] = key("epochs without improvement; null: never stop early", ge=1)
    min_delta: float = key("smallest change that counts as improvement", ge=0)


@dataclass
class ResourcesConfig:
    """Bottleneck report: the machine is sampled while training runs."""

    sample_every_s: Optional[float] = key("seconds between two samples; null: no bottleneck report", gt=0)


@dataclass
class TraceConfig:
    """A torch.profiler trace of a few early steps, trace.json in the run folder."""

    num_steps: Optional[int] = key("training steps that are recorded, after two that are not; null: no trace", ge=1)


@dataclass
class CallbacksConfig:
    """What runs beside the training loop."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    progress: ProgressConfig = field(default_factory=ProgressConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)


@dataclass
class WandbConfig:
    """A Weights & Biases run."""

    _target_: str = key("function")
    project: str = key("W&B project")
    entity: Optional[str] = key("W&B team or user; null: the default one")
    group: Optional[str] = key("runs that belong together; null: the sweep that the run is a job of")
    tags: List[str] = key("labels of the run")
    log_model: bool = key("upload best.ckpt and the bundle as an artifact when the run is done")
    num_photos: int = key("photos in each half of the table of errors: most wrong, least certain; 0: no table", ge=0)
    finish_timeout_s: float = key("how long the end of a run waits until W&B has all of it; 0: for ever", ge=0)


@dataclass
class TensorBoardConfig:
    """TensorBoard event files in the run folder."""

    _target_: str = key("class")
    name: str = key("subfolder")
    version: str = key("subfolder of it")


@dataclass
class TrainConfig:
    """Everything `train.py` reads."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    s3: S3Config = field(default_factory=S3Config)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: Any = key("what counting means")
    optimizer: Any = key("a torch optimizer, as a _partial_")
    scheduler: Any = key("a learning-rate schedule, as a _partial_")
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    logger: Dict[str, Any] = key("experiment loggers by name")
    seed: int = key("seed of weights, order and augmentation", ge=0, lt=2**32)
    init_from: Optional[str] = key("run folder whose weights training starts from", path=True)
    resume: Optional[str] = key(
        "run folder to go on with, or auto: the newest unfinished one of this config", path=True
    )
    resume_changed: bool = key("go on although values that change what the run computes differ")
    objective_metric: Optional[str] = key("what the best epoch and every sweep go by, e.g. val/accuracy")
    resume_sweep: Optional[str] = key("folder of a sweep to go on with: only what is not done is run", path=True)
    check: bool = key("validate and print the config, run nothing")


@dataclass
class PredictConfig:
    """Everything `predict.py` reads."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    s3: S3Config = field(default_factory=S3Config)
    data: DownloadConfig = field(default_factory=DownloadConfig)
    run: str = key("run folder (or bundle folder) whose model predicts", path=True)
    input: str = key("a photo, folder, glob, source, index or table; S3 too", path=True)
    batch_size: int = key("photos per batch", ge=1)
    num_workers: Optional[int] = key("decoding threads; null: one per core", ge=1, le=256)
    accelerator: str = key("device kind", choices=("cpu", "gpu", "auto"))
    contact_sheet: int = key("photos on the contact sheet of the least certain; 0: none", ge=0, le=400)
    resume_sweep: Optional[str] = key("folder of a sweep to go on with: only what is not done is run", path=True)
    check: bool = key("validate and print the config, run nothing")


@dataclass
class EvaluateConfig:
    """Everything `binventory evaluate` reads."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    s3: S3Config = field(default_factory=S3Config)
    data: DownloadConfig = field(default_factory=DownloadConfig)
    run: str = key("run folder (or bundle folder) whose model is scored", path=True)
    source: str = key("a source, ImageFolder tree or table with quantities; S3 too", path=True)
    batch_size: int = key("photos per batch", ge=1)
    num_workers: Optional[int] = key("decoding threads; null: one per core", ge=1, le=256)
    accelerator: str = key("device kind", choices=("cpu", "gpu", "auto"))
    resume_sweep: Optional[str] = key("folder of a sweep to go on with: only what is not done is run", path=True)
    check: bool = key("validate and print the config, run nothing")


@dataclass
class PrepareConfig:
    """Everything `binventory prepare` reads."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    s3: S3Config = field(default_factory=S3Config)
    data: DataConfig = field(default_factory=DataConfig)
    layout: Optional[str] = key("a copy of the photos for other tools", choices=("imagefolder",))
    output: Optional[str] = key("folder of that layout; null: below paths.data_dir", path=True)
    resume_sweep: Optional[str] = key("folder of a sweep to go on with: only what is not done is run", path=True)
    check: bool = key("validate and print the config, run nothing")


@dataclass
class UploadConfig:
    """Everything `binventory sagemaker upload` reads."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    s3: S3Config = field(default_factory=S3Config)
    target: S3Config = field(default_factory=S3Config)
    data: DataConfig = field(default_factory=DataConfig)
    s3_uri: str = key("s3://BUCKET/PREFIX below which the data set is put, under the hash of its content")
    kms_key: Optional[str] = key("id or ARN of the KMS key that encrypts it; null: the bucket's own setting")
    resume_sweep: Optional[str] = key("folder of a sweep to go on with: only what is not done is run", path=True)
    check: bool = key("validate and print the config, run nothing")
