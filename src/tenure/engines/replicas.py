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


class Servers(NamedTuple):
    """The engines of one database, as its face knows them.

    Attributes:
        primary: That which may write.
        replicas: Those of the replicas.
        settings: When these are used.
        owned: Which of them all were made here, and so are closed here.

    """

    primary: Any
    replicas: list[Any]
    settings: Replicas
    owned: list[Any]


def servers(given: object, asked: object, options: dict[str, Any], make: Callable[[Any, dict[str, Any]], Any]) -> Servers:
    """The engines for what the user has *given* as a database and *asked* for as replicas, made or taken by *make*.

    Raises:
        BadOption: One of them is not what it should be, or a replica is not of the primary's kind.
        WrongDriver: A driver is for the other face.

    """
    primary = make(given, options)
    settings = asked if isinstance(asked, Replicas) else Replicas(asked)  # type: ignore[arg-type]
    replicas = _opened(settings, _sync(primary), options, make)
    owned = [made for made, one in zip((primary, *replicas), (given, *settings.servers), strict=True) if _is_address(one)]
    return Servers(primary, replicas, settings, owned)


def _is_address(given: object) -> bool:
    return isinstance(given, (str, URL))


def _sync(engine: Any) -> Engine:
    return getattr(engine, "sync_engine", engine)  # type: ignore[no-any-return]


def _opened(
    replicas: Replicas, primary: Engine, options: dict[str, Any], make: Callable[[Any, dict[str, Any]], Any]
) -> list[Any]:
    if replicas.max_lag is not None and primary.dialect.name != "postgresql":
        raise BadOption(f"Replicas(max_lag=…): {primary.dialect.name} does not tell how far it is behind. Leave it out.")
    engines: list[Any] = []
    for server in replicas.servers:
        address = _is_address(server)
        if address and (found := next((name for name in _ONE_SERVER if options.get(name)), None)):
            raise BadOption(f"{found}=… leads to one server, whatever a replica's URL says. Give the replicas as engines.")
        engine = make(server, options if address else {})
        sync = _sync(engine)
        if _family(sync) != _family(primary):
            raise BadOption(
                f"a replica is {sync.dialect.name}, and the primary is {primary.dialect.name}. Give replicas of that server."
            )
        if sync.url.query.get("vfs") == "memdb":
            raise BadOption("a replica is a database in memory, which would be empty. Give a file.")
        if sync is primary or any(sync is _sync(one) for one in engines):
            raise BadOption("an engine is given twice. Give each server one of its own.")
        engines.append(engine)
    return engines


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
