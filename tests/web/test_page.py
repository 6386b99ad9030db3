"""The page at /dashboard/ as it is served: complete, guarded by its policy, and working below any path.

What it shows and does in a browser is tested in `test_page_in_browser.py`.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import posixpath
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from graphlib import TopologicalSorter
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from docs.generate_page_types import FILE, is_shape, keys_of, page_types
from koo.platform import Platform
from koo.policies.breaker import Override, Phase
from koo.policies.reported import DatabaseState, ServiceState
from koo.web import create_app, mount
from koo.web.dashboard_routes import HEADERS, page_files
from tests.web.page_reads import SHAPES, reads_of
from tests.web.serving import platform, served

FOLDER = Path(str(files("koo.web").joinpath("page")))
FILES = {name: content.decode() for name, content in page_files().items()}
HTML = FILES["index.html"]
STYLES = {name: text for name, text in FILES.items() if name.startswith("style/")}
CSS = "\n".join(STYLES[f"style/{name}.css"] for name in ("tokens", "base", "parts"))
VENDOR = {name: text for name, text in FILES.items() if name.startswith("vendor/")}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js") and name not in VENDOR}
ASSETS = sorted(set(FILES) - {"index.html"})
SVG = "http://www.w3.org/2000/svg"
IMPORT = re.compile(r'^(?:import|export)\s[\w\s{},*]*?from "([^"]+)";', re.MULTILINE)
WEIGHT_MAX = 120_000
"""The size of everything that a browser loads, compressed, in bytes."""
VIEW_LINES_MAX = 200
MAY_IMPORT = {
    "vendor": {"vendor"},
    "words": {"words"},
    "data": {"data", "words", "vendor/signals-core.js"},
    "parts": {"parts", "words", "vendor"},
    "views": {"views", "parts", "data", "words", "vendor"},
    "main.js": {"views", "data", "words", "vendor"},
}
"""Which parts of the page each part may import: downward only."""


def imported(name: str) -> list[str]:
    """Return what a script imports, as paths below the page's folder."""
    found = IMPORT.findall(FILES[name]) if name in SCRIPTS else re.findall(r'from"([^"]+)"', FILES[name])
    return [posixpath.normpath(posixpath.join(posixpath.dirname(name), one)) for one in found]


class Tags(HTMLParser):
    """Collects all tags of a page with their attributes, and the content of <script> and <style>."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside = ""
        self._in_code = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_code = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._in_code = False

    def handle_data(self, data: str) -> None:
        if self._in_code:
            self.inside += data

    def addresses(self) -> list[str]:
        names = ("src", "href", "action", "data-api", "data-live")
        given = [attributes[name] for _, attributes in self.tags for name in names if name in attributes]
        return [one for one in given if one is not None]


# ── the files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_inline() -> None:
    """The policy forbids inline code and styles, which would silently not work."""
    page = Tags(HTML)
    assert page.inside == ""
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag


def test_every_url_is_relative_and_points_to_an_existing_file() -> None:
    """An absolute path breaks behind a proxy's path prefix; a foreign URL reveals the reader to a third party."""
    addresses = Tags(HTML).addresses()
    assert {"style/base.css", "main.js", "../api/v1"} <= set(addresses)
    for address in addresses:
        assert address.startswith(("../", "#", "data:,")) or address in ASSETS, address
    for name, text in {**SCRIPTS, **STYLES, "index.html": HTML}.items():
        assert re.findall(r"https?://\S+|[\"'(]//", text.replace(SVG, "")) == [], name
    assert "url(" not in CSS and "@import" not in CSS and "url(" not in FILES["vendor/uplot.css"]


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.endswith(".js")))
def test_each_module_imports_only_its_own_part_and_lower_ones(name: str) -> None:
    """An import that is not served results in a blank page. `data` and `words` must run without a document."""
    kind = name.partition("/")[0]
    for one in imported(name):
        assert one in FILES, one
        assert one.partition("/")[0] in MAY_IMPORT[kind] or one in MAY_IMPORT[kind], one
    if kind in ("words", "data") and name not in ("data/stream.js", "data/api.js"):
        assert not re.search(r"\b(document|window)\b\.", SCRIPTS[name]), "it must work without a document"
    if kind == "views":
        assert SCRIPTS[name].count("\n") <= VIEW_LINES_MAX
        assert not re.search(r"\bfetch\(|EventSource", SCRIPTS[name]), "only data/ may send requests"
    if name not in ("parts/chart.js", "vendor/uplot.js"):
        assert "vendor/uplot.js" not in imported(name), "only parts/chart.js may use it"


