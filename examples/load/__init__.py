"""The load that proves the shop: 24 clients over real HTTP, and the account that is taken of them. It knows no framework.

    HOST=flask SECONDS=5 DB=postgres python -m examples.load

A shop on another host is driven by the same clients if it has the same pages and tables, and a line in ``examples/hosts.py``:

* ``python -m examples.watched HOST`` serves the database that ``MARKET_DATABASE`` names, prints its address as its first line, and
  on SIGTERM prints the last line of its ``Probe`` and ends with status 0;
* ``Probe`` is told how to find the header ``X-Act`` of the request that is current, and what became of each run of a job.

===============  ====================================================================================================
``demo.py``      what was asked for, on one host or on all
``run.py``       one run, from the first to the last
``clients.py``   what the clients do, and the book they keep of it
``places.py``    the database: a file, a PostgreSQL brought along, or one's own
``process.py``   the server, in a process of its own
``probe.py``     in that process: what tenure says became of every request and every job
``account.py``   holds book, probe and database against each other
``table.py``     shows it
``compare.py``   shows several hosts in one table
===============  ====================================================================================================
"""
