"""The benchmarks' committed figures: each goal has one, each peer has one or a reason for none, the tables show them.

Nothing is measured here, and no peer needs to be installed.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks import install, tables
from benchmarks.contenders import CONTENDERS
from benchmarks.goals import AT_LEAST, AT_MOST, GOALS, is_met
from benchmarks.measure import Table, noise
from benchmarks.peers import ON_THEIR_OWN, TOGETHER
from benchmarks.query_process import PIECES
from benchmarks.streamers import STREAMERS
from koo.testing.providers.instant import VENDORS, prepared
from proofs.pins import APART, BENCH, RUN, TEST, canonical, versions

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tables.newest().read_text(encoding="utf-8"))
    return found


def figures_of(result: dict[str, Any]) -> dict[str, float]:
    return {name: value for figures in result["figures"].values() for name, value in figures.items()}


def test_the_readme_shows_the_newest_result(result: dict[str, Any]) -> None:
    readme = tables.README.read_text(encoding="utf-8")
    again = "run: python -m benchmarks.tables"
    assert readme == tables.with_tables(readme, result, tables.newest().stem), again


@pytest.mark.parametrize("goal", GOALS)
def test_each_goal_has_a_figure(goal: str, result: dict[str, Any]) -> None:
    assert figures_of(result)[goal] > 0


def test_each_contender_of_the_query_benchmark_has_a_figure_or_a_reason_for_none(
    result: dict[str, Any],
) -> None:
    told = result["figures"]["query"].keys() | result["not_measured"]["query"].keys()
    contenders = CONTENDERS.keys() | STREAMERS.keys()
    assert told - (GOALS.keys() - contenders) == contenders


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_streamed_answer_has_the_number_of_events_that_its_time_is_divided_by(vendor: Any) -> None:
    _, streamed = prepared(vendor)
    assert streamed.count(b"Paris is city ") == PIECES


@pytest.mark.parametrize("comparison", tables.COMPARISONS, ids=lambda comparison: comparison.title)
def test_each_table_compares_koo_with_a_peer(comparison: tables.Comparison, result: dict[str, Any]) -> None:
    """Otherwise a table could become empty because a figure was renamed."""
    rows = [row.split(" | ")[0].strip("| ") for row in tables.comparison_lines(comparison, result)][2:]
    assert rows[0] == comparison.koo and len(rows) > 1
    assert any("×" in row for row in tables.comparison_lines(comparison, result))


def test_each_figure_of_a_peer_is_in_a_table(result: dict[str, Any]) -> None:
    """koo's own ratios are listed with the goals; every other measurement is in a table."""
    columns = [f": {name}" for comparison in tables.COMPARISONS for name in comparison.columns.values()]
    unseen = {name for name in figures_of(result) if name not in GOALS and not name.endswith(tuple(columns))}
    assert unseen == set()


def test_the_versions_of_the_peers_are_listed_below_the_tables(result: dict[str, Any]) -> None:
    assert result["packages"].keys() <= {*TOGETHER, *ON_THEIR_OWN}
    last = tables.tables(result, "2026-01-01").splitlines()[-1]
    assert all(f"{name} {version}" in last for name, version in result["packages"].items())


# ---- the generator -------------------------------------------------------------------------------------------------


def made_up(**changes: Any) -> dict[str, Any]:
    """A result with three contenders, one of them not measured."""
    return {
        "machine": {
            "processor": "Abacus",
            "system": "Linux",
            "machine": "x",
            "python": "3.11",
            "additions_us": "20",
        },
        "packages": {"limits": "5"},
        "figures": {
            "guard": {
                "koo: refusal by a limit, us": 2.0,
                "slow: refusal by a limit, us": 9.0,
                "quick: refusal by a limit, us": 1.0,
            }
        },
        "noise": {"guard": {}},
        "not_measured": {"guard": {"gone: refusal by a limit, us": "no release found"}},
        **changes,
    }


REFUSALS = next(
    comparison for comparison in tables.COMPARISONS if "refusal by a limit, us" in comparison.columns.values()
)


def test_peers_are_listed_below_koo_by_their_multiple_of_its_cost() -> None:
    assert list(tables.comparison_lines(REFUSALS, made_up()))[2:] == [
        "| koo | 2.00 |",
        "| quick | 1.00 · 0.500× |",
        "| slow | 9.00 · 4.50× |",
        "| gone | not measured: no release found |",
    ]


