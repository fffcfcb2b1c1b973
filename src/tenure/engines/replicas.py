"""What a user says of replicas, and what is told of them. Choosing among them is ``routing.py``'s, which is loaded where there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy.engine import URL, Engine

from tenure.exceptions import BadOption

_ONE_SERVER: Final = ("creator", "async_creator", "pool")


@dataclass(frozen=True, slots=True)
class Replicas:
    """The servers that read-only units may use, and when.

    Args:
        servers: Their URLs, or engines made elsewhere. A URL gets the preset and the options of the primary's.
        max_lag: Seconds that a replica may be behind; one that is further behind is left out, and asked again each second.
            PostgreSQL only. Default: any.
        wait: Seconds that a unit waits for a replica to have what its client has written, before it uses the primary.
            PostgreSQL only. Default 0.1.
        sticky: Seconds that a client which has written stays on the primary where positions cannot be compared: MariaDB, MySQL,
            SQLite. Default 5.

    Raises:
        BadOption: A value has a wrong type or is out of range.

    """

    servers: Sequence[Any]
    max_lag: float | None = None
    wait: float = 0.1
    sticky: float = 5.0

    def __post_init__(self) -> None:
        if not isinstance(self.servers, (list, tuple)):
            raise BadOption(f"replicas: give a list of URLs or engines, not {type(self.servers).__name__}.")
        object.__setattr__(self, "servers", tuple(self.servers))
        for name in ("max_lag", "wait", "sticky"):
            value: object = getattr(self, name)
            if name == "max_lag" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise BadOption(f"Replicas({name}={value!r}): give seconds, at least 0.")


def opened(asked: object, primary: Engine, options: dict[str, Any], make: Callable[[Any], Any]) -> tuple[Replicas, list[Any]]:
    """The settings in *asked*, and an engine for each replica, made or taken by *make*.

    Raises:
        BadOption: *asked* is not what it should be, or a replica is not of the primary's kind.
        WrongDriver: A replica's driver is for the other face.

    """
    replicas = asked if isinstance(asked, Replicas) else Replicas(asked)  # type: ignore[arg-type]
    if replicas.max_lag is not None and primary.dialect.name != "postgresql":
        raise BadOption(f"Replicas(max_lag=…): {primary.dialect.name} does not tell how far it is behind. Leave it out.")
    engines: list[Any] = []
    for server in replicas.servers:
        if isinstance(server, (str, URL)) and (found := next((name for name in _ONE_SERVER if options.get(name)), None)):
            raise BadOption(f"{found}=… leads to one server, whatever a replica's URL says. Give the replicas as engines.")
        engine = make(server)
        sync: Engine = getattr(engine, "sync_engine", engine)
        if _family(sync) != _family(primary):
            raise BadOption(
                f"a replica is {sync.dialect.name}, and the primary is {primary.dialect.name}. Give replicas of that server."
            )
        if sync.url.query.get("vfs") == "memdb":
            raise BadOption("a replica is a database in memory, which would be empty. Give a file.")
        if sync is primary or any(sync is getattr(one, "sync_engine", one) for one in engines):
            raise BadOption("an engine is given twice. Give each server one of its own.")
        engines.append(engine)
    return replicas, engines


def _family(engine: Engine) -> str:
    return "mysql" if engine.dialect.name == "mariadb" else engine.dialect.name


class ReplicaStatus(NamedTuple):
    """Numbers of one replica, in connections.

    Attributes:
        url: Where it is, without the password.
        capacity: How many connections its pool hands out at most; None without a bound.
        in_use: How many are out now.
        left_out: Whether units do without it now.

    """

    url: str
    capacity: int | None
    in_use: int
    left_out: bool
