"""The load that proves an example: 24 clients over real HTTP, and the account that is taken of them. It knows no framework.

A market on another host is driven by the same clients if it has the same pages and tables, and a module to start it:

* ``python -m MODULE`` serves the database that ``MARKET_DATABASE`` names, prints its address as its first line, and on SIGTERM
  prints the last line of its ``Probe`` and ends with status 0;
* ``Probe`` is told how to find the header ``X-Act`` of the request that is current, and what became of each run of a job.

===============  ====================================================================================================
``clients.py``   what the clients do, and the book they keep of it
``places.py``    the database: a file, a PostgreSQL brought along, or one's own
``process.py``   the server, in a process of its own
``probe.py``     in that process: what tenure says became of every request and every job
``account.py``   holds book, probe and database against each other
``table.py``     shows it
``run.py``       from the first to the last
===============  ====================================================================================================
"""
