"""How addresses are read, and what counts as one client."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from koo.web.addresses import client_of, read_address, read_network


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:443", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
    ],
)
def test_an_address_is_read_with_a_port_in_brackets_and_from_an_ipv6_socket(text: str, address: str) -> None:
    assert read_address(text) == ip_address(address)


@pytest.mark.parametrize("text", ["", "unknown", "_hidden", "[", "[]:80", "not:an:address", "localhost:80"])
def test_a_text_that_is_not_an_address_is_none(text: str) -> None:
    assert read_address(text) is None


def test_a_network_contains_its_addresses_in_either_form() -> None:
    for network in ("192.0.2.0/24", "::ffff:192.0.2.0/120"):
        assert read_address("::ffff:192.0.2.1") in read_network(network)
    assert read_address("2001:db8::1") in read_network("2001:db8::/32")
    assert read_address("192.0.2.1") not in read_network("::/0")


def test_an_ipv4_address_or_an_ipv6_network_counts_as_one_client() -> None:
    assert client_of("192.0.2.1") == "192.0.2.1"
    assert client_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff") == "2001:db8::/64"
    assert client_of("2001:db8:0:1::1") != client_of("2001:db8::1")
    assert client_of("fe80::1%eth0") == "fe80::/64"
    assert client_of("not:an:address") == "not:an:address"
