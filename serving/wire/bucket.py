"""A folder in a bucket of Amazon S3, Google Cloud Storage or Azure: where the model server reads versions from, and
where the commands of the model store put them.

Addresses are `s3://BUCKET/PATH`, `gs://BUCKET/PATH` and `az://CONTAINER/PATH`. Credentials and endpoints come from the
environment variables that the clouds' own tools read. The library obstore does the work; it is the extra `buckets`, and
imported when it is needed.

What a bucket answers is not trusted: what is read of an object has the size that the listing said, from the object
that the listing meant, and the number of objects is bounded.
"""

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bookserve.serving.wire import missing_package

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, GCSConfig, ObjectStore, RetryConfig, S3Config

SCHEMES = ("s3", "gs", "az")
MAX_OBJECTS = 10_000  # that a version may have
_CHUNK = 1 << 20  # bytes at a time
_LISTING_SECONDS = 30.0  # for all pages of one listing
_CONNECT_SECONDS = 5.0
_READ_SECONDS = 30.0  # without a byte
_UPLOAD_CHUNK = 16 << 20
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}")
_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_CODE = re.compile(r"<Code>([A-Za-z0-9_.-]{1,80})</Code>|\"message\": ?\"([^\"]{1,200})\"")
_STATUS = re.compile(r"non-2xx status code: (\d{3} [A-Za-z -]{0,40})")
_MACHINE = "169.254.169.254"  # where a machine of a cloud asks for its own credentials
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


