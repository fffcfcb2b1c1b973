"""A plain WSGI application in ``UnitMiddleware``, on two servers."""

import sys
from http import HTTPStatus

from contract.host import Host, Mistaken, Raised, Stream, driven, in_thread
from tenure.web.wsgi import UnitMiddleware

from support import http
from support.face import drive


class Wsgi(Host):
    def __init__(self, name, server):
        self.name = name
        self.serve = server

    def application(self, face, probes, **boundary):
        def app(environ, start_response):
            def start(status, *headers, **more):
                start_response(f"{status} {HTTPStatus(status).phrase}", [("Content-Type", "text/plain"), *headers], **more)

            try:
                answer = drive(probes[environ["PATH_INFO"]]())
            except Raised as raised:
                start(raised.status, *([("Location", raised.location)] if raised.location else []))
                return [b"raised"]
            except Mistaken:
                start(409, exc_info=sys.exc_info())
                return [b"handled"]
            start(answer.status)
            if isinstance(answer, Stream):
                return driven(answer.parts)
            in_thread(answer.after)
            return [answer.text.encode()]

        return UnitMiddleware(app, face.db, **boundary)

    def beside(self, app, second):
        return UnitMiddleware(app, second)


HOSTS = [Wsgi("wsgi-cheroot", http.cheroot), Wsgi("wsgi-wsgiref", http.wsgiref)]
