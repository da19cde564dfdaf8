"""A data file from its public home to a verified path on disk: the first step of the road.

`obtain` looks in DATA_DIR, then in the cache folder, then downloads. Whatever it returns has the checksum that the data
set's module names, so the parsers behind it never meet a half-written or foreign file.
"""

import fcntl
import gzip
import hashlib
import logging
import os
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bookserve.training.datasets.own_data import OwnData

logger = logging.getLogger(__name__)

Choice = Literal["auto", "real", "sample"]
CHOICES: tuple[Choice, ...] = ("auto", "real", "sample")

NOT_OFFICIAL = "(not the official one)"  # the end of an Origin's name
CONNECT_SECONDS = 6.0  # name look-up, connection and response head together: a closed network is noticed in this time
STALL_SECONDS = 20.0  # no byte for this long and the connection is given up
ATTEMPTS = 4  # connections a file; each goes on where the last one was cut
CHUNK = 1 << 16
MAX_UNKNOWN_SIZE = 1 << 26  # bytes read of a file whose size is not fixed


class DataError(Exception):
    """A data file is damaged, foreign or in a form that its parser does not know."""


class DataUnavailableError(DataError):
    """The real data is neither on this machine nor can it be downloaded."""


@dataclass(frozen=True)
class DataFile:
    """One file of a data set as its public home serves it.

    `size` is in bytes. Where people commonly keep the file unpacked, `plain_name` and `plain_sha256` name that form.
    A gzip file of which only the content is fixed, however it was packed, has the `sha256` "" and the `size` 0: it is
    checked by what it unpacks to.
    """

    name: str
    url: str
    size: int
    sha256: str
    plain_name: str = ""
    plain_sha256: str = ""


@dataclass(frozen=True)
class DataRequest:
    """What the caller asked for: DATA=auto|real|sample and, if given, DATA_DIR; or data of the user's own."""

    choice: Choice = "auto"
    data_dir: Path | None = None
    own: OwnData | None = None


@dataclass(frozen=True)
class Origin:
    """Where the rows came from, as the manifest of every version records it.

    `source` is "own" for a user's own data. `sha256` covers all files of the data set (or, for a sample, all generated
    rows).
    """

    source: Literal["real", "sample", "own"]
    name: str
    sha256: str

    @property
    def official(self) -> bool:
        """Whether no file of the data set is another one than its makers published."""
        return not self.name.endswith(NOT_OFFICIAL)


def obtain(dataset: str, files: Sequence[DataFile], request: DataRequest) -> tuple[Path, ...] | None:
    """The verified paths of a data set's files, in the order of `files`, or None: then the caller makes its sample.

    Raises:
        DataError: a file in DATA_DIR is not the one that its name says, or DATA_DIR does not exist.
        DataUnavailableError: nothing was found, nothing could be downloaded, and the choice was "real".
    """
    if request.choice == "sample":
        return None
    found = _in_data_dir(dataset, files, request.data_dir)
    if found is not None:
        return found
    folder = cache_folder(dataset)
    try:
        return tuple(download(file, folder) for file in files)
    except DataUnavailableError as error:
        if request.choice == "real":
            raise
        logger.warning(
            "%s\nTHE REAL DATA SET '%s' IS NOT AVAILABLE: training on the sample instead. Its metrics say nothing "
            "about the real data. Set DATA_DIR (--data-dir) to a folder with the files, or ask for DATA=real to fail.",
            error,
            dataset,
        )
        return None


def at_hand(dataset: str, files: Sequence[DataFile], data_dir: Path | None) -> Path | None:
    """The folder where `obtain` would find all files without a download; their checksums are not looked at."""
    for folder in (data_dir, cache_folder(dataset)):
        paths = [_first_existing(folder, dataset, file) for file in files] if folder is not None else [None]
        if paths[0] is not None and all(paths):
            return paths[0].parent
    return None