def test_a_ratio_is_not_a_row_of_a_table() -> None:
    fast = tables.Comparison("Calls", "query", {"a second": "calls a second"}, more_is_better=True)
    figures = {"koo: calls a second": 6000.0, "slow: calls a second": 200.0}
    made = made_up(figures={"query": {**figures, "koo / slow: calls a second": 30.0}}, not_measured={})
    assert list(tables.comparison_lines(fast, made))[2:] == ["| koo | 6,000 |", "| slow | 200 · 30.0× |"]


def test_if_more_is_better_the_multiple_is_inverted() -> None:
    fast = tables.Comparison("Calls", "query", {"a second": "calls a second"}, more_is_better=True)
    figures = {"koo: calls a second": 6000.0, "slow: calls a second": 200.0, "quick: calls a second": 3000.0}
    made = made_up(figures={"query": figures}, not_measured={})
    assert list(tables.comparison_lines(fast, made))[2:] == [
        "| koo | 6,000 |",
        "| quick | 3,000 · 2.00× |",
        "| slow | 200 · 30.0× |",
    ]


def test_a_missed_goal_and_a_missing_figure_are_marked() -> None:
    made = made_up(
        figures={"a": {"stack by hand / koo": 6.9, "koo: import, s": 0.15}},
        noise={"a": {"stack by hand / koo": 0.031}},
    )
    lines = list(tables.goal_lines(made))
    assert "| stack by hand / koo | at least 7 | 6.90 | ± 3% | **missed** |" in lines
    assert "| koo: import, s | at most 0.15 | 0.150 |  | met |" in lines
    assert "| server: ready after, s | at most 1.5 | not measured |  |  |" in lines


def test_a_goal_is_met_by_exactly_its_figure() -> None:
    for name, (word, goal) in GOALS.items():
        assert word in {AT_MOST, AT_LEAST}
        assert is_met(name, goal)
        assert not is_met(name, goal * (1.01 if word == AT_MOST else 0.99))


def test_a_readme_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="once each"):
        tables.with_tables("# Benchmarks\n", made_up(), "2026-01-01")


# ---- measuring -----------------------------------------------------------------------------------------------------


def test_ratios_are_taken_inside_a_round() -> None:
    """If the machine slows down for a round, both sides are affected."""
    table = Table({"koo": [2.0, 20.0], "peer": [8.0, 80.0], "bare": [1.0, 10.0]})
    assert table.ratios("peer", "koo") == [4.0, 4.0]
    assert table.ratios("peer", "koo", less="bare") == [7.0, 7.0]
    assert table.over_us("koo", "bare") == [1e6, 10e6]


def test_noise_is_half_the_distance_of_the_quartiles_over_the_median() -> None:
    assert noise([8.0, 9.0, 10.0, 11.0, 12.0]) == pytest.approx(0.1)
    assert noise([1.0, 2.0, 3.0]) is None


# ---- installing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("ERROR: No matching distribution found for tensorzero>=2026.1", "no release found for Python"),
        (
            "ERROR: ResolutionImpossible: for help visit …",
            "its requirements conflict with the pinned versions",
        ),
        (
            "WARNING: Retrying … NewConnectionError …\nERROR: No matching distribution found for limits",
            "the package registry could not be reached",
        ),
        ("error: command 'cc' failed", "pip could not install it"),
    ],
)
def test_pips_error_becomes_a_short_reason(said: str, why: str) -> None:
    assert install.reason(said).startswith(why)


def test_a_peer_that_cannot_be_installed_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "pins.txt"
    here, gone = (
        "here==1 \\\n    --hash=sha256:1a\n",
        "gone==2 ; python_version < '4' \\\n    --hash=sha256:2b\n",
    )
    pins.write_text(f"# What it is.\n{here}{gone}{here.replace('here', 'there')}")
    asked: list[str] = []

    def pip(python: Path, pins: Path) -> str | None:
        asked.append(pins.read_text())
        return "No matching distribution found for gone" if "gone" in asked[-1] else None

    monkeypatch.setattr(install, "pip", pip)
    missing = install.install(Path("python"), pins)
    assert asked == [pins.read_text(), here, gone, here.replace("here", "there")]
    assert missing.keys() == {"gone"}


def test_each_peer_is_declared_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    beside = [line for line in project["project"]["optional-dependencies"]["bench"] if line[:3] != "koo"]
    apart = project["dependency-groups"]["bench-apart"]
    for requirements, pins in ((beside, (RUN, TEST, BENCH)), (apart, (APART,))):
        assert {canonical(install.name_of(line)) for line in requirements} <= versions(*pins).keys()
    assert {install.name_of(line) for line in apart} == set(ON_THEIR_OWN)
    assert {install.name_of(line) for line in beside} <= set(TOGETHER)
