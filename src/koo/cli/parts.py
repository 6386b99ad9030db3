"""What the commands share: common options, and help that shows a flag as a flag."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

UsageError: Any = typer.BadParameter.__bases__[0]
"""The base class of the library's usage errors, and the only one of them that it exports."""

F = TypeVar("F", bound=Callable[..., Any])

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Url = Annotated[str | None, typer.Option("--url", metavar="URL", help="The server's URL; overrides KOO_URL.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="The reason; logged with your name.")]


class Commands(typer.Typer):
    """A group of commands, or all of them."""

    def __init__(self, **given: Any) -> None:
        super().__init__(cls=_Group, **given)

    def command(self, name: str | None = None, **given: Any) -> Callable[[F], F]:
        return super().command(name, **{"cls": _Command, **given})


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _naming(ctx):
            return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show_flags_as_such(self.get_params(ctx))
        super().format_help(ctx, formatter)


class _Group(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _naming(ctx):
            return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show_flags_as_such(self.get_params(ctx))
        super().format_help(ctx, formatter)


@contextmanager
def _naming(ctx: Any) -> Iterator[None]:
    """Name the command in each usage error. The library names it only in some, and the others would refer to koo's
    help."""
    try:
        yield
    except UsageError as error:
        error.ctx = error.ctx or ctx
        raise


def _show_flags_as_such(parameters: list[Any]) -> None:
    """The library would show `<bool>` after a flag, as if it took a value. An empty metavar prevents that."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
