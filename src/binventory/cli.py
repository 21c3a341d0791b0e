"""The `binventory` command. Every subcommand takes Hydra overrides, checked as those of train.py are."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Count the items in warehouse bins from photos.")

# Hydra reads what follows the subcommand: overrides and its own flags such as --cfg job.
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}


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
    from binventory.launch.entry import main as run_task

    overrides = list(context.args)
    # `run=DIR` and a plain DIR mean the same; a folder's name may hold characters that Hydra's grammar does not like.
    run_task("evaluate", [run if run.startswith("run=") else "run='{}'".format(run.replace("'", "\\'")), *overrides])


def main() -> None:
    """Run the command line."""
    app()
