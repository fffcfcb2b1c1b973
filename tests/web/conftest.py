"""Fixtures of the web's tests."""

from support.telling import stored, told  # noqa: F401 - fixtures
