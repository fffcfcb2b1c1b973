"""The shop on Bottle."""
