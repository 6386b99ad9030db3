"""A plugin for pytest: each loop that a test makes is uvloop's."""

from __future__ import annotations

import asyncio

import uvloop

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
