"""Pyramid on waitress."""

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPSeeOther, exception_response
from pyramid.response import FileResponse, Response
from pyramid.wsgi import wsgiapp2

from contract.host import File, Host, Mistaken, Raised, Stream, driven, given, in_thread

from support import http
from support.face import drive


class Pyramid(Host):
    name = "pyramid"
    reads_ahead = True  # waitress

    def application(self, face, probes, **boundary):
        self.asked = (face, probes, boundary)
        with self.configured(face, probes, **boundary) as config:
            return config.make_wsgi_app()

    def within(self, face, probes, inner):
        with Configurator() as config:
            self.routed(config, inner)
            inside = config.make_wsgi_app()
        with self.configured(face, probes) as config:
            config.add_route("inner", "/inner/*subpath")
            config.add_view(wsgiapp2(inside), route_name="inner")
            return config.make_wsgi_app()

    def configured(self, face, probes, **boundary):
        config = Configurator(settings={"tenure.db": face.db, **{f"tenure.{name}": value for name, value in boundary.items()}})
        config.include("tenure.web.pyramid")
        self.routed(config, probes)
        config.add_exception_view(lambda error, request: Response("handled", 409), context=Mistaken)
        return config

    def routed(self, config, probes):
        def page(request):
            try:
                answer = drive(given(probes[request.path_info], _form(request))())
            except Raised as raised:
                if raised.location:
                    raise HTTPSeeOther(raised.location) from None
                raise exception_response(raised.status) from None
            if isinstance(answer, Stream):
                return Response(app_iter=driven(answer.parts), status=answer.status)
            if isinstance(answer, File):
                response = FileResponse(answer.path, request)
                response.conditional_response, response.etag = True, answer.path.name
                return response
            in_thread(answer.after)
            return Response(answer.text, answer.status)

        for path in probes:
            config.add_route(path, path)
            config.add_view(page, route_name=path)

    def beside(self, app, second):
        face, probes, boundary = self.asked
        with self.configured(face, probes, **boundary) as config:
            config.add_units(second, "second")
            return config.make_wsgi_app()

    def serve(self, app, threads):
        return http.waitress(app, threads)


def _form(request):
    async def form():
        return request.POST["name"], len(request.POST["file"].file.read())

    return form


HOSTS = [Pyramid()]
