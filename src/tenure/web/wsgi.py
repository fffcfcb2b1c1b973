"""Any WSGI application: one unit for each request, settled before ``start_response`` is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, Unpack

from tenure.core.database import Database
from tenure.web.answers import refusal
from tenure.web.blocking import BlockingBody, BlockingBoundary, BlockingRequest
from tenure.web.boundary import Rules

WSGIApplication: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]


class UnitMiddleware:
    """Wraps a WSGI application: ``app = UnitMiddleware(app, db)``.

    COMMIT is done before the first byte leaves. If it fails, the error goes to the server, which answers 500. An ``Overloaded`` that
    the application has not caught is answered with a 503.

    Args:
        app: The application.
        database: Whose units its requests are.
        rules: ``commit_if=`` replaces the rule that a status below 400 commits; these and the others as in ``Boundary``.

    """

    def __init__(
        self,
        app: WSGIApplication,
        database: Database,
        **rules: Unpack[Rules],
    ) -> None:
        self.app = app
        self.boundary = BlockingBoundary(database, **rules)

    @classmethod
    def around(cls, app: WSGIApplication, boundary: BlockingBoundary) -> UnitMiddleware:
        """Wrap *app* for a framework that shares *boundary*."""
        made = cls.__new__(cls)
        made.app, made.boundary = app, boundary
        return made

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        if self.boundary.inside():
            return self.app(environ, start_response)
        request = _Request(self.boundary, environ, start_response)
        try:
            return request.begin(self.app(environ, request.start))
        except BaseException as error:
            request.finish(error)
            refused = request.refuse(error)
            if refused is None:
                raise
            return refused
        finally:
            request.leave(request.token)


def is_whole(body: Any, environ: dict[str, Any]) -> bool:
    """Whether no code of the application runs while *body* is sent: it is there, or a file that the server may send by itself."""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(body, (list, tuple)) or (isinstance(wrapper, type) and isinstance(body, wrapper))


class _Request(BlockingRequest):
    """A request whose answer is withheld until its work is settled."""

    withheld: tuple[Any, ...] | None = None  # what the application wants to answer
    begun = False
    write: Any = None

    def __init__(self, boundary: BlockingBoundary, environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        name = f"{environ.get('REQUEST_METHOD', '?')} {environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
        super().__init__(boundary, name, environ.get("HTTP_COOKIE"), environ)
        self.start_response = start_response

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], Any]:
        """The ``start_response`` that the application sees."""
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
        answer = self.withheld
        if self.settled is None:
            self.settle(int(answer[0].split(None, 1)[0]))
        self.begun = True
        if self.client is not None or self.together is not None:
            secure = self.given.get("wsgi.url_scheme") == "https"
            cookies = [("Set-Cookie", cookie) for cookie in self.set_cookies(secure=secure)]
            answer = (answer[0], [*answer[1], *cookies], *answer[2:])
        self.write = self.start_response(*answer)
        self.withheld = ()  # exc_info must not be kept

    def refuse(self, error: BaseException) -> list[bytes] | None:
        """The whole answer for *error*, if it says that the client may come again and nothing was sent yet."""
        refused = None if self.begun else refusal(error)
        if refused is None:
            return None
        self.start_response(refused.status, [("Content-Type", "text/plain"), *refused.headers.items()])
        return [f"{refused.status}\n".encode()]

    def begin(self, iterable: Iterable[bytes]) -> Iterable[bytes]:
        """The body to send for the application's *iterable*."""
        if self.withheld is not None and (self.whole or is_whole(iterable, self.given)):
            self.release()
            self.finish()
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
