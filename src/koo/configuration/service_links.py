"""Ignore the variables that Kubernetes and Docker set for other services, some of which have koo's names.

With a Service named `koo`, Kubernetes sets KOO_PORT=tcp://10.0.0.7:8000, KOO_SERVICE_HOST and more in each pod of the
namespace; a Service named `db`, `ai` or `database` has the same effect with its prefix. These variables are not
settings of koo.

A variable whose name ends in _PORT is a link if its value looks like one. Otherwise it is a setting, because a pod's
own manifest overrides a link of the same name, and a wrong number must still be an error. The other names are links if
there is a link of the same service.

https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_LINK = re.compile(r"(?:tcp|udp|sctp)://[^/?#]*:\d+", re.IGNORECASE)
_BESIDE = re.compile(
    r"_(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|NAME|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)


def without_links(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without service links."""
    services = set(_services(environ))
    return {name: text for name, text in environ.items() if not _is_link(name, text, services)}


def _services(environ: Mapping[str, str]) -> Iterator[str]:
    """The prefixes of all linked services: "KOO" for a Service named koo."""
    for name, text in environ.items():
        if name.endswith("_PORT") and _LINK.fullmatch(text.strip()):
            yield name.removesuffix("_PORT")
        # A pod's manifest may override the `_PORT` link with a port of its own, but the other links of the service
        # remain. A host together with a port of the same name identifies them.
        elif name.endswith("_SERVICE_HOST") and f"{name.removesuffix('_HOST')}_PORT" in environ:
            yield name.removesuffix("_SERVICE_HOST")


def _is_link(name: str, text: str, services: set[str]) -> bool:
    if name.endswith("_PORT") and _LINK.fullmatch(text.strip()):
        return True
    return any(name.startswith(one) and _BESIDE.fullmatch(name, len(one)) for one in services)
