"""Any WSGI application: one unit for each request, settled before ``start_response`` is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, Unpack

from tenure.core.current import nobody
from tenure.core.database import Database
from tenure.web.blocking import BlockingBody, BlockingBoundary, BlockingRequest, is_whole, name_of
from tenure.web.boundary import Rules
from tenure.web.registration import Layer

WSGIApplication: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]


class UnitMiddleware(Layer[WSGIApplication, BlockingBoundary]):
    """Wraps a WSGI application: ``app = UnitMiddleware(app, db)``.

    COMMIT is done before the first byte leaves. If it fails, the error goes to the server, which answers 500. An ``Overloaded`` that
    the application has not caught is answered with a 503.

    Args:
        app: The application.
        database: Whose units its requests are.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    Raises:
        BadOption: An argument has a wrong type or value, or the application has units of *database* already.

    """

    def __init__(self, app: WSGIApplication, database: Database, **rules: Unpack[Rules]) -> None:
        super().__init__(app, "environ, start_response", lambda: BlockingBoundary(database, **rules))

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        boundary = self.boundary
        if boundary.place.get() is not nobody and boundary.inside():
            return self.app(environ, start_response)
        request = _Request(boundary, name_of(environ), environ)
        request.start_response = start_response
        try:
            return request.begin(self.app(environ, request.start))
        except BaseException as error:
            request.finish(error)
            refused = request.refused(error)
            # What was passed on at once is taken back.
            start_response(refused.status, refused.plain, *([sys.exc_info()] if request.withheld == () else []))
            return [refused.text.encode()]
        finally:
            request.left()


class _Request(BlockingRequest):
    """A request whose answer is withheld until its work is settled."""

    withheld: tuple[Any, ...] | None = None  # what the application wants to answer
    start_response: Callable[..., Any]
    write: Any = None

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], Any]:
        """The ``start_response`` that the application sees."""
        if self.settled is not None and exc_info is None and self.withheld is None and not (self.client or self.together):
            self.withheld = ()  # a framework's adapter had the answer, and settled it: passed on at once
            return self.start_response(status, headers)  # type: ignore[no-any-return]
        if self.begun:  # only an error may come now, and the server raises it
            return self.start_response(status, headers, exc_info)  # type: ignore[no-any-return]
        if self.withheld is not None and exc_info is None:
            raise AssertionError("the WSGI application called start_response again without exc_info")
        self.withheld = (status, headers) if exc_info is None else (status, headers, exc_info)
        return self.write_at_once

    def write_at_once(self, data: bytes) -> None:
        """The legacy ``write()``: it sends, so the work is settled first."""
        self.release()
        self.write(data)

    def release(self) -> None:
        """Settle the work by the status, then let the answer begin."""
        if self.begun:
            return
        if self.withheld is None:
            raise AssertionError("the WSGI application gave a body without calling start_response")
        if answer := self.withheld:  # else it was passed on at once
            more = self.starts(int(answer[0].split(None, 1)[0]))
            self.write = self.start_response(answer[0], [*answer[1], *more] if more else answer[1], *answer[2:])
            self.withheld = ()  # exc_info must not be kept
        self.begun = True

    def begin(self, iterable: Iterable[bytes]) -> Iterable[bytes]:
        """The body to send for the application's *iterable*."""
        if self.withheld is not None and (self.whole or is_whole(iterable, self.given)):
            self.release()
            self.whole = True
            return iterable
        body = BlockingBody(self, iterable)
        try:
            while self.withheld is None and body.ahead():
                pass  # a generator may call start_response as late as with its first chunk
            self.release()
        except BaseException as error:
            body.close(error)
            raise
        return body
