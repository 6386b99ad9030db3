"""Write `.env.example` and `docs/configuration.md` from the settings: `python -m docs.generate_configuration`.

What stands in a table comes from `koo.configuration.variables` and `koo.options`; the prose around it stands here.
`tests/test_settings.py` fails when a file is older than its source.
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
    """Variables of one subject: those with one of the prefixes that no earlier section has."""

    title: str
    prefixes: tuple[str, ...]
    intro: str = ""


SECTIONS = [
    Section("Where everything is", ("KOO_HOME",)),
    Section(
        "Database: connections",
        ("DATABASE_",),
        "A relative path of a SQLite file starts at `KOO_HOME`. `postgresql://` means psycopg 3, and `postgres://` is "
        "taken for it; `postgresql+asyncpg://` means asyncpg. No path, or `:memory:`, is a SQLite database in memory.",
    ),
    Section("Database: circuit breaker", ("DB_CIRCUIT_BREAKER_",)),
    Section("Database: retries", ("DB_MAX_RETRIES", "DB_RETRY_")),
    Section("Database: slowness, health, exactly once", ("DB_", "HEALTH_CHECK_TIMEOUT")),
    Section("AI services: circuit breaker", ("AI_CIRCUIT_BREAKER_",)),
    Section("AI services: retries", ("AI_MAX_RETRIES", "AI_RETRY_")),
    Section(
        "AI services: limits and money",
        ("AI_DEFAULT_",),
        "A default applies to each service separately. `none` means no limit; `0` lets nothing "
        "through. A free service has no budget unless you set one.",
    ),
    Section("AI services: time and health", ("AI_",)),
    Section("AI services: keys", tuple(key for _, key in BUILT_IN.values() if key)),
    Section(
        "Proxies and certificates",
        ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_"),
        "The names that other programs read too; the proxies' also in lower case, which wins. "
        "[network.md](network.md) says more.",
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
        "An address that others can reach is refused without `KOO_TOKEN`.",
    ),
]


def variables_by_section() -> list[tuple[Section, list[Row]]]:
    """Every variable in its section. Raises ValueError for one that no section wants."""
    found: dict[str, list[Row]] = {section.title: [] for section in SECTIONS}
    for row in Variables.rows.values():
        section = next((one for one in SECTIONS if variable(row).startswith(one.prefixes)), None)
        if section is None:
            raise ValueError(f"{variable(row)} has no section in {Path(__file__).name}")
        found[section.title].append(row)
    return [(section, found[section.title]) for section in SECTIONS]


def variable(row: Row) -> str:
    """The variable of a row; of a service's setting what follows `AI_SERVICES__<NAME>__`."""
    return row.name.upper()


def default(row: Row) -> str:
    """What is in force where a variable is not set: its default, or of a service's setting the variable it follows."""
    if row.shown_default or row is Variables.rows.get(row.name):
        return row.shown_default or as_text(row.default)
    followed = (one for one in Variables.rows.values() if (one.root, one.places) == (row.root, row.places))
    return next((f"as `{variable(one)}`" for one in followed), "")


# ── .env.example ──────────────────────────────────────────────────────────────────────────────────────────────────

HEAD_OF_EXAMPLE = [
    "Every setting of koo, with its default. Copy this file to `.env` and remove the # where you change one. koo "
    "finds the nearest `.env` from the working directory upwards, and that folder is KOO_HOME.",
    "",
    "The environment wins over the file. An empty value counts as not set. A $ is a $, never expanded. The copy will "
    "hold keys, so protect it: chmod 600 .env",
    "",
    "Written by docs/generate_configuration.py; docs/configuration.md has the same as tables, with explanations",
]

