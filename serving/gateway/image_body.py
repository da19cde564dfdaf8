"""What the image models read from a request: picture files of a form or as base64, a raw picture, or pixels."""

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from flask import Request

from bookserve.clients.inputs import pictures
from bookserve.serving.gateway import openapi, request_parsing
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.problems import Problem, bad_value, shown

_BASE64 = {"type": "string", "contentEncoding": "base64"}
Made = TypeVar("Made")
_SMALLER = f"a picture of at most {pictures.MAX_PIXELS // 1_000_000} million pixels and {pictures.MAX_BYTES >> 20} MiB"
_LEVEL = {"type": "integer", "minimum": 0, "maximum": 255}


@dataclass(frozen=True)
class ImageBody:
    """How one model takes images.

    `height` and `width` are in pixels, `channels` the numbers a pixel: 0 for a bare grey level. `decode` turns a
    file's bytes into the model's form and raises PictureError; `what` names a good picture in messages, and `curl` is
    a command that sends one. `show` gives a PNG of at most so many pixels of a file, for a page; it may keep what
    `decode` would give, as a page asks both.
    """

    height: int
    width: int
    channels: int
    decode: Callable[[bytes], npt.NDArray[np.uint8]]
    show: Callable[[bytes, int], bytes]
    what: str
    curl: str

    @property
    def example(self) -> dict[str, Any]:
        """A JSON body that works: a black picture."""
        pixel: object = [0] * self.channels if self.channels else 0
        return {"pixels": [[pixel] * self.width] * self.height}

    def images(self, request: Request, limits: Limits) -> npt.NDArray[np.uint8]:
        """The request's images as uint8 [n,height,width] or [n,height,width,channels]; Problem names what is wrong."""
        media_type = request_parsing.media_type(request)
        if media_type == request_parsing.JSON:
            body = request_parsing.read_json(request, limits, self.example)
            if "b64" in body:
                return self._base64(request_parsing.only_field(body, "b64", self.example), limits)
            return self._pixels(request_parsing.only_field(body, "pixels", self.example), limits)
        if media_type == request_parsing.FORM:
            uploads = request_parsing.read_files(request, "file", limits, self.curl)
            return np.stack([self._file(upload, f"file[{index}]") for index, upload in enumerate(uploads)])
        if media_type in pictures.MEDIA_TYPES:
            return self._file(request.get_data(cache=False), "body")[None]
        raise request_parsing.unsupported(
            media_type, (request_parsing.FORM, request_parsing.JSON, *pictures.MEDIA_TYPES), self.curl
        )

    def preview(self, request: Request, limits: Limits, side: int, *, given: bool) -> bytes:
        """The one picture of a form as a PNG of at most `side` pixels; Problem names what is wrong.

        `given`: as the model is given it, of the model's height and width.
        """
        media_type = request_parsing.media_type(request)
        if media_type != request_parsing.FORM:
            raise request_parsing.unsupported(media_type, (request_parsing.FORM,), self.curl)
        (upload,) = request_parsing.read_files(request, "file", replace(limits, items=1), self.curl)
        if given:
            return self._made(upload, "file", lambda content: pictures.file_of(self.decode(content)))
        return self._made(upload, "file", lambda content: self.show(content, side))

    def openapi(self, limits: Limits) -> dict[str, Any]:
        """The request body's schema for each media type."""
        pixel = openapi.list_of(_LEVEL, self.channels) if self.channels else _LEVEL
        image = openapi.list_of(openapi.list_of(pixel, self.width), self.height)
        text = f"{self._dimensions} whole numbers from 0 to 255, or a list of such"
        files = {
            "type": "array",
            "minItems": 1,
            "maxItems": limits.items,
            "items": {"type": "string", "format": "binary"},
        }
        return {
            request_parsing.FORM: {"schema": openapi.struct({"file": files})},
            **openapi.json_choice(
                {
                    "pixels": openapi.one_or_many(image, limits.items, text),
                    "b64": openapi.one_or_many(_BASE64, limits.items, "A picture file as base64, or a list of such."),
                },
                self.example,
            ),
            **{media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in pictures.MEDIA_TYPES},
        }

    @property
    def _dimensions(self) -> str:
        return f"[{self.height}][{self.width}]" + (f"[{self.channels}]" if self.channels else "")

    def _file(self, content: bytes, field: str) -> npt.NDArray[np.uint8]:
        return self._made(content, field, self.decode)

    def _made(self, content: bytes, field: str, make: Callable[[bytes], Made]) -> Made:
        try:
            return make(content)
        except pictures.PictureTooLarge as error:
            raise Problem(413, f"{field}: {error}", field=field, expected=_SMALLER) from error
        except pictures.PictureError as error:
            given = f"{len(content)} bytes: {error}"
            raise bad_value(field, self.what, given, self.curl) from error

    def _base64(self, value: object, limits: Limits) -> npt.NDArray[np.uint8]:
        """Picture files as base64: a text, or a list of texts."""
        items = request_parsing.one_or_many(value, "b64", isinstance(value, list), limits.items, self.example)
        files = []
        for text, name in ((item, name) for name, item in items):
            try:
                files.append((base64.b64decode(text, validate=True), name))
            except (TypeError, ValueError) as error:
                raise bad_value(name, f"{self.what} as base64", shown(text), self.example) from error
        return np.stack([self._file(content, name) for content, name in files])

    def _pixels(self, value: object, limits: Limits) -> npt.NDArray[np.uint8]:
        """Levels of one image or of a list of images, told apart by how deep they nest."""
        self._need_list(value, "pixels", f"a list of {self.height} rows, or a list of pictures")
        depth, inner = 0, value
        while isinstance(inner, list) and inner:
            depth, inner = depth + 1, inner[0]
        many = depth > (3 if self.channels else 2)
        items = request_parsing.one_or_many(value, "pixels", many, limits.items, self.example)
        return np.stack([self._image(image, name) for name, image in items])

    def _image(self, value: object, field: str) -> npt.NDArray[np.uint8]:
        rows = self._need_list(value, field, f"a list of {self.height} rows", self.height)
        of = f"pixels of {self.channels} levels" if self.channels else "whole numbers"
        for y, row in enumerate(rows):
            wanted = f"a list of {self.width} {of}"
            for x, pixel in enumerate(self._need_list(row, f"{field}[{y}]", wanted, self.width)):
                place = f"{field}[{y}][{x}]"
                if not self.channels:
                    self._need_level(pixel, place)
                    continue
                levels = self._need_list(pixel, place, f"a list of {self.channels} levels", self.channels)
                for channel, level in enumerate(levels):
                    self._need_level(level, f"{place}[{channel}]")
        return np.array(rows, dtype=np.uint8)

    def _need_level(self, value: object, field: str) -> None:
        if type(value) is not int or not 0 <= value <= 255:
            raise bad_value(field, "a whole number from 0 to 255", shown(value), self.example)

    def _need_list(self, value: object, field: str, expected: str, size: int | None = None) -> list[Any]:
        if not isinstance(value, list) or not value or (size is not None and len(value) != size):
            raise bad_value(field, expected, shown(value), self.example)
        return value
