"""Programs of the tests begin with this: ``python program.py gevent URL`` is patched before anything else is imported."""

import sys

LIBRARY = sys.argv[1]

if LIBRARY == "gevent":
    from gevent import monkey

    monkey.patch_all()
    import gevent
    from gevent import Timeout, sleep, spawn

    def wait_for(greenlets):
        gevent.joinall(greenlets)

    if "psycopg2" in sys.argv[2]:  # as psycogreen has it; eventlet brings its own
        import psycopg2.extensions
        from gevent.socket import wait_read, wait_write

        WAYS = {psycopg2.extensions.POLL_READ: wait_read, psycopg2.extensions.POLL_WRITE: wait_write}

        def wait(connection):
            while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
                WAYS[state](connection.fileno())

        psycopg2.extensions.set_wait_callback(wait)

else:
    import eventlet

    eventlet.monkey_patch()
    from eventlet import Timeout, sleep, spawn  # noqa: F401

    def wait_for(greenlets):
        for one in greenlets:
            try:
                one.wait()
            except BaseException:
                pass
