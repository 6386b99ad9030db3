"""The one platform of this process, which every name in `backend/` uses.

It reads its settings when it is first used, opens on the running event loop, and closes when that loop ends.
"""

from __future__ import annotations

from koo import platform

__all__ = ["platform"]
