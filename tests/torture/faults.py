"""What breaks while the workers work: backends, links, routes, answers and the server, at moments that dice choose."""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import sqlalchemy as sa

from support.cluster import Cluster
from support.proxy import Proxy

APPLICATION = "torture"
"""The name by which the server knows connections of the test."""

# How often each is chosen, of all.
FAULTS = {
    "kill one": 10, "kill all": 2, "cut": 4, "drop a COMMIT": 6, "drop its answer": 6, "drop another": 3, "stand still": 5,
    "slow": 3, "restart": 0.5, "crash": 0.5,
}  # fmt: skip
_BACKENDS = f"SELECT pid FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"


class Faults:
    """Breaks *cluster*, and the *proxy* before it, until `end`.

    *pause* is the longest time between two faults, *still* the longest in which nothing passes, in seconds.
    """

    def __init__(self, cluster: Cluster, proxy: Proxy, seed: str, *, pause: float = 0.25, still: float = 0.3) -> None:
        self.counts: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._cluster = cluster
        self.proxy = proxy
        self._dice = random.Random(f"{seed}/faults")
        self._pause, self._longest = pause, still
        self._ending = threading.Event()
        self._engine = sa.create_engine(cluster.base, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        self._thread = threading.Thread(target=self._run, name="faults", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Break nothing any more, and mend what is broken."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(90)
        self.proxy.delay(0)
        self.proxy.forget()
        self.proxy.thaw()
        self.proxy.up()
        if self.error is not None:
            raise self.error

    def backends(self) -> list[int]:
        """The server's connections with the test."""
        with self._engine.connect() as connection:
            return list(connection.exec_driver_sql(_BACKENDS).scalars())

    def _run(self) -> None:
        names, weights = list(FAULTS), list(FAULTS.values())
        try:
            while not self._ending.wait(self._dice.uniform(0, self._pause)):
                (name,) = self._dice.choices(names, weights)
                act: Callable[[], None] = getattr(self, f"_{name.replace(' ', '_').lower()}")
                act()
                self.counts[name] += 1
        except BaseException as error:  # raised by end()
            self.error = error

    def _kill_one(self) -> None:
        self._kill(f"{_BACKENDS} ORDER BY md5(pid || '{self._dice.random()}') LIMIT 1")

    def _kill_all(self) -> None:
        self._kill(_BACKENDS)

    def _kill(self, backends: str) -> None:
        with contextlib.suppress(sa.exc.OperationalError), self._engine.connect() as connection:
            connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM ({backends}) AS chosen")

    def _cut(self) -> None:
        self.proxy.cut()

    def _drop_a_commit(self) -> None:
        self.proxy.cut_before(b"COMMIT")

    def _drop_its_answer(self) -> None:
        self.proxy.cut_after(b"COMMIT")

    def _drop_another(self) -> None:
        needle = self._dice.choice((b"BEGIN", b"INSERT", b"UPDATE", b"SELECT", b"ROLLBACK", b"SAVEPOINT"))
        self._dice.choice((self.proxy.cut_before, self.proxy.cut_after))(needle)

    def _stand_still(self) -> None:
        self.proxy.freeze()
        time.sleep(self._dice.uniform(0, self._longest))
        if self._dice.random() < 0.3:
            self.proxy.cut()  # a route that was lost, and found to be
        self.proxy.thaw()

    def _slow(self) -> None:
        self.proxy.delay(self._dice.choice((0, 0.0005, 0.002)))

    def _restart(self) -> None:
        self._cluster.restart("fast")

    def _crash(self) -> None:
        self._cluster.restart("immediate")
