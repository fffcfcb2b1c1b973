"""A market on web.py: pages, JSON, scheduled jobs and a plain thread, all on one ``Database``. Begin with ``app.py``."""
