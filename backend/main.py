"""The KOO Platform's backend: the same server as `koo serve`, on the process's own platform.

    python backend/main.py            or, from backend/:   uvicorn main:app

The server uses the same platform as `core.database` and `services.hybrid_ai_manager` in this process. It is also a
complete example of an application with koo; to add koo to an existing application, see `koo.web.mount`.
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
