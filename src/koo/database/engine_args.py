"""The arguments of an application's own `create_async_engine`, for the engine that koo makes.

koo cannot guard an existing engine: its pool's queue, its deadlines and its judgement of statements sit in the pool,
the dialect and the connections. So it makes one from the same arguments. Of these,

* the pool's size, overflow, timeout and recycling become koo's own options, because the queue in front of the pool has
  to know them;
* what koo does in its own way (a ping before use, the order in the pool, the reset on return) is ignored;
* what would take the pool or the connections out of koo's hands is refused;
* everything else goes to SQLAlchemy as it is. Of `connect_args`, those that koo needs itself are koo's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import create_async_engine

from koo.errors import ConfigurationError
from koo.options import DatabaseOptions

OPTION_OF = {
    "pool_size": "pool_size",
    "max_overflow": "max_overflow",
    "pool_timeout": "pool_timeout_s",
    "pool_recycle": "pool_recycle_s",
}
REPLACED = frozenset({"pool_pre_ping", "pool_use_lifo", "pool_reset_on_return"})
REFUSED = frozenset({"pool", "poolclass", "creator", "async_creator", "_initialize"})
NEVER_S = 10 * 365 * 86_400.0
"""SQLAlchemy's -1, a connection that is never replaced, in seconds that a timer can count."""


class EngineArgs(NamedTuple):
    """What SQLAlchemy receives beside koo's own arguments."""

    connect_args: dict[str, Any]
    others: dict[str, Any]


def read_engine_args(
    url: URL, options: DatabaseOptions, given: Mapping[str, Any]
) -> tuple[DatabaseOptions, EngineArgs]:
    """The options with what the arguments say of the pool, and the rest.

    Raises `ConfigurationError` for an argument that koo cannot honour, or that SQLAlchemy does not know.
    """
    _refuse(given)
    sizes = {OPTION_OF[name]: value for name, value in given.items() if name in OPTION_OF}
    if sizes.get("pool_recycle_s") == -1:
        sizes["pool_recycle_s"] = NEVER_S
    taken = {"connect_args", *OPTION_OF, *REPLACED}
    others = {name: value for name, value in given.items() if name not in taken}
    args = EngineArgs(dict(given.get("connect_args") or {}), others)
    if given:
        _try(url, args)
    return replace(options, **sizes) if sizes else options, args


def _refuse(given: Mapping[str, Any]) -> None:
    connect_args = given.get("connect_args") or {}
    for name in [*sorted(REFUSED & given.keys()), *({"async_creator_fn"} & connect_args.keys())]:
        raise ConfigurationError(
            "", f"engine_args contains {name}, but koo makes the pool and its connections itself: remove it"
        )
    levels = (given.get("isolation_level"), (given.get("execution_options") or {}).get("isolation_level"))
    if "AUTOCOMMIT" in levels:
        raise ConfigurationError("", "engine_args sets AUTOCOMMIT, but a scope is one transaction: remove it")


def _try(url: URL, args: EngineArgs) -> None:
    """Make an engine that is never used, without I/O: a wrong name should stop the start, not the first request."""
    try:
        create_async_engine(url, connect_args=args.connect_args, **args.others)
    except (TypeError, ArgumentError) as error:
        raise ConfigurationError("", f"engine_args cannot be used: {error}") from error
