"""After a fork, the child automatically forgets what belongs to its parent's loop, threads and connections.

An object that holds such a thing registers with `forget_in_child(self)`; in the child its `forget_parent` is called
before any other code runs. Otherwise the parent's loop would seem to run there forever, and its callers would seem to
occupy their slots.

What is forgotten must not be garbage-collected either (`leave_behind`): closing a connection sends its server a
goodbye, over a socket that the parent still uses.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Holder(Protocol):
    """An object that holds something that belongs to its process."""

    def forget_parent(self) -> None:
        """In a forked child: start afresh, and leave alone what the parent had open."""
        ...


_holders: WeakSet[Holder] = WeakSet()
_left_behind: list[object] = []


def forget_in_child(holder: Holder) -> None:
    """Call its `forget_parent` in each child that is forked while the object exists."""
    _holders.add(holder)


def leave_behind(*things: object) -> None:
    """Keep the parent's objects alive and untouched until the child ends."""
    _left_behind.append(things)


def _forget() -> None:
    for holder in list(_holders):
        holder.forget_parent()


os.register_at_fork(after_in_child=_forget)
