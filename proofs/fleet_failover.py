"""Money across a promotion: the store's primary dies under traffic, and its standby is promoted.

A synchronous standby has everything that was acknowledged, so the cap holds whatever else dies. An asynchronous one
that was cut off for a moment does not. The living processes report their grants of that time again, and the store
grants nothing until they have had time to. The grants of a process that died in that moment are lost. So the bill may
exceed the cap by what the dead process had drawn and the copy did not contain, and by no more. Each process that
notices the loss has an alert.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from dataclasses import dataclass
from decimal import Decimal

from koo.testing.postgres import PostgresServer
from koo.testing.proxy import FaultProxy
from proofs.fleet_part import Part
from proofs.money import Fleet, Provider, read_books, tables
from proofs.pooler import MAJOR, check_programs
from proofs.spending import SERVICE
from proofs.standby import Standby

CAP_USD, PROCESSES, CALLERS = "20", 4, 80
CUT_OFF_S = 3.0
"""For this long the asynchronous standby receives nothing before the primary dies: the grants of a few beats."""
QUIET_S = 12.0
"""A store that has lost data grants nothing for six seconds once it is reachable again; this is longer."""
PRIMARY: dict[str, str | int | float | bool] = {
    "wal_level": "replica",
    "max_wal_senders": 4,
    "max_connections": 60,
}
DRAWN = (
    f"SELECT process, sum(granted - back + over_granted) FROM koo_purses WHERE budget = 'service/{SERVICE}'"
)
PICO = Decimal(10**12)


@dataclass(frozen=True)
class Outcome:
    """One promotion. `lost_usd`: what the dead process had drawn and the promoted copy did not contain."""

    kind: str
    bill_usd: Decimal
    booked_usd: Decimal
    lost_usd: Decimal
    alerts: int
    found: list[str]

    def line(self) -> str:
        """A row of the table."""
        numbers = f"{self.bill_usd:.4f} | {self.booked_usd:.4f} | {self.lost_usd:.4f} | {self.alerts}"
        return f"| {self.kind} | {CAP_USD} | {numbers} | {'; '.join(self.found) or 'holds'} |"


def drawn(url: str) -> dict[str, Decimal]:
    """What each process was granted and has not returned."""
    rows = tables(url)(f"{DRAWN} GROUP BY process")
    return {str(name): Decimal(int(amount)) / PICO for name, amount in rows}


class Pair:
    """A primary with its standby, the address that points to one of them, and the proxy between them."""

    def __init__(
        self, primary: PostgresServer, standby: Standby, address: FaultProxy, way: FaultProxy
    ) -> None:
        self.primary, self.standby = primary, standby
        self.address, self.way = address, way
        self.lost_usd = Decimal(0)

    async def fail_over(self, fleet: Fleet, name: str, *, is_cut_off: bool) -> None:
        """One process dies, and then the primary; the address then points to the standby, which accepts writes."""
        if is_cut_off:
            self.way.black_hole()
            await asyncio.sleep(CUT_OFF_S)
        fleet.kill_one(random.Random(fleet.seed))
        dead = fleet.ended[-1].pid
        before = await asyncio.to_thread(drawn, self.primary.url("psycopg", name))
        await asyncio.to_thread(self.primary.kill)
        # The proxy is not healed: its held-back data would still arrive, which cannot happen after a machine is lost.
        self.way.refuses()
        self.way.reset_all()
        self.way.heal()
        await asyncio.to_thread(self.standby.promote)
        after = await asyncio.to_thread(drawn, self.standby.url("psycopg", name))
        self.lost_usd = sum(
            (
                max(Decimal(0), amount - after.get(one, Decimal(0)))
                for one, amount in before.items()
                if one.split(":")[1] == dead
            ),
            Decimal(0),
        )
        self.address.target = (self.standby.host, self.standby.port)
        self.address.reset_all()


async def promotion(kind: str, seed: int) -> Outcome:
    """Processes spend, and in the middle their store fails over."""
    is_synchronous = kind == "synchronous"
    with (
        tempfile.TemporaryDirectory() as home,
        Provider(seed) as provider,
        PostgresServer(MAJOR, settings=PRIMARY) as primary,
        FaultProxy(primary.host, primary.port) as way,
        Standby(primary, way.port) as standby,
        FaultProxy(primary.host, primary.port) as address,
    ):
        if is_synchronous:
            primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
            primary.sql("SELECT pg_reload_conf()")
        name = primary.create_database()
        through = address.through(primary.url("psycopg", name))
        fleet = Fleet(
            CAP_USD, PROCESSES, seed, provider, through, home, spares=1, callers=CALLERS, quiet_s=QUIET_S
        )
        pair = Pair(primary, standby, address, way)
        await fleet.start()
        await fleet.until_share(0.25)
        await pair.fail_over(fleet, name, is_cut_off=not is_synchronous)
        await fleet.finish()
        return await asyncio.to_thread(_judge, kind, fleet, pair, standby.url("psycopg", name))


def _judge(kind: str, fleet: Fleet, pair: Pair, url: str) -> Outcome:
    ask = tables(url)
    books = read_books(ask)
    alerts = len(ask("SELECT 1 FROM koo_episodes WHERE fingerprint LIKE 'store_forgot%'"))
    bill, cap, found = fleet.provider.billed_usd, Decimal(fleet.cap_usd), list[str]()
    if bill > cap + pair.lost_usd:
        found.append(f"the bill of {bill} is above the cap and the {pair.lost_usd} that were lost")
    if bill > books.booked + pair.lost_usd:
        found.append(f"the bill of {bill} is above what is booked, {books.booked}, plus what was lost")
    if books.purses != books.booked:
        found.append(f"{books.booked} is booked, but the purses add up to {books.purses}")
    if kind == "synchronous" and pair.lost_usd:
        found.append(f"a synchronous standby did not have {pair.lost_usd}")
    if kind == "asynchronous" and not alerts:
        found.append("a store that forgot has no alert")
    return Outcome(kind, bill, books.booked, pair.lost_usd, alerts, found)


async def prove() -> Part:
    """One promotion of each kind."""
    check_programs()
    outcomes = [await promotion("synchronous", 201), await promotion("asynchronous", 202)]
    lines = [
        f"{CALLERS} callers in {PROCESSES} processes spend {CAP_USD} USD over PostgreSQL {MAJOR}.",
        "One process and the primary are killed at the same time, and the standby is promoted. Before, the",
        f"asynchronous standby had been cut off for {CUT_OFF_S:g} seconds. `lost` is what the killed process had drawn",
        "and the promoted copy did not contain; the bill may exceed the cap by that amount.",
        "",
        "| standby | cap | bill | booked | lost | alerts | result |",
        "|---|---:|---:|---:|---:|---:|---|",
        *(outcome.line() for outcome in outcomes),
    ]
    return Part(
        "Money across a promotion", lines, [f"{one.kind}: {what}" for one in outcomes for what in one.found]
    )
