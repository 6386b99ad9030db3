"""`make prove-page`: checks the page's types with TypeScript, and takes its pictures for docs/page.md.

The types need Node and npm, the pictures Debian's Chromium; if one is missing, its part is left out with a message.
Users need neither. The pictures are for people and are not compared: they show a world with fakes, in states that were
reached by skipping time.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from koo.testing.postgres import PostgresServer
from proofs.page_stage import staged
from tests.web.browser import BINARY, chromium, window

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "src" / "koo" / "web" / "page"
PICTURES = ROOT / "docs" / "pictures"
TYPESCRIPT = "7.0.2"
TYPES = {
    "preact": "preact",
    "hooks": "preact/hooks",
    "signals": "@preact/signals",
    "signals-core": "@preact/signals-core",
}
OPTIONS = {
    "strict": True, "noEmit": True, "allowJs": True, "checkJs": True, "target": "es2023", "module": "esnext",
    "lib": ["es2023", "dom", "dom.iterable"], "moduleResolution": "bundler", "types": [], "skipLibCheck": True,
}  # fmt: skip


class Picture(NamedTuple):
    """One picture of docs/page.md."""

    name: str
    state: str
    fragment: str
    width: int
    height: int
    scheme: str


ALL = (
    Picture("healthy", "healthy", "/", 1280, 800, "light"),
    Picture("one-service-down", "one-down", "/", 1280, 1000, "dark"),
    Picture("service", "one-down", "/service/claude?range=15m", 1280, 900, "light"),
    Picture("two-outages", "two-outages", "/", 1280, 1200, "light"),
    Picture("phone", "two-outages", "/", 360, 780, "dark"),
)


def check_types() -> bool:
    """Whether TypeScript in strict mode finds no error; also True without Node."""
    if shutil.which("npm") is None:
        print("types: left out, because npm is not installed")
        return True
    listed = {
        one["package"]: one["version"] for one in json.loads((PAGE / "vendor" / "vendor.json").read_text())
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = [
            f"typescript@{TYPESCRIPT}",
            *(f"{package}@{version}" for package, version in listed.items()),
        ]
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", *wanted], cwd=folder, check=True
        )
        shutil.copytree(PAGE, folder / "page", ignore=shutil.ignore_patterns("vendor"))
        vendor = folder / "page" / "vendor"
        vendor.mkdir()
        for file, package in TYPES.items():
            (vendor / f"{file}.d.ts").write_text(f'export * from "{package}";\n')
        (vendor / "uplot.d.ts").write_text('import uPlot from "uplot";\nexport default uPlot;\n')
        given = {"compilerOptions": OPTIONS, "include": ["page/**/*.js", "page/**/*.d.ts"]}
        (folder / "tsconfig.json").write_text(json.dumps(given))
        found = subprocess.run(["npx", "tsc", "-p", "."], cwd=folder, check=False)
    print("types:", "nothing found" if found.returncode == 0 else "see above")
    return found.returncode == 0


async def take_pictures() -> None:
    """Take all pictures of `ALL`, staging each state once."""
    PICTURES.mkdir(exist_ok=True)
    with PostgresServer(16) as server, chromium() as address:
        for state in dict.fromkeys(one.state for one in ALL):
            url = server.url(None, server.create_database("shop")) if state == "two-outages" else None
            async with staged(state, url) as (_, client), window(address) as page:
                await page.go(f"{client.url}/dashboard/")
                await page.until("document.querySelectorAll('.sparkline').length > 2")
                for one in ALL:
                    if one.state == state:
                        await page.prefer(prefers_color_scheme=one.scheme, prefers_reduced_motion="reduce")
                        await page.resize(one.width, one.height)
                        await page.run(f"location.hash = {one.fragment!r}")
                        await page.until("!document.querySelector('main').innerText.includes('Asking…')")
                        await page.run("new Promise((done) => setTimeout(done, 500))")
                        (PICTURES / f"{one.name}.png").write_bytes(await page.picture(whole=False))
                        print("picture:", one.name)


def main() -> None:
    good = check_types()
    if BINARY.exists():
        asyncio.run(take_pictures())
    else:
        print(f"pictures: left out, {BINARY} is not there")
    sys.exit(not good)


if __name__ == "__main__":
    main()
