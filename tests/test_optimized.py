"""`python -O` removes assertions: none may have side effects, and koo works without them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOOKS = frozenset(
    {"isinstance", "issubclass", "len", "all", "any", "callable", "set", "type", "hasattr", "getattr"}
)
"""Functions that change nothing."""

SMOKE = """
import asyncio, pathlib, sys
from koo import LimitOptions, Platform, PlatformOptions, Query, ServiceOptions
from koo.testing.providers import FakeCompatible
async def main(home):
    with FakeCompatible(key=None, models=("m",)) as server:
        lab = ServiceOptions(name="lab", kind="openai_compatible", model="m", base_url=server.base_url, declared=True,
                             limits=LimitOptions())
        async with Platform(PlatformOptions(home=home, state_url=f"sqlite:///{home}/s.db", services=(lab,))) as koo:
            answer = await koo.query(Query(service="lab", prompt="hi", max_tokens=5))
            async with koo.database.session_scope() as session:
                pass
    print(bool(answer.text), __debug__)
asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


def works(path: Path) -> Iterator[str]:
    """Assertions with side effects."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Assert):
            continue
        for part in ast.walk(node.test):
            does = isinstance(part, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom)
            called = part.func if isinstance(part, ast.Call) else None
            if does or (called is not None and not (isinstance(called, ast.Name) and called.id in LOOKS)):
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node.test)}"


def test_no_assertion_has_side_effects() -> None:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "backend").rglob("*.py")]
    # Assertions in `koo.testing` are meant for tests.
    shipped = [path for path in sorted(files) if "testing" not in path.parts]
    assert [one for path in shipped for one in works(path)] == []


def test_a_platform_answers_under_optimization(tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    ran = subprocess.run(
        [sys.executable, "-O", "-c", SMOKE, str(tmp_path)],
        env=kept | {"KOO_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")},
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.stdout.split() == ["True", "False"], ran.stderr[-2000:]
