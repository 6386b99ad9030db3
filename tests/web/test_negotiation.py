"""Accept-Encoding by RFC 9110: weight 0 refuses, a name overrides the star, without a header nothing is accepted."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.middleware import Middleware

from koo.web.negotiation import Gzip, accepts

HEADERS = [
    ("gzip", True),
    ("gzip, deflate, br", True),
    ("br;q=1.0, gzip;q=0.001", True),
    ("GZIP", True),
    ("*", True),
    ("identity, *;q=0.5", True),
    ("", False),
    ("br", False),
    ("gzip;q=0", False),
    ("gzip; q=0.0", False),
    ("gzip ;Q=0.000", False),
    ("identity, gzip;q=0", False),
    ("*;q=0.5, gzip;q=0", False),
    ("*;q=0", False),
    ("gzip;q=", False),
    ("gzip;q=much", False),
    ("xgzip", False),
    ("identity;x=gzip", False),
]


@pytest.mark.parametrize(("header", "taken"), HEADERS)
def test_gzip_is_accepted_as_the_header_says(header: str, taken: bool) -> None:
    assert accepts(header, "gzip") is taken


@pytest.mark.parametrize(("header", "taken"), HEADERS)
def test_a_response_is_compressed_for_clients_that_accept_it(header: str, taken: bool) -> None:
    app = FastAPI(middleware=[Middleware(Gzip, minimum_size=1)])

    @app.get("/")
    def read() -> str:
        return "x" * 2000

    answer = TestClient(app).get("/", headers={"Accept-Encoding": header})
    assert (answer.headers.get("content-encoding") == "gzip") is taken
    assert "accept-encoding" in answer.headers["vary"].lower()
    assert answer.json() == "x" * 2000
