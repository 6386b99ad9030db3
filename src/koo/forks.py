"""After a fork the child forgets, without being asked, what belongs to its parent's loop, threads and connections.

An object that comes to hold such a thing says so with `forget_in_child(self)`; in the child its `forget_parent` is
called before any other code runs. Otherwise the parent's loop would seem to run there for ever, and its callers would
seem to hold their places.

What is forgotten must not be collected either (`leave_behind`): closing a connection says goodbye to its server, over
a socket that the parent still uses.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Holder(Protocol):
    """What has something of its process's own."""

    def forget_parent(self) -> None:
        """In a forked child: begin anew. What the parent had open stays its own."""
        ...


_holders: WeakSet[Holder] = WeakSet()
_left_behind: list[object] = []


def forget_in_child(holder: Holder) -> None:
    """Call its `forget_parent` in each child that is forked while it lives."""
    _holders.add(holder)


def leave_behind(*things: object) -> None:
    """Keep what is the parent's until the child ends, untouched."""
    _left_behind.append(things)


def _forget() -> None:
    for holder in list(_holders):
        holder.forget_parent()


os.register_at_fork(after_in_child=_forget)
