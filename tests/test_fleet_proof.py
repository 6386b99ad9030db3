"""The page of `make prove-fleet`: a run of one part writes its section and keeps the others."""

from __future__ import annotations

import pytest

from proofs.fleet import PARTS, main, page, section, sections_of
from proofs.fleet_part import Part
from proofs.running import ProofFailed


def test_the_sections_of_a_page_are_read_back_as_they_were_written() -> None:
    names = list(PARTS)
    written = {
        name: section(name, Part(f"About {name}", ["| a |", "|---|"], ["a fault"]), "Tried today.")
        for name in names
    }
    text = "\n".join([*page(written), "", "Written by `make prove-fleet` on a day.", ""])
    assert sections_of(text) == written
    assert "It does not hold: a fault. Tried today." in text


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(ProofFailed, match="no part nothing; the parts are "):
        main(["nothing"])
