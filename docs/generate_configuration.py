"""Write `.env.example` and `docs/configuration.md` from the settings: `python -m docs.generate_configuration`.

The tables come from `koo.configuration.variables` and `koo.options`; the prose around them is in this file.
`tests/test_settings.py` fails if a generated file is out of date.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

from koo.ai.models import DEFAULT_MODELS
from koo.alert_options import AlertOptions
from koo.budget_options import BudgetOptions
from koo.checked import Checked, allowed
from koo.configuration.names import PREFIXES
from koo.configuration.table import Row, Table
from koo.configuration.to_options import PACKAGED_MODEL
from koo.configuration.values import as_text
from koo.configuration.variables import BUILT_IN, BudgetSettings, ServiceSettings, Variables
from koo.log_options import LogOptions
from koo.network_options import NetworkOptions
from koo.options import (
    BreakerOptions,
    DatabaseOptions,
    GuardOptions,
    LimitOptions,
    PlatformOptions,
    RetryOptions,
    ServiceOptions,
)

ROOT = Path(__file__).parents[1]
WIDTH = 100


class Section(NamedTuple):
    """A group of variables: those that begin with one of the prefixes and are in no earlier section."""

    title: str
    prefixes: tuple[str, ...]
    intro: str = ""


SECTIONS = [
    Section("Where everything is", ("KOO_HOME",)),
    Section(
        "Database: connections",
        ("DATABASE_",),
        "The path of a SQLite file is relative to `KOO_HOME` unless it is absolute. `postgresql://` and `postgres://` "
        "use psycopg 3, `postgresql+asyncpg://` uses asyncpg. A SQLite URL without a path, or with `:memory:`, is a "
        "database in memory.",
    ),
    Section("Database: circuit breaker", ("DB_CIRCUIT_BREAKER_",)),
    Section("Database: retries", ("DB_MAX_RETRIES", "DB_RETRY_")),
    Section("Database: slowness, health, exactly once", ("DB_", "HEALTH_CHECK_TIMEOUT")),
    Section("AI services: circuit breaker", ("AI_CIRCUIT_BREAKER_",)),
    Section("AI services: retries", ("AI_MAX_RETRIES", "AI_RETRY_")),
    Section(
        "AI services: limits and money",
        ("AI_DEFAULT_",),
        "Each service has these limits separately. `none` means no limit; `0` refuses every call. A free service has "
        "no budget unless you set one.",
    ),
    Section("AI services: time and health", ("AI_",)),
    Section("AI services: keys", tuple(key for _, key in BUILT_IN.values() if key)),
    Section(
        "Proxies and certificates",
        ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_"),
        "Other programs read these variables too. The names of the proxy variables may also be in lower case, which "
        "takes precedence. [network.md](network.md) has the details.",
    ),
    Section(
        "Alerts: notifications",
        ("KOO_ALERT_", "KOO_SMTP_", "KOO_PUBLIC_"),
        "Without a channel (`KOO_ALERT_WEBHOOK`, `KOO_ALERT_SLACK`, `KOO_ALERT_EMAIL`) alerts are listed "
        "but not sent. [notifications.md](notifications.md) explains them.",
    ),
    Section(
        "State, server and command line",
        ("KOO_",),
        "koo does not listen on an address that other machines can reach unless `KOO_TOKEN` is set.",
    ),
]


def variables_by_section() -> list[tuple[Section, list[Row]]]:
    """Every variable in its section. Raises ValueError for a variable that belongs to no section."""
    found: dict[str, list[Row]] = {section.title: [] for section in SECTIONS}
    for row in Variables.rows.values():
        section = next((one for one in SECTIONS if variable(row).startswith(one.prefixes)), None)
        if section is None:
            raise ValueError(f"{variable(row)} has no section in {Path(__file__).name}")
        found[section.title].append(row)
    return [(section, found[section.title]) for section in SECTIONS]


def variable(row: Row) -> str:
    """The variable of a row; for a setting of a service, the part after `AI_SERVICES__<NAME>__`."""
    return row.name.upper()


def default(row: Row) -> str:
    """The value if a variable is not set: its default, or for a service's setting the variable that applies instead."""
    if row.shown_default or row is Variables.rows.get(row.name):
        return row.shown_default or as_text(row.default)
    followed = (one for one in Variables.rows.values() if (one.root, one.places) == (row.root, row.places))
    return next((f"as `{variable(one)}`" for one in followed), "") or _own_default(row)


