"""Addresses of clients, as sockets and proxies write them, and what counts as one client."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network


def read_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address; None if it is not one.

    An IPv4 client of an IPv6 socket is an IPv4 address. Some proxies add brackets and a port in `X-Forwarded-For`.
    """
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def read_network(text: str) -> IPv4Network | IPv6Network:
    """Return the network, in the form in which `read_address` returns its addresses."""
    network = ip_network(text, strict=False)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    return network if mapped is None else IPv4Network((mapped, max(network.prefixlen - 96, 0)), strict=False)


@lru_cache(1024)
def client_of(text: str) -> str:
    """Return what counts as one client: an IPv4 address or an IPv6 /64, the network that one subscriber gets."""
    address = read_address(text)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), 64), strict=False))
    return text if address is None else str(address)
