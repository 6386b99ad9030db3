"""The figure of a proof: it draws exactly what was counted."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from proofs.figure import Row, bars_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_each_bar_is_proportional_to_its_value_and_all_rows_share_a_scale() -> None:
    rows = [Row("a < b", [0, 10, 5], [(0.1, "now & then")]), Row("c", [2, 0, 0])]
    drawn = ET.fromstring(bars_svg("title", rows, step_s=0.1, shaded=(0.0, 0.2)))
    bars = [bar for bar in drawn.iter(f"{SVG}rect") if bar.get("fill") == "#2b6cb0"]
    heights = [float(bar.get("height", "")) for bar in bars]
    assert heights == [heights[0], heights[0] / 2, heights[0] / 5]
    assert float(bars[0].get("x", "")) < float(bars[1].get("x", ""))
    words = [text.text for text in drawn.iter(f"{SVG}text")]
    assert {"title", "a < b", "c", "now & then", "10"} <= set(words)
