"""The shop on Falcon."""
