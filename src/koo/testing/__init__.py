"""koo in your tests: fake services, a clock that can skip time, network faults and database faults.

    async def test_the_shop_survives_an_outage(koo):          # a fixture that comes with koo
        koo.claude.fails(529)
        assert (await suggest("shoes")).service == "local"
        koo.claude.answers("Boots.")
        koo.clock.advance(minutes=3)
        assert (await suggest("shoes")).text == "Boots."

Start with `World`: a platform in a temporary home, with a fake for each service of your settings. `use` lets a platform
replace the one behind `query_ai` and `db_manager`. The names are loaded when they are first used, so importing this
module costs nothing. The submodules (`koo.testing.providers`, `.postgres`, `.proxy`) are public too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from koo.testing.clock import StandingClock, VirtualClock, run_virtual
    from koo.testing.contract import AdapterCase, rules
    from koo.testing.faked import FakedService
    from koo.testing.polling import until, wait_until
    from koo.testing.postgres import PostgresServer
    from koo.testing.providers.diary import FakeMisused
    from koo.testing.providers.script import Gate
    from koo.testing.providers.server import FakeProvider
    from koo.testing.providers.verbs import Verbs
    from koo.testing.proxy import FaultProxy
    from koo.testing.skipping import SkippingClock
    from koo.testing.taken import Settled
    from koo.testing.using import use
    from koo.testing.world import World

_PLACES = {
    "Settled": "koo.testing.taken",
    "AdapterCase": "koo.testing.contract",
    "rules": "koo.testing.contract",
    "FakeMisused": "koo.testing.providers.diary",
    "FakeProvider": "koo.testing.providers.server",
    "FakedService": "koo.testing.faked",
    "Gate": "koo.testing.providers.script",
    "PostgresServer": "koo.testing.postgres",
    "Verbs": "koo.testing.providers.verbs",
    "FaultProxy": "koo.testing.proxy",
    "SkippingClock": "koo.testing.skipping",
    "StandingClock": "koo.testing.clock",
    "VirtualClock": "koo.testing.clock",
    "World": "koo.testing.world",
    "run_virtual": "koo.testing.clock",
    "until": "koo.testing.polling",
    "use": "koo.testing.using",
    "wait_until": "koo.testing.polling",
}

__all__ = [
    "AdapterCase",
    "FakeMisused",
    "FakeProvider",
    "FakedService",
    "FaultProxy",
    "Gate",
    "PostgresServer",
    "Settled",
    "SkippingClock",
    "StandingClock",
    "Verbs",
    "VirtualClock",
    "World",
    "rules",
    "run_virtual",
    "until",
    "use",
    "wait_until",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'koo.testing' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
