"""The shop on Pyramid."""
