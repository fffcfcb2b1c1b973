"""The shop on Quart."""
