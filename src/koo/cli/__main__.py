"""`python -m koo.cli`, where the script `koo` is not on the path."""

from __future__ import annotations

from koo.cli import main

main()