class BucketError(OSError):
    """A bucket that does not answer as it should; `strerror` says why, in the same words for the same reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(None, reason)

    def __str__(self) -> str:
        return str(self.strerror)


class BucketNotFound(BucketError, FileNotFoundError):
    """There is no such bucket, folder or object."""


class BucketDenied(BucketError):
    """The credentials do not allow it, or there are none."""


class BucketRefused(BucketError):
    """What the bucket holds or answers cannot be used, and will not be at the next try."""


class ObjectTaken(BucketError):
    """An object that was to be new is there already."""


@dataclass(frozen=True)
class BucketAddress:
    """`s3://BUCKET/PATH` and its like; `path` is "" for the bucket itself, and has no slash at its ends."""

    scheme: str
    bucket: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.path}" if self.path else "")

    def __truediv__(self, name: str) -> "BucketAddress":
        return BucketAddress(self.scheme, self.bucket, f"{self.path}/{name}" if self.path else name)

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> "BucketAddress":
        """The folder around it; of a bucket itself."""
        return BucketAddress(self.scheme, self.bucket, self.path.rpartition("/")[0])

    def is_relative_to(self, other: "BucketAddress") -> bool:
        """Whether it is `other`, or below it."""
        same = (self.scheme, self.bucket) == (other.scheme, other.bucket)
        return same and (not other.path or f"{self.path}/".startswith(f"{other.path}/"))


def is_address(text: str) -> bool:
    """Whether a text is meant as the address of something that is no local folder."""
    return _ELSEWHERE.match(text) is not None


def parse(text: str) -> BucketAddress:
    """The address in a text, with or without a slash at its end.

    Raises:
        BucketError: it is none that can be read; the message says what one looks like.
    """
    scheme, _, rest = text.partition("://")
    bucket, _, path = rest.partition("/")
    if scheme not in SCHEMES or not _BUCKET.fullmatch(bucket):
        raise BucketRefused(
            f"'{text[:255]}' is no address: use s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH"
        )
    path = path.rstrip("/")
    parts = path.split("/") if path else []
    if len(path) > 1024 or not all(part.strip(".") and part.isprintable() and "\\" not in part for part in parts):
        raise BucketRefused(f"'{text[:255]}' is no address: its path has an empty part, '..' or a control character")
    return BucketAddress(scheme, bucket, path)


@dataclass(frozen=True)
class Object:
    """An object of a bucket. `tag` changes when its content does; "" where the server has none."""

    name: str  # relative to the folder that was listed
    size: int
    tag: str


class BucketFolder:
    """What is at one address, and below it. Shared by threads."""

    def __init__(self, address: BucketAddress) -> None:
        """Raises BucketError where the library is missing, or the environment holds what it cannot use."""
        self.address = address
        # A listing is asked for again soon; a transfer is not given up so easily, and may take as long as it moves.
        self._lists = _open(address, retries=1, seconds=2 * _CONNECT_SECONDS)
        self._moves = _open(address, retries=4, seconds=None)

    async def names(self) -> tuple[list[str], list[Object]]:
        """The folders directly below, and the objects there. Raises BucketError."""
        import obstore

        with _told(self.address):
            listing = obstore.list_with_delimiter_async(self._lists, self.address.path or None)
            found = await asyncio.wait_for(listing, _LISTING_SECONDS)
        prefix = len(self.address.path) + 1 if self.address.path else 0
        folders = [path[prefix:] for path in found["common_prefixes"]]
        return folders, [_object(meta, prefix) for meta in found["objects"] if len(meta["path"]) > prefix]

    def objects(self, name: str = "") -> list[Object]:
        """Every object below the folder `name`, without those that stand for folders. Raises BucketError."""
        import obstore

        place = self.address / name if name else self.address
        prefix = len(place.path) + 1 if place.path else 0
        found: list[Object] = []
        with _told(place):
            for chunk in obstore.list(self._lists, place.path or None, chunk_size=1000):
                found += [_object(meta, prefix) for meta in chunk if len(meta["path"]) > prefix]
                if len(found) > MAX_OBJECTS:
                    raise BucketRefused(f"{place} has more than {MAX_OBJECTS} objects, which no version has")
        return [item for item in found if item.size or not self._stands_for_folder(place, item, found)]

    def _stands_for_folder(self, place: BucketAddress, item: Object, found: list[Object]) -> bool:
        """Whether it is `item/`, as TensorFlow and the clouds' consoles write it; it is listed without the slash."""
        import obstore

        if any(other.name.startswith(f"{item.name}/") for other in found):
            return True
        with _told(place):
            try:
                obstore.head(self._lists, (place / item.name).path)
            except FileNotFoundError:
                return True
        return False

    def chunks(self, item: Object, name: str = "") -> Iterator[bytes]:
        """The content of an object that `objects(name)` answered, in pieces.

        Raises BucketError: also where it has been replaced since, and where it is not as long as it was said to be.
        """
        import obstore

        place = self.address / name / item.name if name else self.address / item.name
        left = item.size
        with _told(place):
            answer = obstore.get(self._moves, place.path, options={"if_match": item.tag} if item.tag else None)
            if answer.meta["size"] != item.size:
                raise BucketError(f"{place} has {answer.meta['size']} bytes, and {item.size} in the listing")
            for chunk in answer.stream(min_chunk_size=_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise BucketError(f"{place} has more than the {item.size} bytes that the listing says")
                yield bytes(chunk)
        if left:
            raise BucketError(f"{place} ends {left} bytes before the size that the listing says")

    def read(self, name: str, most: int) -> bytes | None:
        """The whole of a small object; None where there is none. Raises BucketError, also where it is larger."""
        import obstore

        place = self.address / name
        parts = bytearray()
        with _told(place):
            try:
                answer = obstore.get(self._moves, place.path)
            except FileNotFoundError:
                return None
            for chunk in answer.stream(min_chunk_size=_CHUNK):
                parts += bytes(chunk)
                if len(parts) > most:
                    raise BucketRefused(f"{place} has more than {most} bytes")
        return bytes(parts)

    def write(self, name: str, content: Path | bytes, *, new: bool = False) -> None:
        """Puts an object there, whole. Raises BucketError; ObjectTaken where it shall be new and is not."""
        import obstore

        place = self.address / name
        with _told(place):
            if new:
                obstore.put(self._moves, place.path, content, mode="create")
            else:
                obstore.put(self._moves, place.path, content, chunk_size=_UPLOAD_CHUNK, max_concurrency=4)


def endpoint(scheme: str) -> str:
    """The address that the environment names instead of the cloud's own; "" where it names none."""
    if scheme == "s3":
        host = os.environ.get("S3_ENDPOINT", "")  # as TensorFlow has it: a host, and whether to use TLS
        if host and "://" not in host:
            host = f"{'http' if os.environ.get('S3_USE_HTTPS', '1') in ('0', 'false') else 'https'}://{host}"
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        return next((os.environ[name] for name in names if os.environ.get(name)), host)
    if scheme == "gs":
        host = os.environ.get("STORAGE_EMULATOR_HOST", "")
        return os.environ.get("GOOGLE_BASE_URL") or (f"http://{host}" if host and "://" not in host else host)
    if os.environ.get("AZURE_STORAGE_USE_EMULATOR", "") in ("1", "true"):
        return os.environ.get("AZURITE_BLOB_STORAGE_URL", "http://127.0.0.1:10000")
    return os.environ.get("AZURE_STORAGE_ENDPOINT", "")


def _open(address: BucketAddress, *, retries: int, seconds: float | None) -> "ObjectStore":
    try:
        from obstore import store
    except ModuleNotFoundError as error:
        raise BucketRefused(f"{address} needs {missing_package.told(error, 'buckets')}") from error
    url = endpoint(address.scheme)
    client: ClientConfig = {
        "allow_http": url.startswith("http://"),  # only where the environment asks for it
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=_READ_SECONDS),
        "timeout": timedelta(seconds=seconds or 24 * 3600),
        "user_agent": "bookserve",
    }
    retry: RetryConfig = {"max_retries": retries, "retry_timeout": timedelta(seconds=seconds or 180)}
    try:
        if address.scheme == "s3":
            aws: S3Config = {"endpoint": url} if url else {}
            return store.S3Store(address.bucket, config=aws, client_options=client, retry_config=retry)
        if address.scheme == "gs":
            google: GCSConfig = {"base_url": url} if url else {}
            if os.environ.get("STORAGE_EMULATOR_HOST"):
                google["skip_signature"] = True
            return store.GCSStore(address.bucket, config=google, client_options=client, retry_config=retry)
        azure: AzureConfig = {}
        # The names that Azure's command line knows, besides those that the library reads.
        if "AZURE_STORAGE_ACCOUNT_NAME" not in os.environ and (account := os.environ.get("AZURE_STORAGE_ACCOUNT")):
            azure["account_name"] = account
        if "AZURE_STORAGE_ACCOUNT_KEY" not in os.environ and (key := os.environ.get("AZURE_STORAGE_KEY")):
            azure["account_key"] = key
        return store.AzureStore(address.bucket, config=azure, client_options=client, retry_config=retry)
    except Exception as error:  # whatever it raises on an environment that it cannot use
        reason = str(error).partition("\n")[0][:300]
        raise BucketRefused(f"{address}: {reason}. Set {_VARIABLES[address.scheme]}") from error


