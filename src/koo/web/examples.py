"""One answer of each shape, as the description of the API shows it: recorded from a server by `make docs`.

A test records them again, and fails when an answer has other keys, types or words than the recorded one.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

RECORDED: dict[str, Any] = json.loads(files("koo.web").joinpath("examples.json").read_bytes())
"""By the name of the shape."""
SERVICE = RECORDED["ServiceHealth"]
DATABASE = RECORDED["SystemHealth"]["database"]
DATABASE_STATUS = RECORDED["DatabaseMonitoring"]["database_monitoring"]
