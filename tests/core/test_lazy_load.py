"""A lazy load where nothing can be awaited."""

import pytest
from sqlalchemy import select
from sqlalchemy.exc import MissingGreenlet

from support.models import Order, User


@pytest.mark.faces("async")
async def test_a_lazy_load_outside_of_an_await_costs_no_connection(face):
    """R11: what cannot be loaded raises SQLAlchemy's own error with the line and the cure, and no connection is lost by it."""
    async with face.unit() as session:
        session.add(User(name="ada", orders=[Order()]))

    async with face.unit() as session:
        ada = await session.scalar(select(User))
        idle = face.pool.checkedin()
        with pytest.raises(MissingGreenlet) as caught:
            ada.orders  # noqa: B018
        assert face.pool.checkedin() == idle
        await session.run_sync(lambda _: ada.orders)

    assert [order.user_id for order in ada.orders] == [ada.id]
    (note,) = caught.value.__notes__
    assert note.startswith("tenure: Order was to be loaded at test_lazy_load.py:20, where nothing can be awaited.")
    assert caught.value.code == "xd2s"