def cache_folder(dataset: str) -> Path:
    """The folder of downloaded files: $BOOKSERVE_CACHE, else $XDG_CACHE_HOME/bookserve, else ~/.cache/bookserve."""
    root = os.environ.get("BOOKSERVE_CACHE")
    if root:
        return Path(root) / dataset
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bookserve" / dataset


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_unpacked(path: Path) -> str:
    """The hexadecimal SHA-256 of what a gzip file unpacks to; of the bytes themselves where it is none or damaged."""
    try:
        with gzip.open(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return sha256_of(path)


def combined_sha256(files: Sequence[DataFile]) -> str:
    """One checksum for a whole data set: the SHA-256 of its files' "checksum  name" lines, sorted by name."""
    lines = sorted(f"{file.sha256 or file.plain_sha256}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_of_arrays(arrays: Sequence[npt.NDArray[Any]]) -> str:
    """One checksum for generated rows: dtype, shape and bytes of each array in turn."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def download(file: DataFile, folder: Path) -> Path:
    """The file in `folder`, downloaded unless it lies there whole; a cut download goes on where it stopped.

    Raises:
        DataUnavailableError: the file's home cannot be reached, refuses, or serves other bytes.
    """
    target = folder / file.name
    if _is_whole(file, target):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{file.name}.part"
        with partial.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # a second process waits here and then finds the whole file
            if _is_whole(file, target):
                partial.unlink(missing_ok=True)
                return target
            _fill(file, partial)
            os.fsync(stream.fileno())
            partial.replace(target)
    except OSError as error:
        raise DataUnavailableError(f"cannot keep {file.name} in {folder}: {error.strerror or error}") from error
    return target


def _in_data_dir(dataset: str, files: Sequence[DataFile], data_dir: Path | None) -> tuple[Path, ...] | None:
    """The files in DATA_DIR or its subfolder named after the data set, packed or not; None when one is missing."""
    if data_dir is None:
        return None
    if not data_dir.is_dir():
        raise DataError(f"DATA_DIR {data_dir} is not a folder")
    paths = []
    for file in files:
        path = _first_existing(data_dir, dataset, file)
        if path is None:
            logger.warning("%s is neither in %s nor in %s", file.name, data_dir, data_dir / dataset)
            return None
        expected = file.sha256 if path.name == file.name and file.sha256 else file.plain_sha256
        actual = sha256_of(path) if file.sha256 else sha256_of_unpacked(path)
        if actual != expected:
            raise DataError(
                f"{path} is damaged or another file of that name: its SHA-256 is {actual}, the official one has "
                f"{expected}. Replace it, or leave DATA_DIR unset to download it."
            )
        paths.append(path)
    return tuple(paths)


def _first_existing(data_dir: Path, dataset: str, file: DataFile) -> Path | None:
    names = [name for name in (file.name, file.plain_name) if name]
    candidates = [folder / name for folder in (data_dir / dataset, data_dir) for name in names]
    return next((path for path in candidates if path.is_file()), None)


def _is_whole(file: DataFile, path: Path) -> bool:
    if not path.is_file():
        return False
    if not file.sha256:
        return sha256_of_unpacked(path) == file.plain_sha256
    return path.stat().st_size == file.size and sha256_of(path) == file.sha256


def _fill(file: DataFile, partial: Path) -> None:
    """Append to `partial` until it is the whole, verified file."""
    if not file.size:  # what an earlier process left may be all of it, and then there is no rest to ask for
        os.truncate(partial, 0)
    reason = "the connection was cut"
    for _ in range(ATTEMPTS):
        if not file.size or partial.stat().st_size < file.size:
            try:
                _append(file, partial)
            except (TimeoutError, ConnectionError, HTTPException) as error:
                reason = f"the connection was cut ({error or type(error).__name__})"
        size = partial.stat().st_size
        if size < file.size:
            continue
        if _is_whole(file, partial):
            return
        reason = f"{file.url} served other bytes than expected (SHA-256 is not {file.sha256 or file.plain_sha256})"
        os.truncate(partial, 0)
    raise DataUnavailableError(f"cannot download {file.name}: {reason}")


def _append(file: DataFile, partial: Path) -> None:
    """One connection's worth of bytes; never more than the file has."""
    have = partial.stat().st_size
    response = _open(file, have)
    with response, partial.open("ab") as stream, _progress(file, have) as (progress, task):
        if have and response.status != 206:  # the server ignores ranges: begin anew
            os.truncate(partial, 0)
            have = 0
            progress.update(task, completed=0)
        while have <= (file.size or MAX_UNKNOWN_SIZE):
            chunk = response.read1(CHUNK)
            if not chunk:
                return
            stream.write(chunk)
            have += len(chunk)
            progress.update(task, completed=have)


def _open(file: DataFile, start: int) -> HTTPResponse:
    """Connect within CONNECT_SECONDS, however long name look-up and however many addresses there are."""
    headers = {"User-Agent": "bookserve", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(file.url, headers=headers)
    answers: list[HTTPResponse] = []
    failures: list[Exception] = []

    def connect() -> None:
        try:
            answers.append(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except (OSError, HTTPException, ValueError) as error:
            failures.append(error)

    thread = threading.Thread(target=connect, name=f"connect {file.url}", daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if answers:
        return answers[0]
    if not failures:
        raise DataUnavailableError(f"cannot download {file.name}: no answer from {file.url} in {CONNECT_SECONDS:g} s")
    error = failures[0]
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    if isinstance(error, ConnectionResetError | HTTPException):
        raise error
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    raise DataUnavailableError(f"cannot download {file.name} from {file.url}: {reason}") from error


@contextmanager
def _progress(file: DataFile, have: int) -> Iterator[tuple[Progress, Any]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress, progress.add_task(f"download {file.name}", total=file.size or None, completed=have)