def _object(meta: Any, prefix: int) -> Object:
    return Object(meta["path"][prefix:], int(meta["size"]), meta["e_tag"] or meta["version"] or "")


@contextmanager
def _told(place: BucketAddress) -> Iterator[None]:
    """Turns what the library raises into a BucketError, in words that are the same each time."""
    from obstore import exceptions

    try:
        yield
    except BucketError:
        raise
    except TimeoutError as error:
        raise BucketError(f"{place} was not listed within {_LISTING_SECONDS:g} s: has it too many folders?") from error
    except FileNotFoundError as error:
        raise BucketNotFound(f"{place} is not there") from error
    except exceptions.AlreadyExistsError as error:
        raise ObjectTaken(f"{place} is there already") from error
    except exceptions.PreconditionError as error:
        raise BucketError(f"{place} was replaced while it was read") from error
    except exceptions.InvalidPathError as error:
        raise BucketRefused(f"{place} holds an object whose name is no path: {_first_line(str(error))}") from error
    except exceptions.BaseError as error:
        raise _reason(place, str(error)) from error


def _reason(place: BucketAddress, text: str) -> BucketError:
    status, code = _STATUS.search(text), _CODE.search(text)
    told = ": ".join(part.strip() for part in (status and status[1], code and (code[1] or code[2])) if part)
    hint = f". Credentials come from {_VARIABLES[place.scheme]}"
    if told[:3] in ("401", "403"):
        return BucketDenied(f"{place} may not be read or written: {told}{hint}")
    if told[:3] == "404":
        return BucketNotFound(f"{place} is not there: {told}")
    if _MACHINE in text or "metadata.google" in text:
        return BucketDenied(f"{place}: there are no credentials in the environment, nor of this machine{hint}")
    if told:
        return BucketError(f"{place} cannot be used: {told}")
    if "HTTP error" in text:
        where = endpoint(place.scheme)
        return BucketError(f"{place} cannot be reached" + (f" at {where}" if where else ""))
    return BucketError(f"{place}: {_first_line(text)}")


def _first_line(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?(ns|µs|ms|s)\b", "…", text.partition("\n")[0])[:300]
