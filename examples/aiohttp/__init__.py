"""The shop on aiohttp."""
