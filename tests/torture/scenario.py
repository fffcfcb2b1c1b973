"""What the workers of a round do: transfers and reads of every shape, on either face.

The bodies are written once, as coroutines, for a `Face`. Each worker has dice of its own from the round's seed.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa

from tenure import Retry
from tenure.engines.gate import Gate
from torture.book import Book, Entry, RefusedError
from torture.models import ACCOUNTS, TOTAL, Account, Transfer

from support.face import Face, SessionFace, settle

# How often each shape of work is chosen, of all. Those that are not for every database say so in `Scenario.shapes`.
SHAPES = {
    "reads": 8, "stream": 2, "readonly": 2, "around": 1,
    "plain": 8, "verified": 8, "retried": 6, "joined": 3, "savepoint": 4, "checkpoint": 4, "apart": 2,
    "timed": 4, "refused": 3, "asked back": 2, "abandoned": 0.5, "dispose": 0.3,
}  # fmt: skip
ON_POSTGRESQL = ("verified", "dispose")
SUM = sa.select(sa.func.sum(Account.balance))


class Scenario:
    """One database, its book, and all that its workers can do."""

    def __init__(self, face: Face, book: Book, seed: str) -> None:
        self.face = face
        self.book = book
        self.seed = seed
        self.left: list[Any] = []  # blocks that nobody leaves
        self.done = 0
        self._verifies = face.dialect == "postgresql"
        self._tenacious = face.decorated(
            self._retried, retry=Retry(attempts=4, first=0.005, longest=0.05), verify_commit=self._verifies
        )
        self._helper = face.decorated(self._join)
        self.shapes = {name: weight for name, weight in SHAPES.items() if self._verifies or name not in ON_POSTGRESQL}

    # ------------------------------------------------------------------------ the worker

    async def work(self, number: int, goes_on: Callable[[], bool], launch: Callable[..., Awaitable[Any]]) -> None:
        """Do one thing after another while *goes_on*, each by *launch*, which may cancel it."""
        dice = random.Random(f"{self.seed}/{number}")
        names, weights = list(self.shapes), list(self.shapes.values())
        count = 0
        while goes_on():
            count += 1
            (shape,) = dice.choices(names, weights)
            errors = self.book.errors.total()
            await getattr(self, f"_do_{shape.replace(' ', '_')}")(dice, f"{self.seed}/{number}/{count}", launch)
            self.done += 1
            if self.book.errors.total() != errors:
                await self.face.sleep(0.02)  # who was refused comes again, but not at once

    async def _tried(self, entry: Entry, body: Callable[[], Awaitable[Any]], launch: Callable[..., Awaitable[Any]]) -> None:
        error: BaseException | None = None
        try:
            await launch(body)
        except BaseException as failed:
            error = failed
        self.book.closed(entry, error)
        _raise_if_mine(error)

    async def _watched(self, shape: str, body: Callable[[], Awaitable[Any]], launch: Callable[..., Awaitable[Any]]) -> None:
        """The same for what writes nothing."""
        try:
            await launch(body)
        except BaseException as error:
            self.book.saw(shape, error)
            _raise_if_mine(error)

    def _note(self, entry: Entry) -> Any:
        """The current unit is one in which *entry* is tried."""
        unit = self.face.current
        entry.units.append(unit)
        unit.on_commit(self.book.hook, entry)
        return unit

    async def _pause(self, dice: random.Random) -> None:
        if dice.random() < 0.3:
            await self.face.sleep(dice.choice((0, 0, 0.001, 0.005)))

    async def _pay(self, session: SessionFace, key: str, dice: random.Random) -> None:
        """The transfer itself: three writes in any order, each in one of the ways in which an ORM writes."""
        source, target = dice.sample(range(1, ACCOUNTS + 1), 2)
        amount = dice.randint(1, 9)

        async def move(account: int, by: int) -> None:
            if dice.random() < 0.5:
                change = sa.update(Account).where(Account.id == account).values(balance=Account.balance + by)
                await session.execute(change, execution_options={"synchronize_session": False})
            else:
                found = await session.get(Account, account, with_for_update=True, populate_existing=True)
                found.balance += by
                await session.flush()

        async def note() -> None:
            session.add(Transfer(id=key, source=source, target=target, amount=amount))
            if dice.random() < 0.5:
                await session.flush()

        steps = [lambda: move(source, -amount), lambda: move(target, amount), note]
        dice.shuffle(steps)
        for step in steps:
            await step()
            await self._pause(dice)

    async def _look(self, session: SessionFace, shape: str) -> None:
        """The sum, in one statement: exact at every moment."""
        total = await session.scalar(SUM)
        if total != TOTAL:
            self.book.find(f"{shape}: the sum was {total} in place of {TOTAL} in the middle of the round")

    # ------------------------------------------------------------------------ what only reads

    async def _do_reads(self, dice: random.Random, _key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        async def body() -> None:
            async with self.face.unit() as session:
                for _ in range(dice.randint(1, 5)):
                    await self._look(session, "reads")
                    await self._pause(dice)  # the connection is parked, and may be taken

        await self._watched("reads", body, launch)

    async def _do_readonly(self, dice: random.Random, _key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        async def body() -> None:
            async with self.face.unit(readonly=True, hold=dice.choice((None, "transaction"))) as session:
                await self._look(session, "readonly")
                await self._pause(dice)
                await self._look(session, "readonly")

        await self._watched("readonly", body, launch)

    async def _do_stream(self, dice: random.Random, _key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        async def body() -> None:
            async with self.face.unit() as session:
                rows = await session.stream(sa.select(Account.id, Account.balance), execution_options={"yield_per": 2})
                try:
                    async for _ in rows:
                        if dice.random() < 0.1:
                            break
                finally:
                    await rows.close()
                await self._pause(dice)
                await self._look(session, "stream")

        await self._watched("stream", body, launch)

    async def _do_around(self, dice: random.Random, _key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        async def body() -> None:
            block = self.face.db.engine.connect()
            connection = await settle(block.__aenter__() if self.face.is_async else block.__enter__())
            error: BaseException | None = None
            try:
                await settle(connection.execute(SUM))
                await self._pause(dice)
            except BaseException as failed:
                error = failed
                raise
            finally:
                leave = block.__aexit__ if self.face.is_async else block.__exit__
                await settle(leave(type(error) if error else None, error, None))

        await self._watched("around", body, launch)

    # ------------------------------------------------------------------------ transfers

    async def _do_plain(self, dice: random.Random, key: str, launch: Callable[..., Awaitable[Any]], **options: Any) -> None:
        entry = self.book.open(key, options.pop("shape", "plain"))

        async def body() -> None:
            async with self.face.unit(**options) as session:
                self._note(entry)
                if dice.random() < 0.5:
                    await self._look(session, entry.kind)
                    await self._pause(dice)
                await self._pay(session, key, dice)

        await self._tried(entry, body, launch)

    async def _do_verified(self, dice: random.Random, key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        await self._do_plain(dice, key, launch, shape="verified", verify_commit=True)

    async def _do_timed(self, dice: random.Random, key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        timeout = dice.choice((0.02, 0.1, 0.5))
        await self._do_plain(
            dice, key, launch, shape="timed", timeout=timeout, verify_commit=self._verifies and dice.random() < 0.5
        )

    async def _do_retried(self, dice: random.Random, key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        entry = self.book.open(key, "retried")
        await self._tried(entry, lambda: self._tenacious(entry=entry, dice=dice), launch)

    async def _retried(self, session: SessionFace, entry: Entry, dice: random.Random) -> None:
        self._note(entry)
        await self._pay(session, entry.key, dice)

    async def _do_joined(self, dice: random.Random, key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        entry = self.book.open(key, "joined")

        async def body() -> None:
            async with self.face.unit() as session:
                self._note(entry)
                await self._look(session, "joined")
                await self._helper(entry=entry, dice=dice)

        await self._tried(entry, body, launch)

    async def _join(self, session: SessionFace, entry: Entry, dice: random.Random) -> None:
        await self._pay(session, entry.key, dice)

    async def _do_refused(self, dice: random.Random, key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        entry = self.book.open(key, "refused")
        entry.asked_back = True

        async def body() -> None:
            async with self.face.unit() as session:
                self._note(entry)
                await self._pay(session, key, dice)
                raise RefusedError(key)

        await self._tried(entry, body, launch)

    async def _do_asked_back(self, dice: random.Random, key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        entry = self.book.open(key, "asked back")
        entry.asked_back = True

        async def body() -> None:
            async with self.face.unit() as session:
                unit = self._note(entry)
                unit.rollback_only("the torture test asks for it")
                await self._pay(session, key, dice)

        await self._tried(entry, body, launch)

    async def _do_savepoint(self, dice: random.Random, key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        """A transfer within a transfer, which is undone alone or shares its end."""
        entry, inner = self.book.open(key, "savepoint around"), self.book.open(f"{key}/inner", "savepoint")
        inner.asked_back = dice.random() < 0.5
        inner.part_of = entry

        async def body() -> None:
            async with self.face.unit() as session:
                self._note(entry)
                await self._pay(session, key, dice)
                try:
                    async with self.face.unit(propagation="nested") as within:
                        self.face.current.on_commit(self.book.hook, inner)
                        await self._pay(within, inner.key, dice)
                        if inner.asked_back:
                            raise RefusedError(inner.key)
                except RefusedError:
                    pass

        error: BaseException | None = None
        try:
            await launch(body)
        except BaseException as failed:
            error = failed
        for one in (entry, inner):
            self.book.closed(one, error)
        _raise_if_mine(error)

    async def _do_apart(self, dice: random.Random, key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        """A unit of its own within a unit that only reads: its end is its own."""
        entry = self.book.open(key, "apart")

        async def body() -> None:
            async with self.face.unit() as session:
                await self._look(session, "apart")
                async with self.face.unit(propagation="new") as other:
                    self._note(entry)
                    await self._pay(other, key, dice)

        await self._tried(entry, body, launch)

    async def _do_checkpoint(self, dice: random.Random, key: str, launch: Callable[..., Awaitable[Any]]) -> None:
        """Two transfers in one unit, the first stored by a commit() of the unit's own code."""
        first, rest = self.book.open(f"{key}/first", "checkpoint"), self.book.open(key, "after a checkpoint")
        first.checkpoint = False

        async def body() -> None:
            async with self.face.unit(verify_commit=self._verifies and dice.random() < 0.5) as session:
                first.units.append(self.face.current)
                self.face.current.on_commit(self.book.hook, first)
                await self._pay(session, first.key, dice)
                first.checkpoint = None
                try:
                    await session.commit()
                except Exception as error:
                    first.checkpoint = None if type(error).__name__ == "CommitUnknown" else False
                    raise
                first.checkpoint = True
                self._note(rest)
                await self._pay(session, rest.key, dice)

        error: BaseException | None = None
        try:
            await launch(body)
        except BaseException as failed:
            error = failed
        if not rest.units:  # it never came to that
            rest.asked_back = True
        for one in (first, rest):
            self.book.closed(one, error)
        _raise_if_mine(error)

    # ------------------------------------------------------------------------ owners that die, pools that go

    async def _do_abandoned(self, dice: random.Random, key: str, _launch: Callable[..., Awaitable[Any]]) -> None:
        """A thread or task that ends within its unit, whose block somebody may still have in hand."""
        entry = self.book.open(key, "abandoned")
        entry.asked_back = True

        async def dies() -> None:
            block = self.face.unit()
            session = await block.__aenter__()
            if dice.random() < 0.5:
                self.left.append((block, session))
            await self._pay(session, key, dice)

        for error in await self.face.spawn(dies, inherit=False, return_exceptions=True):
            self.book.saw("abandoned", error)

    async def _do_dispose(self, _dice: random.Random, _key: str, _launch: Callable[..., Awaitable[Any]]) -> None:
        await settle(self.face.db.engine.dispose())

    # ------------------------------------------------------------------------ the end

    async def left_over(self) -> list[str]:
        """What is not given back after all workers have ended: nothing, where owners that died are swept first."""
        self.left.clear()
        gate: Gate = self.face.db.supply.gate
        ends = time.monotonic() + 5
        while True:
            if self.face.is_async:
                await sa.util.greenlet_spawn(gate.sweep)
                await asyncio.sleep(0.01)
            else:
                gate.sweep()
            status = self.face.db.status()
            numbers = {
                "out": self.face.out(),
                "waiting": status.waiting,
                "in the ledger": len(gate.ledger),
                "places": gate.queue.used,
                "spare": gate.queue.spare,
            }
            if not any(numbers.values()) or time.monotonic() > ends:
                holders = [f"  {one}" for one in self.face.db.holders()]
                return [f"left over: {numbers}\n" + "\n".join(holders)] if any(numbers.values()) else []
            await self.face.sleep(0.01)


def _raise_if_mine(error: BaseException | None) -> None:
    """Let go on what ends the worker itself, not the thing that it did."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
