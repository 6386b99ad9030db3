"""The arguments of an application's own `create_async_engine`, for the engine that koo creates.

koo cannot guard an existing engine: its queue, its deadlines and its judgement of statements are part of the pool, the
dialect and the connections. So it creates its own engine from the same arguments:

* The pool's size, overflow, timeout and recycling become koo's own options, because the queue in front of the pool
  needs them.
* Arguments for what koo does in its own way (a ping before use, the order in the pool, the reset on return) are
  ignored.
* Arguments that would replace the pool, or the way its connections are opened, are refused.
* Everything else is passed to SQLAlchemy unchanged. In `connect_args`, koo overrides those that it needs itself.
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
"""Stands for SQLAlchemy's -1 (connections are never replaced), as a number of seconds that koo can calculate with."""


class EngineArgs(NamedTuple):
    """The application's arguments that are passed to SQLAlchemy along with koo's own."""

    connect_args: dict[str, Any]
    others: dict[str, Any]


def read_engine_args(
    url: URL, options: DatabaseOptions, given: Mapping[str, Any]
) -> tuple[DatabaseOptions, EngineArgs]:
    """The options, with the pool's settings from the arguments, and the remaining arguments.

    Raises `ConfigurationError` for an argument that koo cannot honour or that SQLAlchemy does not accept.
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
            "", f"engine_args contains {name}, but koo creates the pool and its connections itself: remove it"
        )
    levels = (given.get("isolation_level"), (given.get("execution_options") or {}).get("isolation_level"))
    if "AUTOCOMMIT" in levels:
        raise ConfigurationError("", "engine_args sets AUTOCOMMIT, but a scope is one transaction: remove it")


def _try(url: URL, args: EngineArgs) -> None:
    """Create an engine without using it: a wrong argument should fail at startup, not at the first request. No I/O."""
    try:
        create_async_engine(url, connect_args=args.connect_args, **args.others)
    except (TypeError, ArgumentError) as error:
        raise ConfigurationError("", f"engine_args cannot be used: {error}") from error
