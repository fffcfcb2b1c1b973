"""A shop on two nodes, as it would run on many machines; here all of it is on this one: ``make cluster``.

==================  ==================================================================================================
what runs
------------------  --------------------------------------------------------------------------------------------------
``settings.py``     what a process is told by its environment; the roles, with their processes and pools
``models.py``       customers, orders, receipts, nights: declarative models
``shop.py``         the database and the outbox as every process has them, and an order being placed
``web.py``          takes orders over HTTP: Flask, on gunicorn by ``web_server.py``
``relay.py``        hands the messages of the outbox to RabbitMQ
``tasks.py``        the Celery worker, which mails receipts: at least once, and exactly once in effect
``scheduler.py``    fires the nightly job, on every node; ``once`` lets one of them run it
``ledger.py``       the world outside the database, which takes nothing back: mails that went out, lives of processes
------------------  --------------------------------------------------------------------------------------------------
what drives it
------------------  --------------------------------------------------------------------------------------------------
``process.py``      a program that is started, killed and started again; ``stop.py``: Ctrl-C
``servers.py``      the standby and PgBouncer, ``broker.py`` RabbitMQ
``nodes.py``        the processes of all nodes
``clients.py``      orders over HTTP, and asks again for as long as there is no answer
``chaos.py``        SIGKILL at random
``watch.py``        counts connections
``account.py``      holds against each other what clients were told, what is stored, and what is in the ledger
``table.py``        shows it
``run.py``          one run from the first to the last; ``demo.py`` understands what was asked for
==================  ==================================================================================================
"""
