"""The shop on Sanic."""
