import pytest
from quart import Quart
from sqlalchemy.exc import IntegrityError

from tenure.exceptions import BadOption
from tenure.web.quart import Tenure

from support.asgi import run
from support.models import Pledge, User

pytestmark = [pytest.mark.faces("async"), pytest.mark.dialects("sqlite", "postgresql")]
alone = pytest.mark.drivers("aiosqlite")


def test_error_handlers_see_a_failing_commit(face, stored, told):
    """R14: the handler of an IntegrityError answers for a COMMIT that fails, as if the view had raised it."""
    app = Quart("test")
    Tenure(app, face.db)

    @app.post("/")
    async def pledge():
        face.db.session.add(User(name="ada"))
        await face.db.session.flush()
        face.db.session.add(Pledge(user_id=4711))
        return "a body for nobody", 201

    @app.errorhandler(IntegrityError)
    async def taken(error):
        return "taken", 409

    async def post():
        response = await app.test_client().post("/")
        return response.status_code, await response.get_data(as_text=True)

    assert run(face, post()) == (409, "taken")
    assert (stored(), face.out()) == ([], 0)
    assert told.closed() == [("POST /", "rolled back", "IntegrityError")]


@alone
def test_bad_registrations(face):
    """R51: what is wrong is said where the application is registered."""
    app = Quart("test")
    for wrong in (lambda: Tenure("app", face.db), lambda: Tenure(app), lambda: Tenure(app, "sqlite://")):
        with pytest.raises(BadOption):
            wrong()
    Tenure(database=face.db).init_app(app)
    with pytest.raises(BadOption, match="registered with 'main' already"):
        Tenure(app, face.db)
