"""Fixtures of the jobs' tests."""

from support.telling import stored, told  # noqa: F401 - fixtures
