"""What ``db.unit`` of an ``AsyncDatabase`` is; its twin for code that blocks is in ``block``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from tenure import callsite
from tenure.core import options as opts
from tenure.core.block import BaseBlock, leaving, no_retry, refuses
from tenure.core.decorate import adecorate
from tenure.core.options import Options
from tenure.exceptions import BadOption

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from tenure.core.aio import AsyncDatabase

P = ParamSpec("P")
C = TypeVar("C", bound=Coroutine[Any, Any, Any])
T = TypeVar("T")


class AsyncBlock(BaseBlock):
    """The block of an ``AsyncDatabase``."""

    __slots__ = ()
    database: AsyncDatabase
    if not TYPE_CHECKING:
        __enter__ = __exit__ = refuses("with")

    async def __aenter__(self) -> AsyncSession:
        if self._options.retry is not None:
            raise no_retry()
        frame = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented, with an underscore
        unit = await self.database.enter(self._options, callsite.of_frame(frame))
        self._open.append((unit, frame.f_code, id(frame)))
        try:
            return unit.session
        except BaseException as error:  # as in UnitBlock
            await self.__aexit__(type(error), error, None)
            raise

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        frame = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented, with an underscore
        unit = leaving(self._open, frame, self.database.current_place.here(), error)
        if unit is not None:
            await self.database.leave(unit, error, callsite.of_frame(frame))


class AsyncUnitBlock(AsyncBlock):
    """What ``db.unit(...)`` gives: a context manager and a decorator. It can be used again; each entry is a new unit."""

    __slots__ = ()

    @overload
    def __call__(self, function: Callable[Concatenate[AsyncSession, P], C], /) -> Callable[P, C]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[T, AsyncSession, P], C], /) -> Callable[Concatenate[T, P], C]: ...
    @overload
    def __call__(self, function: Callable[..., C], /) -> Callable[..., C]: ...
    def __call__(self, function: Any, /) -> Any:
        """Decorate coroutine *function*: it runs in a unit, and its session parameter is filled in."""
        return adecorate(self.database, function, self._options)


class AsyncUnitFactory(AsyncBlock):
    """``db.unit``: a block without options. Called with a coroutine function it decorates it, called with options it gives an
    ``AsyncUnitBlock``.
    """

    __slots__ = ()

    def __init__(self, database: AsyncDatabase) -> None:
        super().__init__(database, opts.DEFAULT)

    @overload
    def __call__(self, function: Callable[Concatenate[AsyncSession, P], C], /) -> Callable[P, C]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[T, AsyncSession, P], C], /) -> Callable[Concatenate[T, P], C]: ...
    @overload
    def __call__(self, function: Callable[..., C], /) -> Callable[..., C]: ...
    @overload
    def __call__(self, /, **options: Unpack[Options]) -> AsyncUnitBlock: ...
    def __call__(self, function: Any = None, /, **options: Any) -> Any:
        """Open, join or decorate; the options are those of ``Database.unit``."""
        if function is None:
            return AsyncUnitBlock(self.database, self.database.unit_options(options))
        if options:
            raise BadOption("db.unit(function, …): give the options first, as @db.unit(readonly=True).")
        return adecorate(self.database, function, self._options)
