"""Times in query strings."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import BeforeValidator

A_TIME = "a time with a time zone, such as 2026-11-29T03:00:00Z"
# The end of `…T03:00:00+00:00`, which is how koo itself writes times, if its + was sent unescaped: it means a space.
_PLUS_LOST = re.compile(r"(:\d\d(?:\.\d+)?) (\d\d:?\d\d)$")


def _with_plus(given: object) -> object:
    return _PLUS_LOST.sub(r"\1+\2", given) if isinstance(given, str) else given


Time = Annotated[datetime, BeforeValidator(_with_plus)]
