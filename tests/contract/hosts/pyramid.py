"""Pyramid on waitress."""

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPSeeOther, exception_response
from pyramid.response import Response

from contract.host import Host, Mistaken, Raised, Stream, driven, in_thread
from tenure.web.wsgi import UnitMiddleware

from support import http
from support.face import drive


class Pyramid(Host):
    name = "pyramid"

    def application(self, face, probes, **boundary):
        settings = {f"tenure.{name}": value for name, value in boundary.items()}

        def page(request):
            try:
                answer = drive(probes[request.path_info]())
            except Raised as raised:
                if raised.location:
                    raise HTTPSeeOther(raised.location) from None
                raise exception_response(raised.status) from None
            if isinstance(answer, Stream):
                return Response(app_iter=driven(answer.parts), status=answer.status)
            in_thread(answer.after)
            return Response(answer.text, answer.status)

        with Configurator(settings={"tenure.db": face.db, **settings}) as config:
            config.include("tenure.web.pyramid")
            for path in probes:
                config.add_route(path, path)
                config.add_view(page, route_name=path)
            config.add_exception_view(lambda error, request: Response("handled", 409), context=Mistaken)
            return config.make_wsgi_app()

    def beside(self, app, second):
        return UnitMiddleware(app, second)

    def serve(self, app, threads):
        return http.waitress(app, threads)


HOSTS = [Pyramid()]
