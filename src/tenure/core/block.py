"""What ``db.unit`` is: a block and a decorator, each entry of which is a new unit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias, TypeVar, Unpack, overload

from sqlalchemy.orm import Session

from tenure import callsite
from tenure.core import options as opts
from tenure.core.decorate import decorate
from tenure.core.options import Options, UnitOptions
from tenure.core.unit import BaseUnit
from tenure.exceptions import BadOption, UnitEnded, UnsupportedCallable, WrongBlock

if TYPE_CHECKING:
    from tenure.core.database import Database

Entry: TypeAlias = (
    "tuple[BaseUnit[Any], CodeType, int]"  # the unit, and the `with` statement under way: its code, and its frame's id
)
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def refuses(way: str) -> Callable[..., Any]:
    """A method for the syntax *way*, by which no unit is opened: it says how one is. Type checkers are not shown it, and refuse too."""

    def refuse(self: BaseBlock, *_: object) -> Any:
        database = self.database
        raise WrongBlock(
            f"`{way}` at {callsite.words(callsite.here(2))} opens no unit of {database.name!r}, which is"
            f" {'an' if database.is_async else 'a'} {type(database).__name__}. Write `{database.as_written}:`."
        )

    return refuse


class BaseBlock:
    """What the blocks of both faces share."""

    __slots__ = ("_open", "_options", "database")

    def __init__(self, database: Any, options: UnitOptions) -> None:
        self.database = database
        self._options = options
        self._open: list[Entry] = []

    if not TYPE_CHECKING:
        __await__ = refuses("await")
        __iter__ = refuses("for")
        __aiter__ = refuses("async for")

        def __getattr__(self, name: str) -> Any:
            """Those who take it for the session are told how to get that."""
            way = f". Its session has it: {self.database.as_written}" if hasattr(Session, name) else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{way}", name=name, obj=self)


class Block(BaseBlock):
    """The block of a ``Database``."""

    __slots__ = ()
    database: Database
    if not TYPE_CHECKING:
        __aenter__ = __aexit__ = refuses("async with")

    def __enter__(self) -> Session:
        if self._options.retry is not None:
            raise no_retry()
        frame = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented, with an underscore
        unit = self.database.enter(self._options, callsite.of_frame(frame))
        self._open.append((unit, frame.f_code, id(frame)))
        try:
            return unit.session
        except BaseException as error:  # session_options may hold what Session refuses; without this the unit would stay current
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        frame = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented, with an underscore
        unit = leaving(self._open, frame, self.database.current_place.here(), error)
        if unit is not None:
            self.database.leave(unit, error, callsite.of_frame(frame))


class UnitBlock(Block):
    """What ``db.unit(...)`` gives: a context manager and a decorator. It can be used again; each entry is a new unit."""

    __slots__ = ()

    @overload
    def __call__(self, function: Callable[Concatenate[Session, P], R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[T, Session, P], R], /) -> Callable[Concatenate[T, P], R]: ...
    @overload
    def __call__(self, function: Callable[..., R], /) -> Callable[..., R]: ...
    def __call__(self, function: Any, /) -> Any:
        """Decorate *function*: it runs in a unit, and its session parameter is filled in."""
        return decorate(self.database, function, self._options)


class UnitFactory(Block):
    """``db.unit``: a block without options. Called with a function it decorates it, called with options it gives a ``UnitBlock``."""

    __slots__ = ()

    def __init__(self, database: Database) -> None:
        super().__init__(database, opts.DEFAULT)

    @overload
    def __call__(self, function: Callable[Concatenate[Session, P], R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[T, Session, P], R], /) -> Callable[Concatenate[T, P], R]: ...
    @overload
    def __call__(self, function: Callable[..., R], /) -> Callable[..., R]: ...
    @overload
    def __call__(self, /, **options: Unpack[Options]) -> UnitBlock: ...
    def __call__(self, function: Any = None, /, **options: Any) -> Any:
        """Open, join or decorate.

        Args:
            function: What to decorate; alone, without options.
            options: Each by its name:
            readonly: Refuse writes. Default False.
            propagation: ``"required"`` joins or opens (default), ``"new"`` has its own session, ``"nested"`` is a savepoint,
                ``"mandatory"`` must join, ``"never"`` must be outermost.
            isolation: The transaction's isolation, by its SQL name. Default: the database's.
            hold: ``"auto"`` or ``"transaction"``, when the connection is held. Default: the Database's.
            retry: How often a decorated function runs in all, or ``Retry(...)``. Default: once.
            timeout: Seconds for the waits for a connection, the statements and the COMMIT together, all runs of ``retry``
                included. Default: no limit.
            settings: Server settings for each transaction of the unit (``SET LOCAL``; PostgreSQL).
            verify_commit: When the connection is lost in COMMIT, ask the server on a new one what became of it, for up to 10 s
                (PostgreSQL 13 or later; one round trip more for each COMMIT). Default False: ``CommitUnknown``.
            name: Its name in errors and logs. Default: the function's.

        Raises:
            BadOption: An option is unknown or has a wrong value, or this database does not take it.
            UnsupportedCallable: *function* cannot carry a unit.

        """
        if function is None:
            return UnitBlock(self.database, self.database.unit_options(options) if options else opts.DEFAULT)
        if options:
            raise BadOption("db.unit(function, …): give the options first, as @db.unit(readonly=True).")
        return decorate(self.database, function, self._options)


def leaving(
    opened: list[Entry], frame: FrameType, here: BaseUnit[Any] | None, error: BaseException | None
) -> BaseUnit[Any] | None:
    """Which entry of a block is left: the only one, else that of the same ``with`` statement, else that of this context.

    None where it was left already, or cannot be told; who does not come with an *error* of their own is told.
    """
    there = list(opened)
    if len(there) > 1:
        # ExitStack and its like leave a block in another frame than they enter it; a generator has one, whatever thread it runs in.
        same = [one for one in there if one[1] is frame.f_code and one[2] == id(frame)]
        there = same or [one for one in there if one[0] is here]
    try:
        found = there[-1]
        opened.remove(found)
        return found[0]
    except (IndexError, ValueError):  # left already; by two threads at once, even
        pass
    if error is not None:
        return None
    left, others = callsite.words(callsite.here(3)), len(opened)
    if others:
        raise WrongBlock(
            f"the block left at {left} was entered elsewhere, and {others} entries of it are open: it cannot be told which this is."
            " Enter a block of its own: `with db.unit() as session:`."
        )
    raise UnitEnded(
        f"the block left at {left} has no unit open: it was left already, maybe by another thread or task, whose outcome counts."
        " Leave a block once, in the code that has entered it."
    )


def no_retry() -> UnsupportedCallable:
    """The error for ``retry=`` on a block."""
    return UnsupportedCallable(
        f"retry= at {callsite.words(callsite.here(2))} is on a with-block, which cannot run again. Put its body into a function and"
        " decorate that: @db.unit(retry=3)."
    )
