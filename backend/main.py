"""The KOO Platform's backend: the same server as `koo serve`, on the process's own platform.

    python backend/main.py            or, from backend/:   uvicorn main:app

What `core.database` and `services.hybrid_ai_manager` name in this process is what this server serves and shows. It is
also the worked example of how to put koo into an application: for one that exists, see `koo.web.mount`.
"""

from __future__ import annotations

import sys

from koo import platform
from koo.errors import ConfigurationError
from koo.web import create_app, serve

app = create_app(platform)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    try:
        serve(platform, app)
    except ConfigurationError as error:
        sys.exit(f"koo: {error}")


if __name__ == "__main__":
    main()
