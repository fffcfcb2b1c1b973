"""The market as the demonstration starts it: the same, with a probe in it."""

from __future__ import annotations

import os
from contextlib import closing

import web
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED

from examples.load.probe import Probe
from examples.webpy.app import Market, leave


def main() -> None:
    market = Market(os.environ["MARKET_DATABASE"])
    probe = Probe(market.db, act=lambda: web.ctx.get("env", {}).get("HTTP_X_ACT"))
    market.scheduler.add_listener(probe.job_ended, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    with closing(market.db):
        drained = market.serve()
        print(probe.last_line(), flush=True)
    leave(drained)


if __name__ == "__main__":
    main()
