"""The one platform of this process."""

from __future__ import annotations

from koo.platform import Platform

platform = Platform()
