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
