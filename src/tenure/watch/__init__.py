"""Readers of events: logs, metrics and the page."""