*_FIRST, _LAST = BUILT_IN
EXAMPLE_SERVICES = [
    f"One service differs: AI_SERVICES__<NAME>__<SETTING>, with the name {', '.join(_FIRST)} or {_LAST}.",
    "#AI_SERVICES__CLAUDE__DAILY_BUDGET=20",
    "#AI_SERVICES__LOCAL__MODEL=models/another.gguf",
    "",
    "Any other name is a new service. A server that speaks OpenAI's format needs two lines:",
    "#AI_SERVICES__OLLAMA__BASE_URL=http://127.0.0.1:11434/v1",
    "#AI_SERVICES__OLLAMA__MODEL=llama3.2",
    "",
    "What can be set for a service:",
]
EXAMPLE_BUDGETS = [
    "Budgets besides each service's daily one: AI_BUDGETS__<NAME>__<SETTING>, under any name. Two examples:",
    "#AI_BUDGETS__MONTH__LIMIT=200",
    "#AI_BUDGETS__MONTH__PERIOD=month",
    "#AI_BUDGETS__EACH_TAG__LIMIT=5",
    "#AI_BUDGETS__EACH_TAG__TAG=*",
    "#AI_BUDGETS__EACH_TAG__ON_EXHAUSTED=local",
    "",
    "What can be set for a budget:",
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

koo works without any configuration: SQLite files under `data/`, and the local model. Every setting is an environment
variable or a line in a file named `.env`; copy from [`.env.example`](../.env.example), which lists them all.

## Where values come from

`KOO_HOME` is the folder where koo starts: it reads the `.env` there, and relative paths in settings (a SQLite file, a
model) begin there. You rarely need to set it. koo looks for a `.env` in the working directory, then in the folder
above, and so on; the first folder that has one is `KOO_HOME`. If there is none, it is the working directory. Set it
where you do not control the working directory: in a systemd unit, a container, a cron job.

The first of these that has a value wins:

1. an argument: `Settings(database_pool_size=20)`,
2. the environment of the process,
3. the `.env` in `KOO_HOME`,
4. the default.

An empty value counts as not set. So `OPENAI_API_KEY= koo serve` starts once without the key in the `.env`.

The `.env` holds `NAME=value` lines and comments that begin with `#`. Quote a value that contains spaces or a ` #`,
with `'…'` (as it is) or `"…"` (with `\\n` and the like). Nothing is expanded: a `$` in a password is a `$`. A line
that cannot be read stops the start, and the message has its number.

### Who may write it

A `.env` decides which address gets your keys. One that was found by searching is used only if it belongs to you or
root, and no other user can change or replace it: each folder and each link on the way counts. In a folder with the
sticky bit (`/tmp`, a mounted secret) only owners can replace entries. Otherwise the start stops with a message that
names the file or folder and its owner. `KOO_HOME=/the/folder`, set by hand, trusts the file and warns. Under `sudo`
the files of the calling user count as yours.

If every user of the machine can read the file, each start warns: `chmod o-r .env`.

## What happens to a mistake

koo does not start with an invalid value. One message says which variable it is, its value, and what is allowed.

```text
DATABASE_POOL_SIZE is "-1"; expected a whole number, 1 to 10000
AI_SERVICES__CLAUDE__DALY_BUDGET is "20", but a service has no such setting (did you mean DAILY_BUDGET?); …
KOO_HOST is "0.0.0.0", which other machines can reach; without KOO_TOKEN, expected 127.0.0.1, ::1 or localhost
```

Values that contradict each other stop the start too: a token without its partner, a short token where others can
reach the server, `KOO_ALERT_EMAIL` without `KOO_SMTP_URL`, an attempt that may last longer than its query, a first
pause above the longest one, a wait for a connection that is longer than its scope, only one of two prices, a budget
that falls back to a service that is switched off.

A value that another one makes pointless is a warning, at each start and from `koo doctor`, because it may be meant as
"never": a first-token or stall timeout, or a held or slow warning, that comes after the end of what it watches; a
minute's limit above the hour's; checks that may last longer than their interval; alerts without a channel; a budget
that falls back to a service without a key. Defaults contradict nothing.

Quotes around a value (`docker run --env-file` and systemd keep them) and unreplaced names (`${{NAME}}`, `$NAME`,
`{{{{ name }}}}`) stop the start too: otherwise they would become part of a model's name, for example.

What Kubernetes writes for a Service called `koo`, `db`, `ai` or `database` (`KOO_PORT=tcp://10.0.0.7:8000`,
`DB_SERVICE_HOST`, …) is ignored. A port that your own manifest sets wins over it.

A name that begins like one of ours ({", ".join(f"`{prefix}`" for prefix in PREFIXES)}) but is not one of them is
logged as a warning, with the name that was probably meant, and ignored: it may belong to other software. In the
`.env` this holds for every name that is one typo away from one of ours. Names are written in capitals; only what
follows `AI_SERVICES__` and `AI_BUDGETS__` may be written in any case.
"""

SERVICES = """\
## One service differs, and services of your own

`AI_SERVICES__<NAME>__<SETTING>` changes one service and no other. What is not set is as for all services.

{table}

Any other name makes a new service. Two lines in the `.env` are enough for a server that speaks OpenAI's chat
completions (Ollama, vLLM, llama.cpp, LM Studio, most gateways and vendors):

```text
AI_SERVICES__OLLAMA__BASE_URL=http://127.0.0.1:11434/v1
AI_SERVICES__OLLAMA__MODEL=llama3.2
```

Then `query_ai("ollama", "…")` asks it. A hosted vendor needs its `API_KEY` too. `KIND=anthropic` or `KIND=gemini` is
for servers that speak those formats. A name with an `API_KEY` and without a `BASE_URL` is a second account at the
vendor.

Prices come from the price table, by model. A service of your own without key and price costs 0, as does `local`. With
a key its price must be known: if the table does not have the model, set `PRICE_AS` to a model that costs as much, or
both `INPUT_PRICE` and `OUTPUT_PRICE`, which win. A query without a known price is refused, because no budget could
hold.

No table has the names of Azure's deployments and private names, so they need `PRICE_AS`:

```text
AI_SERVICES__AZURE__BASE_URL=https://acme.openai.azure.com/openai/v1
AI_SERVICES__AZURE__API_KEY=...
AI_SERVICES__AZURE__MODEL=our-deployment
AI_SERVICES__AZURE__PRICE_AS=gpt-6.1-terra
```

`PRICE_AS` applies to the service's own `MODEL`. Another model that a query names has its price from the table, and
that of `PRICE_AS` only if the table does not have it. [The guide](ENHANCED_ERROR_HANDLING.md#which-price-a-model-has)
says how names are read.

`local` runs on this machine and has no key, address or kind. `MODEL` is the path of a GGUF file, relative to
`KOO_HOME`; without it the packaged model answers. `AI_LOCAL_ENABLED=false` switches the service off: it is then not
configured, and no model is loaded.

`PROXY`, `HEADERS` and `BODY` have a page of their own: [network.md](network.md). `HEADERS` and `BODY` are followed by
a name: `AI_SERVICES__LAB__HEADERS__X_TITLE=my app`, `AI_SERVICES__LAB__BODY__TOP_P=0.9`.

{settings}
"""

BUDGETS = """\
## More budgets

Each service has its own budget for each UTC day. `AI_BUDGETS__<NAME>__<SETTING>` adds more, under any name: for a day
or a month; for one service, one model, one tag, or all together.

```text
AI_BUDGETS__MONTH__LIMIT=200
AI_BUDGETS__MONTH__PERIOD=month
AI_BUDGETS__EACH_TAG__LIMIT=5
AI_BUDGETS__EACH_TAG__TAG=*
AI_BUDGETS__EACH_TAG__ON_EXHAUSTED=local
```

A call is held in all budgets that include it, or in none: here in its service's day, in `month`, and in its tag's
day. `TAG=*` gives each tag its own budget; a call without a tag is in none of them. `ON_EXHAUSTED` names the service
to ask next if this budget refuses, unless the query asks it anyway. That service's own budgets and limits apply, and
the answer's `service` says which one answered.

A budget that you set refuses while the state store is away and its purse is empty.

{settings}
"""

SECRETS = """\
## Secrets

Keys, tokens, database URLs, proxies' passwords and the values of `HEADERS` and `BODY` appear in no message, log or
`repr`. In Python they are `SecretStr`: `settings.database_url` shows as stars, and
`settings.database_url.get_secret_value()` returns the text. In a URL, encode the special characters of a password:
`/` as `%2F`, `@` as `%40`, `:` as `%3A`, `?` as `%3F`, `#` as `%23`. A service's address must not contain a password;
use `API_KEY`.

Anyone who can read the `.env` has the keys: `chmod 600 .env`, and keep it out of version control.

## In Python

Each variable is an attribute, in lower case. `AI_SERVICES__…` is the dictionary `ai_services`, and
`AI_BUDGETS__…` is `ai_budgets`.

```python
from koo import Settings

settings = Settings()
print(settings.database_pool_size, settings.ai_default_daily_budget, settings.koo_home)

for row in settings.explain():  # what is in force, and where it came from; secrets are masked
    print(f"{row.variable}={row.value}  ({row.source})")

for unknown in settings.unknown_variables:
    print(unknown)

options = settings.platform_options()  # frozen, checked: what the rest of koo works with
```

`Settings` raises `koo.ConfigurationError`. It reads the environment when it is made, and never again.

## The options behind the settings

A program can do without the environment and make the options itself: `Platform(PlatformOptions(…))`. Their
ranges are checked when they are made. The last column names the variable that sets one; the others have none,
because their defaults are part of how the guard works.
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
    services = _markdown(["service", "speaks", "key", "model unless set"], _service_rows())
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
    return f"`{text}`" if text and " " not in text else text or "not set"


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
        rows.append([f"`{one.name}`", _value(one), words["unit"], allowed(words), words["meaning"], words["why"],
                     _variables_of(f"{options.__name__}.{one.name}")])  # fmt: skip
    text = f"### {options.__name__}\n\n{(options.__doc__ or '').splitlines()[0]}"
    text += f" Also: {', '.join(plain)}." if plain else ""
    header = ["option", "default", "unit", "allowed", "meaning", "why this default", "set by"]
    return f"{text}\n\n{_markdown(header, rows)}\n"


def _value(one: Any) -> str:
    text = f"{one.default:g}" if isinstance(one.default, float) else str(one.default)
    text = "" if one.default is MISSING else text
    return text and f"`{text}`"


def _variables_of(option: str) -> str:
    tables: list[tuple[str, type[Table]]] = [
        ("", Variables),
        ("…__", ServiceSettings),
        ("AI_BUDGETS__…__", BudgetSettings),
    ]
    names = [
        f"`{prefix}{variable(row)}`"
        for prefix, table in tables
        for row in table.rows.values()
        if option in row.options()
    ]
    return ", ".join(names)


def _markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(re.sub(r"\|", r"\\|", cell) for cell in line) + " |" for line in lines)


def pages() -> dict[Path, str]:
    """Each generated file and what it should hold."""
    return {ROOT / ".env.example": example(), ROOT / "docs" / "configuration.md": page()}


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
