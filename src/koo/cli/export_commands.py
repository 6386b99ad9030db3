"""`koo prometheus …` and `koo grafana …`: files for other tools, contained in the package itself."""

from __future__ import annotations

import typer

from koo.cli.parts import Commands
from koo.cli.terminal import put_whole
from koo.monitoring.exports import DASHBOARD, RULES, text_of

prometheus_app = Commands(help="Print recording and alerting rules for Prometheus.", no_args_is_help=True)
grafana_app = Commands(help="Print a dashboard for Grafana.", no_args_is_help=True)


@prometheus_app.command()
def rules() -> None:
    """Print recording and alerting rules: `koo prometheus rules > koo.rules.yaml`."""
    put_whole(text_of(RULES))
    raise typer.Exit


@grafana_app.command()
def dashboard() -> None:
    """Print a dashboard to import or provision: `koo grafana dashboard > koo.json`. Needs the rules of `koo
    prometheus`.
    """
    put_whole(text_of(DASHBOARD))
    raise typer.Exit
