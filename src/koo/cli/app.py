"""The commands, their arguments and help texts. Each imports what it needs when it runs, so `--help` is fast."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Annotated, Any, Literal

import typer

from koo.cli.alert_commands import alerts_app
from koo.cli.breaker_commands import breaker_app
from koo.cli.export_commands import grafana_app, prometheus_app
from koo.cli.parts import Commands, Json, Reason, Url, UsageError
from koo.cli.terminal import CommandFailed, Exit, code_of, put_error, say
from koo.errors import KooError

PROGRAM = "koo"
EXIT_WORDS = (
    "Exit codes: 0 success, 1 failed or refused, 2 usage or configuration error, 3 degraded, "
    "4 unhealthy or no server reachable, 130 interrupted."
)

app = Commands(
    name=PROGRAM,
    help="The resilience layer of a service that depends on a database and on AI providers.",
    epilog=EXIT_WORDS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
model_app = Commands(help="Manage the model of the local service.", no_args_is_help=True)
app.add_typer(model_app, name="model")
spend_app = Commands(help="Show what was spent, and free money held by dead processes.")
app.add_typer(spend_app, name="spend")
db_app = Commands(
    help="Act on the running server's database: pause, resume, drain, rotate; create koo's table.",
    no_args_is_help=True,
)
app.add_typer(db_app, name="db")

app.add_typer(alerts_app, name="alerts")
app.add_typer(breaker_app, name="breaker")
app.add_typer(prometheus_app, name="prometheus")
app.add_typer(grafana_app, name="grafana")


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code. A mistake or a refusal prints one sentence, never a traceback."""
    _prepare_streams()
    try:
        return _run(arguments)
    except BrokenPipeError:
        # The reader has all it wants (`koo query … | head -1`). Without this, Python would report the error again at
        # exit.
        _forget_output()
        return Exit.OK
    except OSError as error:  # standard output on a full disk, a file that cannot be read
        _forget_output()
        with suppress(OSError):
            say(f"koo: {error.strerror or error}" + (f": {_place(error.filename)}" if error.filename else ""))
        return Exit.FAILED


def _place(filename: str) -> str:
    """The file, and the variables that contain its path, which Python itself may have read (SSLKEYLOGFILE)."""
    from koo.settings import variables_of

    named = variables_of(filename)
    return f"{filename} ({', '.join(named)})" if named else filename


def _prepare_streams() -> None:
    """Replace characters that the terminal cannot show instead of failing; discard output to a closed stream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # closefd=False: a file object that does not own its descriptor emits no ResourceWarning when it is
            # collected.
            setattr(sys, name, open(os.open(os.devnull, os.O_WRONLY), "w", closefd=False))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _run(arguments: list[str]) -> int:
    try:
        # Standalone mode is off: in it the library would print its own message for a mistake, in a box, and end the
        # process.
        return _as_int(app(arguments, prog_name=PROGRAM, standalone_mode=False))
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None  # the library turns it into a failure, exit code 1
        return _as_int(end.code)
    except UsageError as error:
        return _end_misused(arguments, error)
    except CommandFailed as error:
        return _end(arguments, str(error), error.kind, error.code)
    except KooError as error:
        return _end(arguments, str(error), error.kind, code_of(error))
    except (KeyboardInterrupt, typer.Abort):
        return _end(arguments, "interrupted", "interrupted", Exit.INTERRUPTED)


def _end_misused(arguments: list[str], error: Any) -> Exit:
    """Print one sentence and where to read more. Without any argument, the help has already been printed."""
    said = error.format_message().rstrip(".")
    if not said:
        return Exit.USAGE
    path = PROGRAM if error.ctx is None else error.ctx.command_path
    said = f"{said[0].lower()}{said[1:]}{'' if said.endswith('?') else ';'} see `{path} --help`"
    return _end(arguments, said, "usage", Exit.USAGE)


def _forget_output() -> None:
    # Python flushes both streams at exit. If the reader is gone, that would print "Exception ignored" and change the
    # exit code to 120. Flushing into /dev/null discards what is left.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end(arguments: list[str], sentence: str, kind: str, code: Exit) -> Exit:
    """Print the reason. With `--json` it goes to standard output, so that the reader always gets a document."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in options:
        put_error(kind, sentence)
    else:
        say(f"koo: {sentence}")
    return code


