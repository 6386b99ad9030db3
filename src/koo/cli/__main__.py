"""`python -m koo.cli`, if the script `koo` is not on the PATH."""

from __future__ import annotations

from koo.cli import main

main()