def _own_default(row: Row) -> str:
    """The default of a setting that only single services have, if it is a number."""
    defaults = {f"ServiceOptions.{one.name}": one.default for one in fields(ServiceOptions)}
    found = next((defaults[option] for option in row.options() if option in defaults), None)
    return as_text(found) if isinstance(found, int | float) else ""


# ── .env.example ──────────────────────────────────────────────────────────────────────────────────────────────────

HEAD_OF_EXAMPLE = [
    "Every setting of koo, with its default. Copy this file to `.env`, and remove the # from each line you change. "
    "koo uses the nearest `.env`, starting at the working directory and going up; its folder is KOO_HOME.",
    "",
    "The environment takes precedence over the file. An empty value counts as not set. A $ is not expanded. The copy "
    "will contain keys, so protect it: chmod 600 .env",
    "",
    "Written by docs/generate_configuration.py. docs/configuration.md explains the settings in tables.",
]

*_FIRST, _LAST = BUILT_IN
EXAMPLE_SERVICES = [
    f"Settings of one service: AI_SERVICES__<NAME>__<SETTING>, with the name {', '.join(_FIRST)} or {_LAST}.",
    "#AI_SERVICES__CLAUDE__DAILY_BUDGET=20",
    "#AI_SERVICES__LOCAL__MODEL=models/another.gguf",
    "",
    "Any other name adds a service. A server with OpenAI's API format needs two lines:",
    "#AI_SERVICES__OLLAMA__BASE_URL=http://127.0.0.1:11434/v1",
    "#AI_SERVICES__OLLAMA__MODEL=llama3.2",
    "",
    "Settings of a service:",
]
EXAMPLE_BUDGETS = [
    "Budgets in addition to each service's daily budget: AI_BUDGETS__<NAME>__<SETTING>, with any name. Two examples:",
    "#AI_BUDGETS__MONTH__LIMIT=200",
    "#AI_BUDGETS__MONTH__PERIOD=month",
    "#AI_BUDGETS__EACH_TAG__LIMIT=5",
    "#AI_BUDGETS__EACH_TAG__TAG=*",
    "#AI_BUDGETS__EACH_TAG__ON_EXHAUSTED=local",
    "",
    "Settings of a budget:",
]


def example() -> str:
    """The text of `.env.example`."""
    lines = [*_comment(HEAD_OF_EXAMPLE)]
    for section, rows in variables_by_section():
        lines += ["", "", f"# ---- {section.title} ".ljust(WIDTH, "-")]
        for row in rows:
            value = "" if variable(row) == "KOO_HOME" else default(row)
            lines += ["", *_comment([_sentence(row)]), f"#{variable(row)}={value}"]
    lines += _family("AI services: one by one", EXAMPLE_SERVICES, ServiceSettings)
    lines += _family("AI services: more budgets", EXAMPLE_BUDGETS, BudgetSettings)
    return "\n".join(lines) + "\n"


def _family(title: str, words: list[str], table: type[Table]) -> Iterator[str]:
    yield from ("", "", f"# ---- {title} ".ljust(WIDTH, "-"), "", *_comment(words))
    for row in table.rows.values():
        default_words = f" Default: {default(row)}." if default(row) else ""
        yield from _comment([f"  {variable(row)}: {row.meaning}.{default_words}"], indent="    ")


def _sentence(row: Row) -> str:
    unit = f" [{row.unit}]" if row.unit else ""
    words = f" Default: {row.shown_default}." if row.shown_default else ""
    return f"{variable(row)}{unit}: {row.meaning}. Allowed: {row.allowed}.{words} Why: {row.why}."


def _comment(paragraphs: Iterable[str], indent: str = "") -> Iterator[str]:
    for text in paragraphs:
        if not text or text.startswith("#"):
            yield text or "#"
            continue
        yield from textwrap.wrap(
            text.replace("`", ""),
            WIDTH,
            initial_indent="# ",
            subsequent_indent=f"# {indent}",
            break_long_words=False,
            break_on_hyphens=False,
        )


# ── docs/configuration.md ─────────────────────────────────────────────────────────────────────────────────────────

