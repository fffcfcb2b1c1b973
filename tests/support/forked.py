"""Children of the test's own process, which say what they found and end without Python's tidying up."""

import asyncio
import os
import pickle
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from support.face import Face, drive


class Child:
    """A forked child that runs *work*, a coroutine function, in the manner of *face*."""

    def __init__(self, face: Face, work: Callable[[], Any]) -> None:
        read, write = os.pipe()
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # Python 3.12 counts the threads
            self.pid = os.fork()
        if not self.pid:
            try:
                os.write(write, pickle.dumps((asyncio.run if face.is_async else drive)(work())))
            except BaseException:
                os.write(write, pickle.dumps(AssertionError(traceback.format_exc())))
            finally:
                os._exit(0)
        os.close(write)
        self._said = os.fdopen(read, "rb")

    def result(self) -> Any:
        """What *work* gave; what it raised is raised here."""
        with self._said:
            said = self._said.read()
        os.waitpid(self.pid, 0)
        result = pickle.loads(said)
        if isinstance(result, AssertionError):
            raise result
        return result
