"""FastAPI on uvicorn: ``async def`` endpoints for an `AsyncDatabase`, ``def`` endpoints for a `Database`."""

from fastapi import FastAPI

from contract.host import Mistaken
from contract.hosts.starlette import METHODS, OnStarlette, handled


class OnFastAPI(OnStarlette):
    name = "fastapi"

    def routed(self, endpoints, **given):
        app = FastAPI(exception_handlers={Mistaken: handled}, **given)
        for path, endpoint in endpoints.items():
            app.add_api_route(path, endpoint, methods=METHODS)
        return app


HOSTS = [OnFastAPI()]
