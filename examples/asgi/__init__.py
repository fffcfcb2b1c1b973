"""The shop on ASGI, without a framework."""