def _as_int(code: object) -> int:
    return code if isinstance(code, int) else Exit.OK if code is None else Exit.FAILED


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    if version:
        import koo

        print(f"koo {koo.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:  # pragma: no cover - typer shows the help before
        raise typer.Exit(Exit.USAGE)


def _commands(incomplete: str) -> list[str]:
    """Shell completion: the commands."""
    single = [one.name or getattr(one.callback, "__name__", "") for one in app.registered_commands]
    names = [*single, *(str(group.name) for group in app.registered_groups)]
    return [name for name in names if name.startswith(incomplete)]


@app.command()
def help(  # noqa: A001 - a command has the name of its function
    command: Annotated[
        list[str] | None, typer.Argument(help="A command, for example: db pause.", autocompletion=_commands)
    ] = None,
) -> None:
    """Show the commands, or the arguments of one."""
    app([*(command or ()), "--help"], prog_name=PROGRAM, standalone_mode=False)


def _services(incomplete: str) -> list[str]:
    """Shell completion: the services named by the settings."""
    from koo.settings import Settings

    try:
        names = [service.name for service in Settings().platform_options().services]
    except KooError:  # completion cannot show an error; the command itself will
        return []
    return [name for name in names if name.startswith(incomplete)]


def _targets(incomplete: str) -> list[str]:
    """Shell completion: the services, and what else can be reset."""
    return [*_services(incomplete), *(name for name in ("all", "database") if name.startswith(incomplete))]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides KOO_HOST.")] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port to listen on; overrides KOO_PORT. 0 chooses a free one.", max=65_535),
    ] = None,
    log_format: Annotated[
        Literal["auto", "plain", "json", "console"] | None,
        typer.Option(
            help="auto: json unless on a terminal; console means plain. Overrides KOO_LOG_FORMAT.",
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"] | None,
        typer.Option(help="Overrides KOO_LOG_LEVEL.", show_default=False),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="Number of processes that share the port; those that die are replaced."
        ),
    ] = 1,
) -> None:
    """Serve the HTTP API until Ctrl-C or SIGTERM."""
    from koo.cli.serve import serve as run_server

    raise typer.Exit(run_server(host, port, log_format, log_level, workers))


@app.command(hidden=True)
def worker(place: str) -> None:
    """Run as a worker of `koo serve --workers`, which starts it."""
    from koo.cli.serve import work
    from koo.web.membership import Membership

    raise typer.Exit(work(Membership.read(place)))


@app.command()
def query(
    service: Annotated[
        str,
        typer.Argument(
            help="claude, openai, gemini, perplexity, local, or a service of your own.",
            autocompletion=_services,
        ),
    ],
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt. Without it, or with -, it is read from stdin.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to use instead of the service's default.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Limit on the length of the response.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    timeout: Annotated[float | None, typer.Option(help="Deadline of the whole query, in seconds.")] = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(
            help="Service to try if this one refuses or fails; may be repeated.", autocompletion=_services
        ),
    ] = None,
    on_limit: Annotated[
        Literal["refuse", "wait"] | None,
        typer.Option(help="At a limit: refuse immediately, or wait within the deadline."),
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="Refuse a query that may cost more, in USD.")
    ] = None,
    clamp: Annotated[
        bool, typer.Option("--clamp", help="Shorten the response to what --max-cost and the budgets allow.")
    ] = False,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the response when it is complete.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Query an AI service from this process; no server is needed. Tokens, cost and time go to standard error."""
    from koo.cli.query import query as ask

    code = ask(
        service,
        prompt,
        as_json=as_json,
        stream=not no_stream,
        model=model,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        timeout_s=timeout,
        fallback=tuple(fallback or ()),
        on_limit=on_limit,
        max_cost_usd=max_cost,
        clamp=clamp,
    )
    raise typer.Exit(code)


@app.command()
def status(url: Url = None, as_json: Json = False) -> None:
    """Show the state of the running server. Exit code: 0 healthy, 3 degraded, 4 unhealthy or no server reachable."""
    from koo.cli.status import status as show

    raise typer.Exit(show(url, as_json=as_json))


@app.command()
def watch(url: Url = None, as_json: Json = False) -> None:
    """Show the running server live: alerts, services, database, fleet. In a pipe: print once; exit codes as for
    status.
    """
    from koo.cli.watch import watch as show

    raise typer.Exit(show(url, as_json=as_json))


@app.command()
def tail(
    service: Annotated[
        str | None,
        typer.Option(help='Show only this service, or "database".', autocompletion=_services),
    ] = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="Show only alerts, opened breakers, failed and refused calls.")
    ] = False,
    since: Annotated[
        str, typer.Option(metavar="AGO", help="How far back to start, for example 10m; at most 24h.")
    ] = "1m",
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document per line.")] = False,
) -> None:
    """Follow what happens: alerts, opened breakers, operators' acts, totals of failed and refused calls, requests."""
    from koo.cli.tail import tail as follow

    raise typer.Exit(follow(since, service, url, errors=errors, as_json=as_json))