HEAD = f"""\
# Configuration

<!-- Written by docs/generate_configuration.py from the settings themselves: change it there. -->

koo works without any configuration: it then uses SQLite files under `data/` and the local model. Every setting is an
environment variable or a line in a file named `.env`; [`.env.example`](../.env.example) lists all of them to copy from.

## Where values come from

`KOO_HOME` is koo's base folder: koo reads the `.env` there, and relative paths in settings (a SQLite file, a model) are
relative to it. You rarely need to set it. koo looks for a `.env` in the working directory, then in its parent, and so
on; the first folder that has one is `KOO_HOME`. If no folder has one, `KOO_HOME` is the working directory. Set it if
you do not control the working directory, for example in a systemd unit, a container or a cron job.

A setting takes its value from the first of these sources that has one:

1. an argument: `Settings(database_pool_size=20)`,
2. the environment of the process,
3. the `.env` in `KOO_HOME`,
4. the default.

An empty value counts as not set. For example, `OPENAI_API_KEY= koo serve` ignores the key in the `.env` for one run.

The `.env` contains `NAME=value` lines, and comments that begin with `#`. Quote a value that contains spaces or a ` #`:
`'…'` is taken literally, and in `"…"` escapes such as `\\n` are replaced. Variables are not expanded: a `$` in a
password is a `$`. If a line cannot be parsed, koo does not start, and the message has the line's number.

### Who may write it

A `.env` decides which address receives your keys. koo therefore uses a `.env` that it found by searching only if you or
root own it, and no other user can change or replace it. This applies to each folder and each link on its path; in a
folder with the sticky bit (`/tmp`, a mounted secret) only owners can replace entries. Otherwise koo does not start, and
the message names the file or folder and its owner. If you set `KOO_HOME=/the/folder` yourself, koo uses the file and
logs a warning. Under `sudo`, the files of the calling user count as yours.

If every user of the machine can read the file, koo logs a warning at each start; `chmod o-r .env` fixes that.

## Invalid settings

koo does not start with an invalid value. The message names the variable, its value, and what is allowed:

```text
DATABASE_POOL_SIZE is "-1"; expected a whole number, 1 to 10000
AI_SERVICES__CLAUDE__DALY_BUDGET is "20", but a service has no such setting (did you mean DAILY_BUDGET?); …
KOO_HOST is "0.0.0.0", which other machines can reach; without KOO_TOKEN, expected 127.0.0.1, ::1 or localhost
```

koo also does not start if two values contradict each other: `KOO_READ_TOKEN` without `KOO_TOKEN`, a short token on an
address that other machines can reach, `KOO_ALERT_EMAIL` without `KOO_SMTP_URL`, an attempt's timeout above its query's,
a first retry pause above the longest one, a wait for a connection that is longer than the scope, one price without the
other, or a budget that falls back to a service that is switched off.

If one value makes another pointless, koo logs a warning at each start, and `koo doctor` reports it. This is not an
error, because the value may be meant as "never". Examples: a first-token, stall, held or slow time that is longer than
the attempt, query or scope that it applies to; a limit per minute above the limit per hour; checks that may last longer
than their interval; alerts without a channel; a budget that falls back to a service without a key. The defaults cause
no warning.

koo does not accept quotes around a value (`docker run --env-file` and systemd keep them) or unreplaced placeholders
(`${{NAME}}`, `$NAME`, `{{{{ name }}}}`), which would otherwise become part of a model's name, for example.

koo ignores the variables that Kubernetes sets for a Service named `koo`, `db`, `ai` or `database`
(`KOO_PORT=tcp://10.0.0.7:8000`, `DB_SERVICE_HOST`, …). A port that your own manifest sets takes precedence.

A name that begins like koo's own ({", ".join(f"`{prefix}`" for prefix in PREFIXES)}) but is not one of them may belong
to other software: koo ignores it and logs a warning with the name that was probably meant. In the `.env` the same
applies to every name that is one typo away from a setting of koo. Names are in capitals; only the part after
`AI_SERVICES__` and `AI_BUDGETS__` may be in any case.
"""

