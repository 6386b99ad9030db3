"""The till of `proofs.once_keys`: a server whose route takes payments with an `Idempotency-Key`, made to be killed.

`python -m proofs.once_till URL HOME SOCKET`: a process that has imported everything. For each line on stdin it forks a
server, which listens on the inherited socket, and prints its process id. While no server lives, clients wait at that
socket.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import uuid
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import APIRouter, FastAPI, Header
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from koo import IdempotentRoute, idempotent
from koo.options import DatabaseOptions, PlatformOptions
from koo.platform import Platform
from koo.web import mount

TABLE = "CREATE TABLE payments (number INTEGER, run TEXT)"
PAY = text("INSERT INTO payments (number, run) VALUES (:number, :run)")


class Payment(BaseModel):
    number: int


def customer(x_customer: Annotated[str, Header()]) -> str:
    return x_customer


def application(url: str, home: Path) -> FastAPI:
    """One route; each run of it has a name, so that two runs have different responses."""
    koo = Platform(
        PlatformOptions(
            services=(), home=home, state_url=f"sqlite:///{home}/state.db", database=DatabaseOptions(url=url)
        )
    )
    app, router = FastAPI(), APIRouter(route_class=IdempotentRoute)
    mount(app, koo)
    once = idempotent(caller=customer, database=lambda: koo.database)

    @router.post("/payments", status_code=201)
    async def pay(payment: Payment, session: AsyncSession = once) -> dict[str, str]:
        run = uuid.uuid4().hex
        await session.execute(PAY, {"number": payment.number, "run": run})
        return {"run": run}

    app.include_router(router)
    return app


def serve(url: str, home: Path, listener: socket.socket) -> None:
    config = uvicorn.Config(application(url, home), log_config=None, access_log=False)
    uvicorn.Server(config).run([listener])


def main(url: str, home: str, number: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a killed server's process disappears immediately
    listener = socket.socket(fileno=int(number))
    child = 0
    try:
        while sys.stdin.readline():
            child = os.fork()
            if not child:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(0)
                serve(url, Path(home), listener)
                return
            print(child, flush=True)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
