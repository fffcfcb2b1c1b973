"""Processes of one application on one PostgreSQL: orders, relays of an outbox, and schedulers that fire one job; relays and schedulers
are killed at random. ``python -m examples.cluster`` runs it and ends with the account.
"""
