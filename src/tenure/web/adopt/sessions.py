"""Sessions that an extension would make, and are a unit's: of one database, with an engine for each of the extension's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from tenure.core.database import Database
from tenure.core.options import FINAL
from tenure.core.session import UnitSession
from tenure.core.unit import BaseUnit
from tenure.exceptions import BadOption

_OURS = FINAL - {"bind", "binds"}  # the extension gives these itself


def refuse_final(given: Mapping[str, Any]) -> None:
    """Raise BadOption for what tenure decides itself, among the arguments that the extension gives its sessions."""
    for name, value in given.items():
        if name in _OURS and value is not None:
            raise BadOption(f"session_options[{name!r}]: tenure sets this itself. Leave it out.")


def options_now(factory: Any) -> dict[str, Any]:
    """What the extension gives a session at this moment: ``configure()`` may have changed it. What tenure decides is left out."""
    return {name: value for name, value in factory.kw.items() if name == "binds" or name not in FINAL}


class AdoptedDatabase(Database):
    """A ``Database`` whose sessions are those that the extension would make, and are a unit's.

    Args:
        factory: The extension's ``sessionmaker``.
        engines: Its engines, by their names.
        default: The name of the one that is this database.
        more: Arguments for each session besides those of *factory*.
        options: Of the ``Database``.

    """

    def __init__(
        self, factory: Any, engines: Mapping[Any, Engine], default: Any, more: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        refuse_final(factory.kw)
        self._factory = factory
        self._more = more
        self._has_default = default in engines
        super().__init__(engines[default] if self._has_default else next(iter(engines.values())), **options)
        made: Any = type("AdoptedSession", (AdoptedSession, UnitSession, factory.class_), {"made_by": factory.class_})
        self.session_class = made

    def new_session(self, unit: BaseUnit[Session]) -> tuple[Session, UnitSession]:
        """A session as the extension would make it now."""
        session = self.session_class(unit, **{**options_now(self._factory), **self._more})
        if not self._has_default:
            session.bind = None
        return session, session


class AdoptedSession(Session):
    """Put before a unit's session and that of the extension: the latter chooses the engine, the former how it is used."""

    made_by: type[Session]
    _supply: Any
    _depth: int

    def __init__(self, unit: BaseUnit[Any], *, binds: Mapping[Any, Any] | None = None, **options: Any) -> None:
        super().__init__(unit, **options)  # type: ignore[arg-type]
        for key, bind in (binds or {}).items():
            Session.bind_mapper(self, key, bind)  # which a unit's session refuses; here get_bind() asks for them

    def get_bind(self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **more: Any) -> Any:
        """The connection or engine for a statement. Binds besides the default one are SQLAlchemy's business."""
        chosen = bind or self.made_by.get_bind(self, mapper, clause=clause, **more)
        alone = _instead_of(chosen) if self._depth else None
        if alone is not None:
            bind = alone
        elif chosen is not self._supply.engine:
            bind = chosen
        found = super().get_bind(mapper, clause=clause, bind=bind, **more)
        if alone is not None:
            self.join_transaction_mode = "create_savepoint"
        return found


def _instead_of(engine: Any) -> Any:
    """The connection that stands in place of those of *engine*, as within ``test_isolation()``, which patches ``engine.connect``."""
    connect = vars(engine).get("connect") if isinstance(engine, Engine) else None
    return None if connect is None else connect()
