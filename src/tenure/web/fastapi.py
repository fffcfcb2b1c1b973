"""FastAPI: ``app.add_middleware(UnitMiddleware, db)``, and ``session_of(db)`` as a dependency."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from tenure.core.aio import AsyncDatabase
from tenure.core.base import BaseDatabase
from tenure.core.database import Database
from tenure.web.aio import LoopBoundary
from tenure.web.filling import session_in
from tenure.web.starlette import UnitMiddleware

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession  # which cannot be imported without greenlet

__all__ = ["UnitMiddleware", "session_of"]

S = TypeVar("S")
Dependency: TypeAlias = Callable[[HTTPConnection], AsyncIterator[S]]


@overload
def session_of(db: Database) -> Dependency[Session]: ...
@overload
def session_of(db: AsyncDatabase) -> Dependency[AsyncSession]: ...
def session_of(db: BaseDatabase[Any]) -> Dependency[Any]:
    """A dependency: ``Annotated[Session, Depends(session_of(db))]``, or ``AsyncSession`` for an ``AsyncDatabase``.

    In a request it is the session of the request's unit. In a WebSocket, which has no unit, it is one for as long as the WebSocket
    is open: each exchange ends with ``session.commit()``, and what was not committed at the end is rolled back, with a warning.
    Dependencies of one *db* are equal, so one of them is the key for ``app.dependency_overrides``.

    Args:
        db: Whose session.

    Raises:
        BadOption: *db* is no database of tenure's.

    """
    return _SessionOf(db)


class _SessionOf:
    # FastAPI resolves the text of an annotation only for functions.
    __signature__ = inspect.Signature(
        [inspect.Parameter("connection", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=HTTPConnection)]
    )

    def __init__(self, database: BaseDatabase[Any]) -> None:
        self._boundary = LoopBoundary(database, commit="explicit")
        self._database = database

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SessionOf) and other._database is self._database

    def __hash__(self) -> int:
        return hash(self._database)

    async def __call__(self, connection: HTTPConnection) -> AsyncIterator[Any]:
        path = connection.scope["path"]
        if connection.scope["type"] == "http":
            line = "Write app.add_middleware(UnitMiddleware, db) where the application is made."
            yield session_in(self._database, f"{connection.scope['method']} {path}", line)
            return
        request = self._boundary.begin(f"WS {path}")
        try:
            yield self._database.session
        except WebSocketDisconnect:  # the way in which most of them end
            await request.settle(101)
            raise
        except BaseException as error:
            await request.finish(error)
            raise
        else:
            await request.settle(101)
        finally:
            await request.end()
            self._boundary.ended()
