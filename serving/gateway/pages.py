"""The pages for a person: the list of models, a model's own page, the API's page, and the files that they load."""

from pathlib import Path

import flask_swagger_ui
from flask import Blueprint, Response, render_template

from bookserve import clients
from bookserve.clients.inputs import pictures
from bookserve.clients.store_contracts import is_name
from bookserve.serving.gateway.caching import FRESH
from bookserve.serving.gateway.problems import Problem

FOLDER = Path(__file__).parent
_FILES = FOLDER / "page"
_CLIENT = Path(clients.__file__).parent / "javascript" / "bookserve.js"
_VIEWER = Path(flask_swagger_ui.__file__).parent / "dist"  # Swagger UI, Apache-2.0
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}


def routes() -> Blueprint:
    """The routes. What a page shows of models it asks the API for, so that it can ask again."""
    blueprint = Blueprint("pages", __name__, template_folder=str(FOLDER / "templates"))
    files = {
        path.relative_to(_FILES).as_posix(): path.read_bytes() for path in _FILES.rglob("*") if path.suffix in _TYPES
    }

    # The page asks by the client that programs have.
    files["bookserve.js"] = _CLIENT.read_bytes()
    viewer = {name: (_VIEWER / name).read_bytes() for name in ("swagger-ui-bundle.js", "swagger-ui.css")}

    taken = f"{', '.join(pictures.FORMATS[:-1])} and {pictures.FORMATS[-1]}"
    accept = ",".join((*pictures.MEDIA_TYPES, *pictures.SUFFIXES))

    def page(template: str, **values: str) -> Response:
        made = render_template(template, taken=taken, accept=accept, **values)
        return Response(made, content_type="text/html; charset=utf-8", headers=FRESH)

    @blueprint.get("/")
    def show_models() -> Response:
        return page("models.html")

    @blueprint.get("/models/<name>")
    def show_model(name: str) -> Response:
        if not is_name(name):
            raise Problem(404, "no model has such a name; GET / lists the models")
        return page("model.html", name=name)

    @blueprint.get("/docs")
    def show_api() -> Response:
        return page("docs.html")

    @blueprint.get("/docs/<name>")
    def send_viewer(name: str) -> Response:
        if name not in viewer:
            raise Problem(404, "the page has no such file")
        return Response(viewer[name], content_type=_TYPES[Path(name).suffix], headers=FRESH)

    @blueprint.get("/page/<path:name>")
    def send_file(name: str) -> Response:
        if name not in files:
            raise Problem(404, "the page has no such file")
        return Response(files[name], content_type=_TYPES[Path(name).suffix], headers=FRESH)

    return blueprint
