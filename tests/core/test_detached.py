import pickle
import re

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import defer, selectinload
from sqlalchemy.orm.exc import DetachedInstanceError

from support.models import Item, Order, User
from support.probe import line, outside

one = pytest.mark.drivers("sqlite", "aiosqlite")
some = pytest.mark.drivers("sqlite", "psycopg", "aiosqlite", "asyncpg")


@pytest.fixture
def orders(face):
    """A user with an order of one item."""
    outside(face, sa.insert(User).values(name="ada", balance=0))
    outside(face, sa.insert(Order).values(user_id=1, note="tea"))
    outside(face, sa.insert(Item).values(order_id=1, name="cup", quantity=1))


def noted(error):
    (note,) = error.value.__notes__
    return note


@some
@pytest.mark.usefixtures("orders")
async def test_a_relationship_that_was_not_loaded(face):
    """R11: SQLAlchemy's own error comes with a note: what was not loaded, by which line, where the unit ended, and the remedy."""
    opened = line(1)
    async with face.unit(name="GET /orders") as session:
        loaded = line(1)
        order = await session.scalar(sa.select(Order))
    with pytest.raises(DetachedInstanceError) as caught:
        order.items  # noqa: B018

    assert order.note == "tea"
    assert noted(caught) == (
        f"tenure: Order.items was not loaded: the Order came from {loaded} in unit 'GET /orders', ended at {opened}."
        f" Add .options(selectinload(Order.items)) at {loaded}. [detached]"
    )
    assert str(caught.value).startswith("Parent instance <Order at")


@some
@pytest.mark.usefixtures("orders")
async def test_a_deferred_column(face):
    """R11: the remedy for a column is to undefer it."""
    async with face.unit() as session:
        order = await session.scalar(sa.select(Order).options(defer(Order.note)))
    with pytest.raises(DetachedInstanceError) as caught:
        order.note  # noqa: B018

    assert "tenure: Order.note was not loaded" in noted(caught)
    assert "Add .options(undefer(Order.note))" in noted(caught)


@one
@pytest.mark.usefixtures("orders")
async def test_an_expired_object(face):
    """R11: what was expired, here by a rollback, is named by its attribute too."""
    async with face.unit() as session:
        order = await session.scalar(sa.select(Order))
        order.note = "coffee"
        await session.flush()
        await session.rollback()
    with pytest.raises(DetachedInstanceError) as caught:
        order.note  # noqa: B018

    assert re.match(r"tenure: Order\.\w+ was not loaded: the Order came from test_detached\.py:\d+ in unit", noted(caught))


@one
@pytest.mark.usefixtures("orders")
async def test_the_remedy_helps(face):
    """R11: what was loaded as the note says outlives the unit, nested objects too."""
    async with face.unit() as session:
        wanted = sa.select(Order).options(selectinload(Order.items), selectinload(Order.user))
        order = await session.scalar(wanted)

    assert [item.name for item in order.items] == ["cup"]
    assert order.user.name == "ada"


@one
@pytest.mark.usefixtures("orders")
async def test_objects_that_were_made_in_the_unit(face):
    """R11: an object that the unit has made is readable after it; what it never loaded is named with the unit's line."""
    opened = line(1)
    async with face.unit(name="make") as session:
        order = Order(user_id=1, note="cake")
        session.add(order)
    with pytest.raises(DetachedInstanceError) as caught:
        order.user  # noqa: B018

    assert (order.id, order.note) == (2, "cake")
    assert f"the Order came from {opened} in unit 'make', ended at {opened}." in noted(caught)


@one
@pytest.mark.usefixtures("orders")
async def test_an_object_from_elsewhere(face):
    """R11: an object that no unit has left behind has SQLAlchemy's error as ever, without a note."""
    with sa.orm.Session(sa.create_engine("sqlite://")) as session:
        order = Order(id=3, note="x", user_id=1)
        sa.orm.make_transient_to_detached(order)
    session.close()
    with pytest.raises(DetachedInstanceError) as caught:
        order.items  # noqa: B018

    assert getattr(caught.value, "__notes__", []) == []
    assert getattr(DetachedInstanceError("made by hand"), "__notes__", []) == []


@one
@pytest.mark.usefixtures("orders")
async def test_the_guard_can_be_switched_off(make_face):
    """R49: with the guard off no note is added."""
    face = make_face(guards={"detached": "off"})
    async with face.unit() as session:
        order = await session.scalar(sa.select(Order))
    with pytest.raises(DetachedInstanceError) as caught:
        order.items  # noqa: B018

    assert getattr(caught.value, "__notes__", []) == []


@one
@pytest.mark.usefixtures("orders")
async def test_objects_go_on_in_another_unit(face):
    """R11: an object that outlived its unit can be added to the next one, and loads there."""
    async with face.unit() as session:
        order = await session.scalar(sa.select(Order))
    async with face.unit() as session:
        session.add(order)
        items = await session.run_sync(lambda raw: list(order.items))

    assert [item.name for item in items] == ["cup"]


@one
@pytest.mark.usefixtures("orders")
async def test_objects_can_be_pickled(face):
    """R11: an object that a unit has left behind can be pickled, as caches and task queues do."""
    async with face.unit() as session:
        order = await session.scalar(sa.select(Order))
    again = pickle.loads(pickle.dumps(order))

    assert again.note == "tea"


@pytest.mark.drivers("aiosqlite", "asyncpg")
@pytest.mark.usefixtures("orders")
async def test_a_lazy_load_within_an_async_unit(small):
    """R11: reading what was not loaded where nothing can be awaited is SQLAlchemy's MissingGreenlet; the unit goes on."""
    face = small()
    async with face.unit() as session:
        order = await session.scalar(sa.select(Order))
        with pytest.raises(sa.exc.MissingGreenlet) as caught:
            order.items  # noqa: B018
        read = line(-1)
        items = await session.run_sync(lambda raw: list(order.items))
        assert face.out() == 0

    assert f"tenure: Item was to be loaded at {read}" in noted(caught)
    assert [item.name for item in items] == ["cup"]
