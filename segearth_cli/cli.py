"""The command line: options become a dataclass, then one call. Heavy imports stay in commands."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from segearth_cli import __version__, stdout, terminal
from segearth_cli.cli_bench import bench_command
from segearth_cli.cli_evaluate import evaluate_command
from segearth_cli.cli_info import info_command
from segearth_cli.cli_models import models_app
from segearth_cli.cli_segment import segment_command
from segearth_cli.cli_training import distill_sar_command, train_upsampler_command
from segearth_cli.cli_tune import tune_command
from segearth_cli.errors import NO_MEMORY, SegEarthError, Stopped, Terminated, why_not_usable
from segearth_cli.flags import GIVEN, Command
from segearth_cli.signals import STOPPING, handled_by

logger = logging.getLogger(__name__)


def _terminate(number: int, frame: object) -> None:
    raise Terminated(number)


# what typer raises for an unknown option, a value of the wrong kind, a missing argument
WRONG_USAGE: Any = typer.BadParameter.__bases__[0]
NO_NUMBER = {
    "should be a valid number": "number",
    "should be a valid integer": "whole number",
    "could not convert string to float": "number",
}


class ErrorBoundary(TyperGroup):
    """Prints expected errors as one line on stderr; anything else is a bug and keeps its trace."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The program's own options, which no environment variable sets."""
        params = super().get_params(ctx)
        for param in params:
            vars(param).update(show_envvar=False, allow_from_autoenv=False)
        return params

    def main(self, *args: Any, **more: Any) -> Any:
        """Run the program and exit with its code."""
        stdout.speak_utf8()
        terminal.need_no_stderr()
        try:
            _check_folder()
            status = super().main(*args, **{**more, "standalone_mode": False})
        except SegEarthError as error:
            terminal.print_error(str(error))
            status = error.exit_code
        except WRONG_USAGE as error:
            if message := error.format_message():  # empty where the help has been shown instead
                terminal.print_error(wrong_usage(error, message))
            status = error.exit_code
        except OSError as error:
            of_stdout = error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF) and not error.filename
            why = (
                f"cannot write to stdout: {error.strerror}" if of_stdout else why_not_usable(error)
            )
            if why is None:
                raise
            terminal.print_error(why)
            status = 1
        except MemoryError:
            terminal.print_error(NO_MEMORY)
            status = 1
        finally:
            stdout.let_go()
        sys.exit(status or 0)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; turn its being stopped into exit codes."""
        try:
            # they are a Ctrl-C: it unwinds the stack, so that temporary folders go
            with handled_by(_terminate, *(n for n in STOPPING if n != signal.SIGINT)):
                return super().invoke(ctx)
        except Stopped as stop:
            if str(stop):
                terminal.print_error(str(stop))
            sys.exit(128 + stop.number)
        except KeyboardInterrupt as interrupt:
            terminal.print_error(str(interrupt) or "interrupted; nothing unfinished was written")
            sys.exit(128 + getattr(interrupt, "number", signal.SIGINT))  # as shells count
        except BrokenPipeError:  # the reader of stdout has gone: `| head`
            sys.exit(128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1)


def _check_folder() -> None:
    """Refuse to run in a folder that somebody has removed: libraries say less, or abort.

    Raises:
        SegEarthError: it is gone.
    """
    with contextlib.suppress(PermissionError):  # it is there, and may do
        try:
            os.getcwd()
        except FileNotFoundError as error:
            raise SegEarthError("the current folder is gone; change to another one") from error


def wrong_usage(error: Any, message: str) -> str:
    """What typer says, where the value came from, and where to read on."""
    context, parameter = error.ctx, getattr(error, "param", None)
    where = f"see {context.command_path} --help" if context else "see segearth --help"
    typed = context.meta.get(GIVEN, {}).get(parameter.name) if parameter is not None else None
    if parameter is not None and context.get_parameter_source(parameter.name).name == "ENVIRONMENT":
        variable = f"{context.auto_envvar_prefix}_{parameter.name.upper()}"
        where, typed = f"it comes from {variable}; {where}", os.environ.get(variable)
    kind = next((kind for words, kind in NO_NUMBER.items() if words in message), None)
    if parameter is not None and kind is not None:
        return f"{max(parameter.opts, key=len)} {typed!r} is no {kind}; {where}"
    return f"{message[0].lower()}{message[1:].rstrip('.')}; {where}"


app = typer.Typer(
    cls=ErrorBoundary,
    no_args_is_help=True,
    context_settings={"auto_envvar_prefix": "SEGEARTH", "help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.add_typer(models_app, name="models", help="List, fetch and find models.")


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        stdout.print_lines(f"segearth {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Turn a georeferenced image and a list of words into a map."""


def environment_hint(command: str) -> str:
    """What a command's help says of its environment variables."""
    name = f"SEGEARTH_{command.upper().replace('-', '_')}_MODEL"
    return f"Every option can be set in the environment too, as in {name}=mini."


for name, function in (
    ("segment", segment_command),
    ("bench", bench_command),
    ("evaluate", evaluate_command),
    ("tune", tune_command),
    ("train-upsampler", train_upsampler_command),
    ("distill-sar", distill_sar_command),
):
    app.command(name, cls=Command, epilog=environment_hint(name))(function)
app.command("info", cls=Command)(info_command)
