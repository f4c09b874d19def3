"""Run the command line as ``python -m segearth_cli``."""

from segearth_cli.cli import app

app(prog_name="segearth")
