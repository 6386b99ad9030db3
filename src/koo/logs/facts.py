"""Log a line with facts: attributes of its record, for programs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping


def log_with(
    facts: Mapping[str, object],
    log: logging.Logger,
    level: int,
    template: str,
    *given: object,
    failed: bool = False,
) -> None:
    """Log with these attributes. `failed`: add the traceback of the exception that is being handled."""
    # Not `extra`: it raises KeyError if the application's record factory has set an attribute of the same name. Many
    # factories set `request_id` or `service`, and the call that is logged would fail instead of its log line.
    if log.isEnabledFor(level):
        file, line, function, _ = log.findCaller(stacklevel=2)
        error = sys.exc_info() if failed else None
        record = log.makeRecord(log.name, level, file, line, template, given, error, function)
        vars(record).update(facts)
        log.handle(record)
