"""``segearth models``: list, fetch and find models."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from segearth_cli import terminal
from segearth_cli.flags import Command, Json, Quiet, Verbose, option
from segearth_cli.stdout import print_json, print_lines, writing_to

if TYPE_CHECKING:
    from segearth_cli.model.weights import ModelRow

models_app = typer.Typer(no_args_is_help=True)


@models_app.command("list", cls=Command)
def models_list(json: Json = False) -> None:
    """Show every model by name, and where its weights are."""
    from segearth_cli.model.weights import list_models

    show_models(list_models(), json)


@models_app.command("pull", cls=Command)
def models_pull(
    name: Annotated[str, typer.Argument(help="For instance vit-b-16.", show_envvar=False)],
    file: Annotated[
        list[Path] | None,
        option(metavar="FILE", help="A file of the model that you have already; repeatable."),
    ] = None,
    force: Annotated[bool, option("--force", help="Fetch again.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Download a model, check it and keep it for offline use; prints its folder."""
    from segearth_cli.model.weights import pull

    terminal.log_to_stderr(verbose, quiet)
    print_lines(pull(name, force=force, files=file or ()).path)


@models_app.command("path", cls=Command)
def models_path(
    name: Annotated[str, typer.Argument(help="For instance mini.", show_envvar=False)],
) -> None:
    """Print the folder of a model that is on this machine."""
    from segearth_cli.model.weights import model_path

    terminal.log_to_stderr(verbose=False, quiet=False)
    print_lines(model_path(name))


def show_models(models: Sequence[ModelRow], as_json: bool) -> None:
    """Every model by name: a table, or JSON lines."""
    if as_json:
        for model in models:
            print_json({**asdict(model), "path": model.path and str(model.path)})
        return
    made = terminal.table(
        "Models",
        ["name", "sensor", "where", "size", "what"],
        [
            [
                model.name,
                model.sensor,
                model.where,
                f"{model.size / 1e6:.0f} MB" if model.size else "",
                model.description,
            ]
            for model in models
        ],
    )
    for index in (1, 2, 4):
        made.columns[index].justify = "left"
    with writing_to(sys.stdout):
        Console(soft_wrap=False).print(made)
