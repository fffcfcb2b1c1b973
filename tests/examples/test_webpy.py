"""The shop on web.py, in this process: its pages; and what all hosts share: its jobs and its courier."""

import json
import logging
import runpy
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from examples.shop import trade
from examples.shop.models import Base, JobRun, Order
from examples.shop.trade import ACCOUNTS, OPENING

TOTAL = ACCOUNTS * OPENING


class Market(SimpleNamespace):
    """What the module of the host defines: ``db``, ``shop``, ``site``."""


@pytest.fixture
def market(tmp_path, watch, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py", f"sqlite:///{tmp_path / 'market.db'}"])
    made = Market(**runpy.run_module("examples.webpy.app"))
    watch(made.db)
    Base.metadata.create_all(made.db.engine)
    made.db.unit(trade.open_accounts)()
    return made


class Browser:
    """A client without a network: web.py's own ``app.request``."""

    def __init__(self, market: Market) -> None:
        self.request = market.site.request

    def get(self, path: str) -> Any:
        return self.request(path)

    def order(self, **form: Any) -> Any:
        return self.request("/orders", method="POST", data={"token": "t", "buyer": 1, "seller": 2, "price": 5, **form})

    def transfer(self, **asked: Any) -> Any:
        data = json.dumps({"token": "t", "source": 1, "target": 2, "amount": 5, **asked})
        return self.request("/transfers", method="POST", data=data)

    def balances(self) -> dict[str, int]:
        return json.loads(self.get("/accounts").data)["balances"]


@pytest.fixture
def browser(market):
    return Browser(market)


def rows(market: Market, table: str) -> int:
    with market.db.engine.connect() as connection:
        return connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()


def test_a_redirect_stores_the_order_and_its_payment(market, browser):
    """A raised redirect is an answer like any other: what was done before it is stored, and the next page shows it."""
    answer = browser.order(token="<1>", item="apples & pears")
    number = answer.headers["Location"].rpartition("/")[2]
    page = browser.get(f"/orders/{number}").data.decode()

    assert answer.status == "303 See Other"
    assert "&lt;1&gt;" in page
    assert "apples &amp; pears" in page
    assert (browser.balances()["1"], browser.balances()["2"]) == (OPENING - 5, OPENING + 5)


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"item": "lemons"}, "500 Internal Server Error"),
        ({"friend": 999}, "409 Conflict"),
        ({"token": "taken"}, "409 Conflict"),
        ({"price": -5}, "409 Conflict"),
        ({"price": OPENING + 1}, "400 Bad Request"),
        ({"buyer": "nobody"}, "500 Internal Server Error"),
    ],
    ids=["raises", "at COMMIT", "twice", "check", "too dear", "no number"],
)
def test_an_order_that_fails_leaves_nothing(market, browser, caplog, form, status):
    """Whichever way it fails, be it in COMMIT behind a redirect: neither order nor payment is stored, and the unit has ended."""
    browser.order(token="taken")
    before = browser.balances(), rows(market, "shop_order"), rows(market, "shop_payment")
    with caplog.at_level(logging.DEBUG, "tenure"):
        answer = browser.order(**form)
    units = [record.getMessage() for record in caplog.records]

    assert answer.status == status
    assert (browser.balances(), rows(market, "shop_order"), rows(market, "shop_payment")) == before
    assert len(units) == 1
    assert "rolled back" in units[0]
    assert "status 303" not in units[0]


def test_a_transfer_is_stored_once(market, browser):
    """JSON: 201 moves the money, the same token again does not, and too much is a 400 that moves nothing."""
    first = browser.transfer()
    again = browser.transfer()
    too_much = browser.transfer(token="u", amount=10**6)

    assert [one.status for one in (first, again, too_much)] == ["201 Created", "409 Conflict", "400 Bad Request"]
    assert browser.balances()["2"] == OPENING + 5
    assert rows(market, "shop_payment") == 1


def test_the_pages_show_what_is_stored(market, browser):
    """The first page, an account, its statement and the status agree; names are escaped; what is not there is a 404."""
    browser.transfer(source=3, target=4, amount=7)
    home, account = (browser.get(path).data.decode() for path in ("/", "/accounts/3"))
    statement = browser.get("/accounts/3/statement").data.decode().splitlines()

    assert f'id="total">{TOTAL}<' in home
    assert "&lt;owner 1&gt; &amp; co" in home
    assert f'id="balance">{OPENING - 7}<' in account
    assert statement == ["payment,source,target,amount", "1,3,4,7", "end,,,"]
    assert json.loads(browser.get("/status").data)["in_use"] == 0
    assert [browser.get(path).status for path in ("/accounts/999", "/orders/999")] == ["404 Not Found"] * 2


def test_the_courier_ships_every_stored_order_and_no_other(market, browser):
    """The courier hears of an order after its COMMIT, and only then; what was left from an earlier day is shipped too."""
    market.db.unit(trade.order)({"token": "yesterday", "buyer": 1, "seller": 2, "price": 5})
    market.shop.open()
    for form in ({"token": "a"}, {"token": "b", "item": "lemons"}, {"token": "c", "friend": 999}, {"token": "d"}):
        browser.order(**form)
    market.shop.close()
    with market.db.unit(readonly=True) as session:
        shipped = session.scalars(sa.select(Order.token).where(Order.shipped).order_by(Order.id)).all()

    assert shipped == ["yesterday", "a", "d"]


def test_a_job_that_raises_leaves_no_row(market):
    """On the scheduler's own threads: exactly the runs that returned have their row, and the balances come to the same sum."""
    returned, raised = set(), []

    def listen(event):
        returned.add(event.retval) if event.exception is None else raised.append(event.exception)

    from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED

    market.shop.scheduler.add_listener(listen, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    market.shop.open()
    deadline = time.monotonic() + 20
    while not (raised and len(returned) > 4) and time.monotonic() < deadline:
        time.sleep(0.02)
    market.shop.close()
    with market.db.unit(readonly=True) as session:
        stored = set(session.scalars(sa.select(JobRun.token)))
        total = session.scalar(sa.text("SELECT sum(balance) FROM shop_account"))

    assert raised
    assert stored == returned
    assert total == TOTAL
