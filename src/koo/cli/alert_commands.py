"""`koo alerts …`: the arguments and help texts of its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from koo.cli.parts import Commands, Json, Reason, Url

alerts_app = Commands(help="Show what is wrong now and what was wrong before, and control who is notified.")

Id = Annotated[str, typer.Argument(metavar="ID", help="An alert's id, as listed by `koo alerts`.")]
Why = Annotated[str, typer.Option("--reason", metavar="TEXT", help="The reason; shown with the alert.")]


@alerts_app.callback(invoke_without_command=True)
def alerts(context: typer.Context, url: Url = None, as_json: Json = False) -> None:
    """Show what is wrong now. Exit code: 0 nothing, 3 warnings, 4 something critical or no server reachable."""
    if context.invoked_subcommand is not None:
        return
    from koo.cli.alerts import alerts as show

    raise typer.Exit(show(url, as_json=as_json))


@alerts_app.command()
def history(
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="How far back, such as 24h or 7d, or a time such as 2026-11-28T14:00Z."
        ),
    ] = "7d",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number to show.")] = 100,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show past and active alerts, newest first."""
    from koo.cli.alert_past import history as show

    raise typer.Exit(show(since, limit, url, as_json=as_json))


@alerts_app.command()
def ack(
    alert: Id,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="How long, such as 2h or 30m; then reminders resume."),
    ] = None,
    reason: Why = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Acknowledge an alert: you are working on it, and its reminders stop."""
    from koo.cli.alert_acts import acknowledge

    raise typer.Exit(acknowledge(alert, for_, reason, url, as_json=as_json))


@alerts_app.command()
def unack(alert: Id, reason: Reason = "", url: Url = None, as_json: Json = False) -> None:
    """Withdraw an acknowledgement: reminders resume."""
    from koo.cli.alert_acts import unacknowledge

    raise typer.Exit(unacknowledge(alert, reason, url, as_json=as_json))


@alerts_app.command()
def silence(
    reason: Why,
    component: Annotated[
        str | None,
        typer.Argument(help="database, ai:claude, or a pattern such as 'ai:*'; '*' matches everything."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Only this kind, or a pattern such as 'budget_*'.")
    ] = None,
    for_: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long, such as 2h, 30m or 1d.")
    ] = "2h",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Silence matching alerts for a while: they are still listed, but not sent."""
    from koo.cli.alert_acts import silence as act

    raise typer.Exit(act(component, kind, for_, reason, url, as_json=as_json))


@alerts_app.command()
def unsilence(
    silence: Annotated[
        str, typer.Argument(metavar="ID", help="The silence's id, as listed by `koo alerts silences`.")
    ],
    reason: Reason = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """End a silence now. Alerts that are still firing are sent."""
    from koo.cli.alert_acts import end_silence

    raise typer.Exit(end_silence(silence, reason, url, as_json=as_json))


@alerts_app.command()
def silences(url: Url = None, as_json: Json = False) -> None:
    """Show the silences: until when, set by whom, and why."""
    from koo.cli.alert_acts import silences as show

    raise typer.Exit(show(url, as_json=as_json))


@alerts_app.command()
def why(
    alert: Annotated[
        str | None, typer.Argument(metavar="ID", help="An alert's id; default: all alerts of the last day.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show whether an alert was sent on each channel, and if not, why."""
    from koo.cli.alert_why import why as show

    raise typer.Exit(show(alert, url, as_json=as_json))


@alerts_app.command("test")
def send_test(
    channel: Annotated[
        str | None, typer.Option(metavar="NAME", help="webhook, slack or email; default: all of them.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Send a test message on each channel. Exit code: 1 if one could not be delivered."""
    from koo.cli.alert_why import send_test as act

    raise typer.Exit(act(channel, url, as_json=as_json))
