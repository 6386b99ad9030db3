"""`koo prometheus …` and `koo grafana …`: what koo brings for other tools, from the package itself."""

from __future__ import annotations

import typer

from koo.cli.parts import Commands
from koo.cli.terminal import put_whole
from koo.monitoring.exports import DASHBOARD, RULES, text_of

prometheus_app = Commands(help="What koo brings for Prometheus.", no_args_is_help=True)
grafana_app = Commands(help="What koo brings for Grafana.", no_args_is_help=True)


@prometheus_app.command()
def rules() -> None:
    """Print recording and alerting rules: `koo prometheus rules > koo.rules.yaml`."""
    put_whole(text_of(RULES))
    raise typer.Exit


@grafana_app.command()
def dashboard() -> None:
    """Print a dashboard, to import or to provision: `koo grafana dashboard > koo.json`. It needs the rules above."""
    put_whole(text_of(DASHBOARD))
    raise typer.Exit
