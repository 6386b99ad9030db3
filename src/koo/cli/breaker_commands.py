"""`koo breaker …`: the arguments and help texts of its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from koo.cli.parts import Commands, Json, Url

breaker_app = Commands(help="Show why circuit breakers opened, and override them.")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="database, a service, or SERVICE/MODEL, as listed by `koo breaker list`."
    ),
]
Why = Annotated[
    str,
    typer.Option(
        "--reason", metavar="TEXT", help="The reason; recorded in the incident and shown to refused callers."
    ),
]
For = Annotated[
    str | None,
    typer.Option("--for", metavar="TIME", help="How long, such as 10m or 2h; default: until a reset."),
]


@breaker_app.command("list")
def list_breakers(url: Url = None, as_json: Json = False) -> None:
    """Show each breaker: its state, since when, why, and when it is tried again."""
    from koo.cli.breakers import list_all

    raise typer.Exit(list_all(url, as_json=as_json))


@breaker_app.command()
def why(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As for `trip`, or the id of an incident.")],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print all of it as Markdown, for a postmortem.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show why a breaker last opened: the arithmetic, the calls, what it did, and how it ended."""
    from koo.cli.breakers import why as show

    raise typer.Exit(show(name, url, markdown=markdown, as_json=as_json))


@breaker_app.command()
def trip(name: Name, reason: Why, for_: For = None, url: Url = None, as_json: Json = False) -> None:
    """Force a breaker open: every process refuses every call until the time is over or the breaker is reset."""
    from koo.cli.breakers import act

    raise typer.Exit(act("trip", name, reason, url, for_=for_, as_json=as_json))


@breaker_app.command()
def reset(name: Name, reason: Why, url: Url = None, as_json: Json = False) -> None:
    """Close a breaker: any override is removed, and its failures are forgotten."""
    from koo.cli.breakers import act

    raise typer.Exit(act("reset", name, reason, url, as_json=as_json))


@breaker_app.command()
def shadow(
    name: Name,
    reason: Why,
    off: Annotated[
        bool, typer.Option("--off", help="End shadow mode: its decisions are enforced again.")
    ] = False,
    for_: For = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make a breaker decide and count but refuse nothing, to try out a threshold."""
    from koo.cli.breakers import act

    raise typer.Exit(act("shadow", name, reason, url, for_=for_, off=off, as_json=as_json))
