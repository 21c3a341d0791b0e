"""The `binventory` command. Subcommands that run a task take Hydra overrides, checked as those of train.py are."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Annotated, Any, cast

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Count the items in warehouse bins from photos.")
wandb_app = typer.Typer(no_args_is_help=True, help="What binventory does with Weights & Biases besides logger=wandb.")
app.add_typer(wandb_app, name="wandb")
sagemaker_app = typer.Typer(no_args_is_help=True, help="Training jobs on Amazon SageMaker, or without it.")
app.add_typer(sagemaker_app, name="sagemaker")
cache_app = typer.Typer(no_args_is_help=True, help="Decoded photos and frozen features that are kept for the next run.")
app.add_typer(cache_app, name="cache")

# Hydra reads what follows the subcommand: overrides and its own flags such as --cfg job.
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}


def _path_of(name: str) -> Callable[[Any], Path]:
    """Return what reads the path of an option or argument: never empty, and `~` is the home, as in config keys."""

    def read(said: Any) -> Path:
        from binventory.config.paths import as_path
        from binventory.errors import ConfigError
        from binventory.launch.runner import EXIT_USER_ERROR, report_user_error

        if isinstance(said, Path):  # a default
            return said
        try:
            return Path(as_path(name, said))
        except ConfigError as error:
            report_user_error(error)
            raise typer.Exit(EXIT_USER_ERROR) from error

    return read


def _place(said: str) -> str:
    path = _path_of("RUN_OR_SWEEP_OR_FOLDER")(said)
    return str(path) if said.startswith("~") else said  # a glob and an id stay as they are


Places = Annotated[
    list[str],
    typer.Argument(
        parser=_place,
        metavar="RUN_OR_SWEEP_OR_FOLDER",
        help="Run folders, sweeps, folders that hold them, globs, or ids under outputs/.",
        show_default=False,
    ),
]


@app.command(context_settings=PASS_THROUGH)
def prepare(context: typer.Context) -> None:
    """Fetch, check, index and split bins without training.

    Takes overrides of configs/prepare.yaml, e.g. `binventory prepare data=abid data.limit=1000 layout=imagefolder`.
    """
    from binventory.launch.entry import main as run_task

    run_task("prepare", list(context.args))


@app.command(context_settings=PASS_THROUGH)
def evaluate(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Run folder whose model is scored.", show_default=False)],
) -> None:
    """Score a trained model on a labelled source.

    Takes overrides of configs/evaluate.yaml, e.g. `binventory evaluate outputs/train/… source=../photos`.
    """
    from binventory.config.quoting import override_text
    from binventory.launch.entry import main as run_task

    # `run=DIR` and a plain DIR mean the same; a folder's name may hold characters that Hydra's grammar does not like.
    run_task("evaluate", [run if run.startswith("run=") else override_text("run", run), *context.args])


@app.command(context_settings=PASS_THROUGH)
def benchmark(
    context: typer.Context,
    max_batch: Annotated[int, typer.Option(min=2, help="The largest batch that is tried.")] = 4096,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long each setting is measured.")] = 3.0,
    compile: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Also try trainer.compile.", show_default="on a GPU"),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(parser=_path_of("--json"), metavar="FILE", help="Also write all figures.")
    ] = None,
    config_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Configs of your own, as for train.py.")] = None,
) -> None:
    """Find the largest batch and the fastest settings of a training on this machine; print the command for them.

    Takes overrides of configs/train.yaml, e.g. `binventory benchmark model=resnet18 data.image_size=224 trainer=gpu`.
    Needs no data set: it trains on random pixels.
    """
    from binventory.config.compose import compose_checked
    from binventory.errors import ConfigError, UserError
    from binventory.launch.runner import EXIT_USER_ERROR, report_user_error
    from binventory.tracking.run_folder import register_resolvers

    try:
        if several := {"-m", "--multirun"} & set(context.args):
            raise ConfigError(f"{several.pop()}: one config is measured; give single values")
        if json is not None and not os.access(next(filter(Path.exists, json.absolute().parents)), os.W_OK | os.X_OK):
            raise ConfigError(f"--json {json}: no file can be written there; name another")
        register_resolvers()
        config = compose_checked("train", context.args, config_dir=config_dir)[0]
        from binventory.compare.render import write_file
        from binventory.tasks.benchmark import run as find_fastest

        words = [*(["--config-dir", config_dir] if config_dir else []), *context.args]
        found = find_fastest(cast(Any, config), words, max_batch=max_batch, seconds=seconds, with_compile=compile)
        if json is not None:
            write_file("--json", json, dumps(found, indent=2) + "\n")
    except UserError as error:
        report_user_error(error)
        raise typer.Exit(EXIT_USER_ERROR) from error


@app.command()
def compare(
    places: Places,
    csv: Annotated[
        Path | None,
        typer.Option(parser=_path_of("--csv"), metavar="FILE", help="Also write all figures, one row a run."),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(parser=_path_of("--markdown"), metavar="FILE", help="Also write the tables as Markdown."),
    ] = None,
    html: Annotated[Path, typer.Option(parser=_path_of("--html"), metavar="FILE", help="The page, one file.")] = Path(
        "outputs/compare.html"
    ),
    metric: Annotated[str, typer.Option(help="Best first by this one.")] = "test/accuracy",
) -> None:
    """Compare runs: what differs in their configs, their figures, and whether the difference is more than chance.

    Prints tables and writes one HTML page with charts, confusion matrices and the photos that runs count differently.
    Runs that differ in nothing but their seed are also given as mean ± standard deviation. Runs on the same test set
    are compared photo by photo.
    """
    from binventory.compare.page import write_page
    from binventory.compare.render import print_comparison, write_csv, write_markdown
    from binventory.compare.table import compare as compare_runs
    from binventory.errors import UserError
    from binventory.launch.runner import EXIT_USER_ERROR, report_user_error

    try:
        comparison = compare_runs(places, metric)
        print_comparison(comparison)
        written = [] if csv is None else write_csv(comparison, csv)
        if markdown is not None:
            write_markdown(comparison, markdown)
            written.append(markdown)
        write_page(comparison, html)
        written.append(html)
    except UserError as error:
        report_user_error(error)
        raise typer.Exit(EXIT_USER_ERROR) from error
    for path in written:
        print(f"wrote {path}")


@wandb_app.command()
def sync(
    places: Places,
) -> None:
    """Send runs that were logged offline to W&B, each attempt of a resumed run after the one before."""
    from binventory.compare.find import find_runs
    from binventory.errors import UserError
    from binventory.launch.runner import EXIT_USER_ERROR, report_user_error
    from binventory.tracking.wandb_sync import sync as sync_runs

    try:
        exit_code = sync_runs(dict.fromkeys(run.path for run in find_runs(places)))
    except UserError as error:
        report_user_error(error)
        raise typer.Exit(EXIT_USER_ERROR) from error
    raise typer.Exit(exit_code)


@wandb_app.command()
def workspace(
    project: Annotated[str, typer.Option(help="W&B project.")] = "binventory",
    entity: Annotated[str | None, typer.Option(help="W&B team or user; default: the account's own.")] = None,
    name: Annotated[str, typer.Option(help="What the view and the report are called.")] = "binventory",
    report: Annotated[bool, typer.Option(help="Also write a report.")] = True,
) -> None:
    """Save a view of a project that shows which run is best, and a report on it; print where they are.

    Each call makes new ones. Needs a key: WANDB_API_KEY or `wandb login`.
    """
    from binventory.errors import ConfigError, UserError
    from binventory.launch.runner import EXIT_USER_ERROR, report_user_error

    try:
        try:
            from binventory.tracking.wandb_workspace import save_workspace
        except ModuleNotFoundError as error:
            missing = f"binventory wandb workspace: {error.name} is not installed; pip install 'binventory[wandb]'"
            raise ConfigError(missing) from error
        urls = save_workspace(project, entity, name, with_report=report)
    except UserError as error:
        report_user_error(error)
        raise typer.Exit(EXIT_USER_ERROR) from error
    for kind, url in zip(("view", "report"), urls, strict=False):
        print(f"{kind}: {url}")


@sagemaker_app.command(context_settings=PASS_THROUGH)
def upload(context: typer.Context) -> None:
    """Send bins to S3, once for the same content, and print the `data.source=` that jobs take.

    Takes overrides of configs/upload.yaml, e.g. `binventory sagemaker upload data=abid s3_uri=s3://BUCKET/PREFIX`.
    """
    from binventory.launch.entry import main as run_task

    run_task("upload", list(context.args))


@sagemaker_app.command()
def attach(
    sweep: Annotated[
        Path, typer.Argument(parser=_path_of("SWEEP"), metavar="SWEEP", help="Folder of a sweep whose jobs run on.")
    ],
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the jobs.")] = 10.0,
) -> None:
    """Wait for training jobs that a sweep was detached from, and bring their run folders back. Ctrl-C lets them run."""
    from binventory.errors import UserError
    from binventory.launch.runner import EXIT_INTERRUPTED, EXIT_USER_ERROR, report_user_error
    from binventory.sagemaker.attach import attach as attach_sweep

    try:
        exit_code = attach_sweep(sweep, poll)
    except UserError as error:
        report_user_error(error)
        raise typer.Exit(EXIT_USER_ERROR) from error
    except KeyboardInterrupt:
        print(f"left to run on; binventory sagemaker attach {shlex.quote(str(sweep))} goes on waiting", flush=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    raise typer.Exit(exit_code)


@sagemaker_app.command()
def local(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of SageMaker's endpoint; 0: a free one.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(parser=_path_of("--folder"), metavar="DIR", help="Keep every request here.")
    ] = None,
    time_scale: Annotated[float, typer.Option(help="Job seconds per second: 60 makes an hour a minute.")] = 1.0,
    checkpoint_period: Annotated[float, typer.Option(help="Seconds between uploads of checkpoints.")] = 1.0,
    upload_order: Annotated[str, typer.Option(help="name, reversed, oldest, newest, small or large first.")] = "name",
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="interrupt=NAME:after_s=20,sigterm=no, no_capacity=NAME, slow_start=NAME:30, throttle=3 or quota=2; "
            "NAME is a glob of job names. May be given several times.",
        ),
    ] = None,
) -> None:
    """Run SageMaker's training jobs on this machine: no Docker, no AWS account. Until Ctrl-C.

    Prints the `export` lines that lead boto3 and the SageMaker SDK here.
    """
    from binventory.errors import ConfigError, UserError
    from binventory.launch.runner import EXIT_USER_ERROR, report_user_error

    try:
        try:
            from binventory.sagemaker.local.command import serve
            from binventory.sagemaker.local.server import LocalSageMaker
        except ModuleNotFoundError as error:
            missing = f"binventory sagemaker local: {error.name} is not installed; pip install 'binventory[sagemaker]'"
            raise ConfigError(missing) from error
        plane = LocalSageMaker(
            folder,
            port=port,
            time_scale=time_scale,
            checkpoint_period_s=checkpoint_period,
            upload_order=upload_order,
        )
        serve(plane, fault or [])
    except UserError as error:
        report_user_error(error)
        raise typer.Exit(EXIT_USER_ERROR) from error


def _cache_dir() -> str:
    return os.environ.get("BINVENTORY_CACHE_DIR", ".cache")


CacheDir = Annotated[
    Path,
    typer.Option(
        parser=_path_of("--cache-dir"),
        metavar="DIR",
        default_factory=_cache_dir,
        show_default="$BINVENTORY_CACHE_DIR, else .cache",
        help="What paths.cache_dir was in the runs.",
    ),
]


@cache_app.command(name="list")
def list_cache(cache_dir: CacheDir) -> None:
    """Say which caches of photos and features there are: what of, how large, when they were used last."""
    from binventory.data.cache.manage import list_caches

    for cached in list_caches(cache_dir):
        photos = "" if cached.num_photos is None else f"{cached.num_photos:,} photos, "
        used = cached.last_used.astimezone().strftime("%Y-%m-%d %H:%M")
        print(f"{cached.folder}: {cached.what}, {photos}{cached.size_bytes / 1e6:,.1f} MB, last used {used}")


@cache_app.command(name="prune")
def prune_cache(
    cache_dir: CacheDir,
    unused_days: Annotated[float, typer.Option(min=0, help="Keep what a run used within so many days.")] = 30.0,
) -> None:
    """Remove the caches that no run used for 30 days; they are made again when a run needs them."""
    from binventory.data.cache.manage import prune_caches
    from binventory.errors import ConfigError
    from binventory.launch.runner import EXIT_USER_ERROR, report_user_error

    done = prune_caches(cache_dir, unused_days)
    for cached in done.removed:
        print(f"removed {cached.folder} ({cached.what}, {cached.size_bytes / 1e6:,.1f} MB)")
    for cached, reason in done.kept:
        print(f"kept {cached.folder}: {reason}")
    for line in done.failed:
        report_user_error(ConfigError(f"--cache-dir: {line}; remove it by hand"))
    if done.failed:
        raise typer.Exit(EXIT_USER_ERROR)


def main() -> None:
    """Run the command line."""
    from binventory.launch.runner import forget_foreign_ranks
    from binventory.streams import keep_streams_open

    keep_streams_open()
    forget_foreign_ranks()
    app()
