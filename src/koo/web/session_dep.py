"""A session for FastAPI endpoints that commits before the response is sent, so that a failed COMMIT is a 5xx."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from koo.default.database import get_session

# `Depends(get_session)` alone commits after the response has been sent: that is FastAPI's default.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