SERVICES = """\
## One service differs, and services of your own

`AI_SERVICES__<NAME>__<SETTING>` changes the setting for one service. Everything else stays as for all services.

{table}

Any other name adds a service. Two lines in the `.env` are enough for a server that implements OpenAI's chat completions
(Ollama, vLLM, llama.cpp, LM Studio, most gateways and vendors):

```text
AI_SERVICES__OLLAMA__BASE_URL=http://127.0.0.1:11434/v1
AI_SERVICES__OLLAMA__MODEL=llama3.2
```

`query_ai("ollama", "…")` then calls it. A hosted vendor needs its `API_KEY` too. Set `KIND=anthropic` or `KIND=gemini`
for a server with one of those API formats. A name with an `API_KEY` and without a `BASE_URL` is a second account at the
vendor.

Prices come from the price table, by model. Calls of `local`, and of your own service without a key and a price, cost 0.
For a service with a key the price must be known: if the table does not contain the model, set `PRICE_AS` to a model
that costs as much, or set both `INPUT_PRICE` and `OUTPUT_PRICE`, which take precedence. koo refuses a query whose price
is unknown, because it could not enforce any budget.

Azure's deployments and other private names are in no price table, so they need `PRICE_AS`:

```text
AI_SERVICES__AZURE__BASE_URL=https://acme.openai.azure.com/openai/v1
AI_SERVICES__AZURE__API_KEY=...
AI_SERVICES__AZURE__MODEL=our-deployment
AI_SERVICES__AZURE__PRICE_AS=gpt-6.1-terra
```

`PRICE_AS` applies to the service's own `MODEL`. If a query names another model, the table's price for it applies, and
`PRICE_AS` only if the table does not contain that model. [The
guide](ENHANCED_ERROR_HANDLING.md#which-price-a-model-has) explains how model names are matched.

`local` runs on this machine and has no key, address or kind. `MODEL` is the path of a GGUF file, relative to
`KOO_HOME`; without it the packaged model is used. `AI_LOCAL_ENABLED=false` switches the service off: it is then not
configured, and no model is loaded.

[network.md](network.md) explains `PROXY`, `HEADERS` and `BODY`. The names of `HEADERS` and `BODY` are part of the
variable: `AI_SERVICES__LAB__HEADERS__X_TITLE=my app`, `AI_SERVICES__LAB__BODY__TOP_P=0.9`.

{settings}
"""

BUDGETS = """\
## More budgets

Each service has its own budget for each UTC day. `AI_BUDGETS__<NAME>__<SETTING>` adds further budgets with any name:
for a day or a month; for one service, one model, one tag, or all together.

```text
AI_BUDGETS__MONTH__LIMIT=200
AI_BUDGETS__MONTH__PERIOD=month
AI_BUDGETS__EACH_TAG__LIMIT=5
AI_BUDGETS__EACH_TAG__TAG=*
AI_BUDGETS__EACH_TAG__ON_EXHAUSTED=local
```

A call's worst case is held in all budgets that include it, or in none. Here these are its service's day, `month`, and
its tag's day. `TAG=*` gives each tag its own budget; a call without a tag counts in none of them. If this budget
refuses, `ON_EXHAUSTED` names the service to call next, unless the query's chain contains it already. That service's own
budgets and limits apply, and the answer's `service` says which service answered.

If the state store is unreachable, a budget that you set refuses calls as soon as the process's purse is empty.

{settings}
"""

SECRETS = """\
## Secrets

Keys, tokens, database URLs, proxy passwords and the values of `HEADERS` and `BODY` appear in no message, log or `repr`.
In Python they are `SecretStr`: `settings.database_url` is printed as stars, and
`settings.database_url.get_secret_value()` returns the text. Encode the special characters of a password in a URL: `/`
as `%2F`, `@` as `%40`, `:` as `%3A`, `?` as `%3F`, `#` as `%23`. A service's address must not contain a password; use
`API_KEY`.

Anyone who can read the `.env` has the keys. Run `chmod 600 .env`, and keep the file out of version control.

## In Python

Each variable is an attribute, in lower case. `AI_SERVICES__…` is the dictionary `ai_services`, and
`AI_BUDGETS__…` is `ai_budgets`.

```python
from koo import Settings

settings = Settings()
print(settings.database_pool_size, settings.ai_default_daily_budget, settings.koo_home)

for row in settings.explain():  # each value and its source; secrets are masked
    print(f"{row.variable}={row.value}  ({row.source})")

for unknown in settings.unknown_variables:
    print(unknown)

options = settings.platform_options()  # frozen and checked; the rest of koo uses these
```

`Settings` raises `koo.ConfigurationError`. It reads the environment once, when it is created.

## The options behind the settings

A program can also create the options itself, without the environment: `Platform(PlatformOptions(…))`. Their ranges are
checked on creation. The last column names the variable that sets an option. Options without a variable can be set only
in Python, because changing them changes how the guard works.
"""

