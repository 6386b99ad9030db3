"""One response of each shape, as shown in the API description, recorded from a server by `make docs`.

A test records them again and fails if a response's keys, types or enumerated values differ from the recorded ones.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

RECORDED: dict[str, Any] = json.loads(files("koo.web").joinpath("examples.json").read_bytes())
"""The recorded examples, by the name of the shape."""
SERVICE = RECORDED["ServiceHealth"]
DATABASE = RECORDED["SystemHealth"]["database"]
DATABASE_STATUS = RECORDED["DatabaseMonitoring"]["database_monitoring"]
