"""The shop that ``examples/<host>/app.py`` opens on each host: everything of it in which the hosts do not differ.

================  ======================================================================================================
``models.py``     accounts, payments, orders: declarative models
``trade.py``      what the shop does when it is asked: functions of a ``Session``
``jobs.py``       what it does without being asked: functions of a ``Session``
``pages.py``      how it looks
``threads.py``    its day on a ``Database``: tables, courier, scheduled jobs, in threads
``tasks.py``      the same on an ``AsyncDatabase``, on the event loop
``servers.py``    starts the host's server, and ends it at SIGTERM or Ctrl-C
``settings.py``   where its data is, and on which port it listens
================  ======================================================================================================

Look for what is *not* there: no ``sessionmaker``, no ``commit()``, no ``rollback()``, no ``session.close()``. Requests, jobs and
the courier are units of work of one database. Each begins at its first use of the database, ends once, and holds one of the five
connections only while it needs one, so that 24 clients, the jobs and the courier get along on them.
"""