OPTIONS: list[type[Checked]] = [
    BreakerOptions,
    RetryOptions,
    LimitOptions,
    GuardOptions,
    DatabaseOptions,
    ServiceOptions,
    BudgetOptions,
    NetworkOptions,
    LogOptions,
    AlertOptions,
    PlatformOptions,
]


def page() -> str:
    """The text of `docs/configuration.md`."""
    parts = [HEAD]
    for section, rows in variables_by_section():
        parts.append(f"## {section.title}\n")
        if section.intro:
            parts.append("\n".join(textwrap.wrap(section.intro, 120, break_long_words=False)) + "\n")
        parts.append(_table(rows) + "\n")
    services = _markdown(["service", "API format", "key", "default model"], _service_rows())
    parts.append(SERVICES.format(table=services, settings=_table(ServiceSettings.rows.values())))
    parts.append(BUDGETS.format(settings=_table(BudgetSettings.rows.values())))
    parts.append(SECRETS)
    parts += [_options_part(options) for options in OPTIONS]
    return "\n".join(parts).rstrip() + "\n"


def _table(rows: Iterable[Row]) -> str:
    header = ["variable", "default", "unit", "allowed", "meaning", "why this default"]
    return _markdown(
        header,
        ([f"`{variable(row)}`", _default(row), row.unit, row.allowed, row.meaning, row.why] for row in rows),
    )


def _default(row: Row) -> str:
    text = default(row)
    return f"`{text}`" if text and " " not in text and text != "required" else text or "not set"


def _service_rows() -> Iterator[list[str]]:
    for name, (kind, key) in BUILT_IN.items():
        model = DEFAULT_MODELS.get(name, PACKAGED_MODEL)
        yield [f"`{name}`", kind, f"`{key}`" if key else "none", f"`{model}`"]


def _options_part(options: type[Checked]) -> str:
    rows, plain = [], []
    for one in fields(options):  # type: ignore[arg-type]
        words = one.metadata
        if not words:
            plain.append(f"`{one.name}`")
            continue
        rows.append([f"`{one.name}`", _value(one), words["unit"], _allowed(options, one), words["meaning"],
                     words["why"], _variables_of(f"{options.__name__}.{one.name}")])  # fmt: skip
    text = f"### {options.__name__}\n\n{(options.__doc__ or '').splitlines()[0]}"
    text += f" Also: {', '.join(plain)}." if plain else ""
    header = ["option", "default", "unit", "allowed", "meaning", "why this default", "set by"]
    return f"{text}\n\n{_markdown(header, rows)}\n"


def _value(one: Any) -> str:
    text = f"{one.default:g}" if isinstance(one.default, float) else str(one.default)
    text = "" if one.default is MISSING else text
    return text and f"`{text}`"


def _allowed(options: type[Checked], one: Any) -> str:
    """An option's range; for a choice and for a budget, what the variable that sets it accepts."""
    if options is BudgetOptions or str(one.type).startswith(("Literal", "bool")):
        return next(
            (row.allowed for _, row in _rows_of(f"{options.__name__}.{one.name}")), allowed(one.metadata)
        )
    return allowed(one.metadata)


def _variables_of(option: str) -> str:
    return ", ".join(f"`{prefix}{variable(row)}`" for prefix, row in _rows_of(option))


def _rows_of(option: str) -> Iterator[tuple[str, Row]]:
    tables: list[tuple[str, type[Table]]] = [
        ("", Variables),
        ("…__", ServiceSettings),
        ("AI_BUDGETS__…__", BudgetSettings),
    ]
    for prefix, table in tables:
        yield from ((prefix, row) for row in table.rows.values() if option in row.options())


def _markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(re.sub(r"\|", r"\\|", cell) for cell in line) + " |" for line in lines)


def pages() -> dict[Path, str]:
    """Each generated file with its text."""
    return {ROOT / ".env.example": example(), ROOT / "docs" / "configuration.md": page()}


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
