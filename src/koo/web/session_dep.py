"""A session for FastAPI's endpoints that commits before the answer leaves, so that a failed COMMIT is a 5xx."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from koo.default.database import get_session

# `Depends(get_session)` alone commits after the answer has left: that is FastAPI's default.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
