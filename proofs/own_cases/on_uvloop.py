"""A pytest plugin that makes every loop of a test a uvloop."""

from __future__ import annotations

import asyncio

import uvloop

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