def test_no_module_imports_itself_through_others() -> None:
    """A cycle works until modules load in an order in which a name is not yet defined."""
    graph = {name: imported(name) for name in FILES if name.endswith(".js")}
    order = TopologicalSorter(graph)
    assert set(order.static_order()) == set(graph)  # raises CycleError with the cycle


def test_each_module_is_imported() -> None:
    """A module that no other imports is loaded but never used."""
    reached, left = set[str](), ["main.js"]
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += imported(name)
    typed = {"data/shapes.js"}  # types only
    assert {name for name in FILES if name.endswith(".js")} - reached == typed


def test_each_vendored_file_is_the_published_one_except_for_its_import_paths() -> None:
    """`vendor.json` has the digest of the npm file and our edits. Undoing the edits must give that digest."""
    listed = json.loads(FILES["vendor/vendor.json"])
    assert {f"vendor/{one['file']}" for one in listed} == set(VENDOR) - {
        "vendor/vendor.json",
        "vendor/LICENSES",
    }
    for one in listed:
        text = FILES[f"vendor/{one['file']}"]
        assert hashlib.sha256(text.encode()).hexdigest() == one["sha256"], one["file"]
        ending = one.get("ending", {"ours": "", "published": ""})
        assert text.endswith(ending["ours"])
        text = text[: len(text) - len(ending["ours"])] + ending["published"]
        for published, ours in one.get("imports", {}).items():
            text = text.replace(f'"{ours}"', f'"{published}"')
        assert hashlib.sha256(text.encode()).hexdigest() == one["published_sha256"], one["file"]
        assert f"{one['package']} {one['version']}" in FILES["vendor/LICENSES"]


def test_the_whole_page_is_small() -> None:
    loaded = [text for name, text in FILES.items() if name.endswith((".js", ".css", ".html"))]
    assert sum(len(gzip.compress(text.encode(), 6)) for text in loaded) < WEIGHT_MAX


def test_text_never_becomes_markup() -> None:
    """A model may be called `<img onerror=…>`. The policy would stop it, but the code must not even try."""
    ways = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|srcdoc|eval\(|new Function|Contextual"
    )
    assert {name: re.findall(ways, text) for name, text in SCRIPTS.items() if re.search(ways, text)} == {}


def test_no_token_is_part_of_the_page() -> None:
    """Scripts cannot read a session's cookie. Anything that the page knew, an injected script would know."""
    everything = "".join(SCRIPTS.values())
    for place in (
        "sessionStorage",
        "localStorage",
        "document.cookie",
        "indexedDB",
        "Authorization",
        "Bearer",
    ):
        assert place not in everything


def test_form_fields_have_no_names() -> None:
    """A form whose script fails is sent as a URL, so what was typed would end up in the URL and in logs."""
    fields = re.findall(r'h\("(?:input|select|textarea)", \{(.*?)\}\)', "".join(SCRIPTS.values()), re.DOTALL)
    assert len(fields) >= 4 and [one for one in fields if re.search(r"\bname:", one)] == []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("STATES", {state.value for one in (DatabaseState, ServiceState) for state in one}),
        (
            "BREAKERS",
            {phase.value for phase in Phase} | {Override.FORCED_OPEN.value, Override.DISABLED.value},
        ),
        ("VERDICTS", {"healthy", "degraded", "unhealthy"}),
        ("SEVERITIES", {"critical", "warning", "info"}),
    ],
)
def test_the_page_has_a_style_for_every_state_of_the_server(table: str, words: set[str]) -> None:
    """A state that the page does not have would be shown as a gray ring."""
    body = re.search(rf"const {table} = \{{(.*?)\n\}};", SCRIPTS["words/looks.js"], re.DOTALL)
    assert body is not None
    assert set(re.findall(r"^  (\w+): \{", body[1], re.MULTILINE)) == words


def test_the_page_has_the_same_types_as_the_api_shapes() -> None:
    assert FILE.read_text(encoding="utf-8") == page_types(), "run: make docs"


