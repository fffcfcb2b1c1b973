"""The pytest plugin that adopts every application after its ``init_app``, and reports as ``plugin`` does."""

import os
from typing import Any

import pytest

from upstream.plugin import counted, pytest_runtest_logreport, pytest_sessionfinish

__all__ = ["pytest_configure", "pytest_runtest_logreport", "pytest_sessionfinish"]


def pytest_configure(config: pytest.Config) -> None:
    from flask_sqlalchemy import SQLAlchemy

    from tenure.web.flask import adopt

    if os.environ["TENURE_UPSTREAM_ADOPTS"] != "True":
        return
    init_app = SQLAlchemy.init_app

    def init_and_adopt(self: SQLAlchemy, app: Any) -> None:
        init_app(self, app)
        adopt(app)
        counted["swapped"] += 1

    SQLAlchemy.init_app = init_and_adopt  # type: ignore[method-assign]