@app.command()
def audit(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to show, newest first.")] = 50,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show what was done on the running server, by whom, and what was refused."""
    from koo.cli.audit import audit as show

    raise typer.Exit(show(limit, url, as_json=as_json))


@app.command()
def reset(
    target: Annotated[str, typer.Argument(help='A service, "database", or "all".', autocompletion=_targets)],
    reason: Reason = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Reset a service or the database: its breaker closes. Money and limits are not changed."""
    from koo.cli.reset import reset as act

    raise typer.Exit(act(target, reason, url, as_json=as_json))


@app.command()
def fleet(url: Url = None, as_json: Json = False) -> None:
    """Show all processes on the state store: open breakers, purses, and settings that differ."""
    from koo.cli.fleet import fleet as show

    raise typer.Exit(show(url, as_json=as_json))


@spend_app.callback(invoke_without_command=True)
def spend(
    context: typer.Context,
    days: Annotated[int | None, typer.Option(min=1, help="The last N days, including today (UTC).")] = None,
    first: Annotated[
        str | None, typer.Option("--from", help="First UTC day, for example 2026-11-01.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last UTC day, inclusive.")] = None,
    month: Annotated[
        str | None, typer.Option(help="A month, for example 2026-11; default: the current month.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="day, service, model or tag; may be repeated or separated by commas."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show what all processes spent, grouped by service unless --by is given. Needs a running server."""
    if context.invoked_subcommand is not None:
        return
    from koo.cli.spend import spend as show

    asked = {"days": days, "from": first, "to": last, "month": month}
    raise typer.Exit(show(asked, by or ["service"], url, as_csv=csv, as_json=as_json))


@spend_app.command("write-off")
def write_off(
    process: Annotated[
        str | None, typer.Argument(help="A process that no longer reports, as listed by `koo spend`.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All such processes.")] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The reason; recorded.")] = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Free money that a dead process left booked. If it was spent, the bill may exceed the budget by that amount."""
    from koo.cli.spend import write_off as act

    raise typer.Exit(act(process, everything=everything, reason=reason, url=url, as_json=as_json))


Within = Annotated[float, typer.Option(min=0, max=600, help="Seconds to wait for open scopes.")]


@db_app.command()
def pause(reason: Reason = "", url: Url = None, as_json: Json = False) -> None:
    """Make new scopes wait, each until its own deadline. Open scopes continue."""
    _act_on_database("pause", None, reason, url, as_json)


@db_app.command()
def resume(reason: Reason = "", url: Url = None, as_json: Json = False) -> None:
    """Let new scopes start again, after a pause or a drain."""
    _act_on_database("resume", None, reason, url, as_json)


@db_app.command()
def drain(within: Within = 10.0, reason: Reason = "", url: Url = None, as_json: Json = False) -> None:
    """Refuse new scopes, wait for open ones, and list those still open. Exit code: 1 if there are any."""
    _act_on_database("drain", within, reason, url, as_json)


@db_app.command()
def rotate(within: Within = 0.0, reason: Reason = "", url: Url = None, as_json: Json = False) -> None:
    """Read DATABASE_URL again and replace all connections; those in use are replaced when their scopes end."""
    _act_on_database("rotate", within, reason, url, as_json)


@db_app.command()
def init(as_json: Json = False) -> None:
    """Create the table for exactly-once in the database of DATABASE_URL. Safe to repeat."""
    from koo.cli.database import init as make

    raise typer.Exit(make(as_json=as_json))


def _act_on_database(name: str, within_s: float | None, reason: str, url: str | None, as_json: bool) -> None:
    from koo.cli.database import act

    raise typer.Exit(act(name, within_s, reason, url, as_json=as_json))


@app.command()
def doctor(
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Number of processes with this configuration, to compare with the database's limit."
        ),
    ] = 1,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Check configuration, connections, permissions, prices, clock and disk, and suggest fixes."""
    from koo.cli.doctor import doctor as examine

    raise typer.Exit(examine(url, as_json=as_json, workers=workers))


def _kinds(incomplete: str) -> list[str]:
    """Shell completion: the kinds of alerts."""
    from koo.monitoring.runbook import runbooks

    return [kind for kind in runbooks() if kind.startswith(incomplete)]


@app.command()
def runbook(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="A kind of alert, for example circuit_open; default: all.", autocompletion=_kinds
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what to do about a kind of alert. Needs no server."""
    from koo.cli.runbook import runbook as show

    raise typer.Exit(show(kind, as_json=as_json))


@app.command()
def config(
    only_set: Annotated[
        bool, typer.Option("--only-set", help="Leave out settings that have their default.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the settings in force and where each came from; secrets are masked."""
    from koo.cli.config import config as show

    raise typer.Exit(show(as_json=as_json, only_set=only_set))


@model_app.command()
def install(as_json: Json = False) -> None:
    """Install the model of the local service (93 MB) and print its path."""
    from koo.cli.model import install as fetch

    raise typer.Exit(fetch(as_json=as_json))