def test_the_page_reads_only_keys_that_exist() -> None:
    reads = {read for name, text in SCRIPTS.items() if name != "data/shapes.js" for read in reads_of(text)}
    assert [read for read in reads if not read.exists] == []
    assert len(reads) > 60, "the reader of the scripts still finds the keys"
    keys = {key for shape in SHAPES.values() if is_shape(shape) for key in keys_of(shape)}
    written = "".join(text for name, text in SCRIPTS.items() if name != "data/shapes.js")
    assert set(re.findall(r"\.([a-z]+(?:_[a-z]+)+)\b", written)) - keys == set()


# ── colours ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_text_colour_is_legible_on_every_background() -> None:
    """WCAG's contrast of 4.5, dark and light; 3 for a border."""
    light, dark = (_tokens(block) for block in re.findall(r":root \{(.*?)\n *\}", CSS, re.DOTALL)[:2])
    assert light.keys() - {"gap", "radius"} >= dark.keys() and light["page"] != dark["page"]
    for theme in (light, dark):
        for ground in ("page", "surface", "raised"):
            for ink in ("text", "muted", "ok", "warning", "critical", "info"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
            assert contrast(theme["border"], theme[ground]) >= 3, ground
        assert contrast(theme["on-action"], theme["info"]) >= 4.5


def _tokens(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21, as defined by WCAG 2."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# ── served ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_and_its_files_are_served_with_their_policy(tmp_path: Path) -> None:
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "json": "application/json"}

    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client:
            for name in ("", *ASSETS):
                reply = await client.get(f"/dashboard/{name}")
                assert reply.status == 200
                suffix = (name or "index.html").rpartition(".")[2]
                assert reply.headers["Content-Type"].startswith(types.get(suffix, "text/plain"))
                assert {key: reply.headers[key] for key in HEADERS} == HEADERS
                if name:
                    assert reply.content == FILES[name].encode()
                head = await client.ask("HEAD", f"/dashboard/{name}")
                assert (head.status, head.content) == (200, b"")
            assert (await client.get("/dashboard/none.js")).status == 404
            assert (await client.get("/dashboard/../dashboard/data.py")).status == 404

    asyncio.run(main())


def test_the_page_preloads_all_its_modules(tmp_path: Path) -> None:
    """Discovered one after another, they would cost a round trip to the server for each import level."""

    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client:
            page = Tags((await client.get("/dashboard/")).text)
            ahead = {
                one["href"] for tag, one in page.tags if tag == "link" and one.get("rel") == "modulepreload"
            }
            assert ahead == {name for name in FILES if name.endswith(".js")} - {"main.js"}
            assert page.inside == ""

    asyncio.run(main())


def test_the_policy_allows_what_the_page_needs_and_no_more() -> None:
    policy = dict(part.strip().partition(" ")[::2] for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["form-action"] == policy["trusted-types"] == "'none'"
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_the_pages_files_need_no_token_but_its_data_does(tmp_path: Path) -> None:
    """The page itself redirects to the login form; a request with a token, as scripts send it, gets the page."""

    async def main() -> None:
        app = create_app(platform(tmp_path, token="write-4711", read_token="read-4711"))
        async with served(app) as client:
            assert (await client.get("/dashboard/")).headers["Location"] == "../koo-login"
            for path in ("/dashboard", *(f"/dashboard/{name}" for name in ASSETS)):
                assert (await client.get(path)).status in (200, 307), path
                assert (await client.post(path)).status == 405, path
            assert (await client.get("/dashboard/x")).status == 404
            assert (await client.get("/api/v1/monitoring/dashboard")).status == 401
            token = {"Authorization": "Bearer read-4711"}
            for path in ("/dashboard/", "/api/v1/monitoring/dashboard"):
                assert (await client.get(path, headers=token)).status == 200

    asyncio.run(main())


def test_without_its_slash_the_page_redirects_with_a_relative_url(tmp_path: Path) -> None:
    """An absolute URL would lead out of a proxy's path prefix."""

    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client:
            reply = await client.get("/dashboard")
            assert (reply.status, reply.headers["Location"]) == (307, "dashboard/")
            assert urljoin("http://proxy.example/a/b/dashboard", "dashboard/").endswith("/a/b/dashboard/")

    asyncio.run(main())


def test_the_page_is_not_part_of_the_api(tmp_path: Path) -> None:
    paths = create_app(platform(tmp_path)).openapi()["paths"]
    assert not [path for path in paths if path.startswith("/dashboard")]


@pytest.mark.parametrize(
    ("prefix", "dashboard", "api"),
    [
        ("/api/v1", "/dashboard", "/api/v1/monitoring/dashboard"),
        ("/koo", "/dashboard", "/koo/monitoring/dashboard"),
        ("/koo/api", "/koo/page", "/koo/api/monitoring/dashboard"),
        ("", "/own/state/page", "/monitoring/dashboard"),
        ("/api/v1", "/", "/api/v1/monitoring/dashboard"),
        ("/", "/", "/monitoring/dashboard"),
        ("/koo/api/", "/koo/page/", "/koo/api/monitoring/dashboard"),
    ],
)
def test_the_page_of_a_mounted_application_finds_its_data(
    tmp_path: Path, prefix: str, dashboard: str, api: str
) -> None:
    async def main() -> None:
        app = FastAPI()
        mount(app, platform(tmp_path), prefix=prefix, dashboard=dashboard)
        async with served(app) as client:
            page = f"{dashboard.rstrip('/')}/"
            reply = await client.get(page)
            base = dict(Tags(reply.text).tags)["html"]["data-api"]
            assert urljoin(client.url + page, f"{base}/monitoring/dashboard") == client.url + api
            assert (await client.get(f"{page}main.js")).status == 200
            assert (await client.get(api)).status == 200
            assert {key: reply.headers[key] for key in HEADERS} == HEADERS

    asyncio.run(main())


def test_the_page_shows_the_name_of_its_environment(tmp_path: Path) -> None:
    async def main() -> None:
        options = replace(platform(tmp_path).options, environment="staging <1>")
        async with served(create_app(Platform(options))) as client:
            tags = dict(Tags((await client.get("/dashboard/")).text).tags)
            assert tags["html"]["data-environment"] == "staging <1>"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("app", "name", "said"),
    [
        pytest.param(FastAPI(title="<b>Shop</b>"), "", "<b>Shop</b>", id="its title"),
        pytest.param(FastAPI(), "", "", id="none"),
        pytest.param(Starlette(), 'The "shop"', 'The "shop"', id="as configured"),
    ],
)
def test_the_page_of_a_mounted_application_shows_the_applications_name(
    tmp_path: Path, app: Starlette, name: str, said: str
) -> None:
    async def main() -> None:
        mount(app, platform(tmp_path), name=name)
        async with served(app) as client:
            reply = await client.get("/dashboard/")
            assert dict(Tags(reply.text).tags)["html"]["data-application"] == said

    asyncio.run(main())


def test_the_page_can_be_left_out(tmp_path: Path) -> None:
    async def main() -> None:
        app = FastAPI()
        mount(app, platform(tmp_path), dashboard=None)
        async with served(app) as client:
            assert (await client.get("/dashboard/")).status == 404

    asyncio.run(main())


def below(app: FastAPI, path: str) -> FastAPI:
    """`app` mounted in another application, below `path`."""

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with app.router.lifespan_context(app):
            yield

    outer = FastAPI(lifespan=lifespan, openapi_url=None)
    outer.mount(path, app)
    return outer


def test_below_a_path_every_url_of_the_page_exists(tmp_path: Path) -> None:
    async def main() -> None:
        app = below(create_app(platform(tmp_path, token="write-4711")), "/a/b")
        async with served(app) as client:
            page = await client.get("/a/b/dashboard/")
            for address in Tags(page.text).addresses():
                if not address.startswith(("#", "data:", "../api")):
                    path = urljoin("/a/b/dashboard/", address)
                    assert (await client.get(path)).status == 200, path
            assert (await client.get("/a/b/api/v1/monitoring/dashboard")).status == 401

    asyncio.run(main())


def test_the_wheel_contains_every_file_of_the_page() -> None:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").exists():
        pytest.skip("no source tree")
    packed = {
        Path(one.distribution_path).as_posix()
        for one in builder.WheelBuilder(str(root)).recurse_included_files()
    }
    assert {f"koo/web/page/{name}" for name in FILES} <= packed
