"""A plain WSGI application in ``UnitMiddleware``, on two servers."""

import sys
from http import HTTPStatus

from contract.host import File, Host, Mistaken, Raised, Stream, driven, given, in_thread
from tenure.web.wsgi import UnitMiddleware

from support import http
from support.face import drive


class Wsgi(Host):
    ranges = False

    def __init__(self, name, server):
        self.name = name
        self.serve = server

    def application(self, face, probes, **boundary):
        def app(environ, start_response):
            def start(status, *headers, **more):
                start_response(f"{status} {HTTPStatus(status).phrase}", [("Content-Type", "text/plain"), *headers], **more)

            try:
                answer = drive(given(probes[environ["PATH_INFO"]], _read(environ))())
            except Raised as raised:
                start(raised.status, *([("Location", raised.location)] if raised.location else []))
                return [b"raised"]
            except Mistaken:
                start(409, exc_info=sys.exc_info())
                return [b"handled"]
            if isinstance(answer, File):
                start(200)
                if environ["REQUEST_METHOD"] == "HEAD":
                    return []
                return (
                    environ["wsgi.file_wrapper"](answer.path.open("rb"))
                    if "wsgi.file_wrapper" in environ
                    else _parts(answer.path)
                )
            start(answer.status)
            if isinstance(answer, Stream):
                return driven(answer.parts)
            in_thread(answer.after)
            return [answer.text.encode()]

        return UnitMiddleware(app, face.db, **boundary)

    def within(self, face, probes, inner):
        outside, inside = self.application(face, probes), self.application(face, inner)

        def app(environ, start_response):
            name, _, path = environ["PATH_INFO"][1:].partition("/")
            if name == "inner":
                return inside({**environ, "SCRIPT_NAME": "/inner", "PATH_INFO": f"/{path}"}, start_response)
            return outside(environ, start_response)

        return UnitMiddleware(app, face.db)

    def beside(self, app, second):
        return UnitMiddleware(app, second)


def _read(environ):
    """A host without forms: all of the body is the file."""

    async def read():
        size, length = 0, int(environ["CONTENT_LENGTH"])
        while size < length:
            if not (part := environ["wsgi.input"].read(min(0x10000, length - size))):
                raise EOFError
            size += len(part)
        return environ["QUERY_STRING"], size

    return read


def _parts(path):
    with path.open("rb") as file:
        while part := file.read(0x10000):
            yield part


HOSTS = [Wsgi("wsgi-cheroot", http.cheroot), Wsgi("wsgi-wsgiref", http.wsgiref)]
