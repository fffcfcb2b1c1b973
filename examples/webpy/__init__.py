"""The shop on web.py."""
