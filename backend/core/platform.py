"""The one platform of this process. Everything else in `backend/` is a name for a part of it.

It reads its settings when it is first used, opens itself on the running event loop, and closes when that loop ends.
"""

from __future__ import annotations

from koo import Platform

platform = Platform()
