"""The one platform of this process, on which every name in `backend/` acts.

It reads its settings when it is first used, opens itself on the running event loop, and closes when that loop ends.
"""

from __future__ import annotations

from koo import platform

__all__ = ["platform"]
