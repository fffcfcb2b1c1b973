"""The method. One process; every round runs each variant once, in shuffled order; a ratio is taken within its round.

What disturbs the machine for a while (another process, a checkpoint of the database) falls on all variants of a round alike, so
the ratio stands it, and the median over the rounds drops what it does not. Absolute times are printed for scale only.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import repeat
from time import perf_counter
from typing import Any, Final

TURN: Final = 0.04  # seconds that one variant runs in a round, about
LEAST: Final = 3  # pieces of work in a turn, however long one takes

Work = Callable[[], Any]
AsyncWork = Callable[[], Awaitable[Any]]


@dataclass
class Timed:
    """What the rounds gave for one variant.

    Attributes:
        name: The variant's name.
        seconds: For each round, the time of one piece of work.
        ratios: For each round, that time over the base's in the same round.

    """

    name: str
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile of the ratios."""
        if len(self.ratios) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    @property
    def scale(self) -> float:
        """The median time of one piece of work, in seconds."""
        return statistics.median(self.seconds)


def measure(variants: dict[str, Work], rounds: int, seed: int = 1) -> dict[str, Timed]:
    """Time *variants*; the first is the base of the ratios."""
    turns = {name: _turn(work) for name, work in variants.items()}
    return _rounds(turns, rounds, seed)


def measure_async(variants: dict[str, AsyncWork], rounds: int, runner: asyncio.Runner, seed: int = 1) -> dict[str, Timed]:
    """The same for coroutine functions, all in the event loop of *runner*."""
    turns = {name: _async_turn(work, runner) for name, work in variants.items()}
    return _rounds(turns, rounds, seed)


Turn = Callable[[int], float]


def measure_turns(turns: dict[str, Turn], rounds: int, seed: int = 1) -> dict[str, Timed]:
    """The same where each variant times itself: the seconds that a number of pieces of work took."""
    return _rounds(turns, rounds, seed)


def _turn(work: Work) -> Turn:
    def turn(count: int) -> float:
        times = repeat(None, count)
        began = perf_counter()
        for _ in times:
            work()
        return perf_counter() - began

    return turn


def _async_turn(work: AsyncWork, runner: asyncio.Runner) -> Turn:
    async def turn(count: int) -> float:
        times = repeat(None, count)
        began = perf_counter()
        for _ in times:
            await work()
        return perf_counter() - began

    return lambda count: runner.run(turn(count))


def _rounds(turns: dict[str, Turn], rounds: int, seed: int) -> dict[str, Timed]:
    counts = {name: _count(turn) for name, turn in turns.items()}
    found = {name: Timed(name) for name in turns}
    base = next(iter(turns))
    order = list(turns)
    shuffle = random.Random(seed).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            gc.collect()  # nobody pays for what the one before has left
            found[name].seconds.append(turns[name](counts[name]) / counts[name])
        for one in found.values():
            one.ratios.append(one.seconds[-1] / found[base].seconds[-1])
    return found


def _count(turn: Turn) -> int:
    """How many pieces of work fill a turn. Finding it warms everything up."""
    count = LEAST
    turn(count)
    while (took := turn(count)) < TURN / 4:
        count = max(count * 2, int(count * TURN / 2 / max(took, 1e-9)))
    return max(LEAST, int(count * TURN / took))
