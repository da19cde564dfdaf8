"""What an interrupted run leaves: a folder beside OUTPUT with the parts that are done, and their plan.

    OUTPUT.parts/plan.json        what was asked of which version, and the INPUT's digest
    OUTPUT.parts/00000001.part    a line of JSON, then the answers of some rows, then their errors

A part appears in one rename, after it is on disk, and holds how far the INPUT was read with it. So whatever the run is
killed by, and whenever, the next one goes on behind the last part, and no row is lost or there twice.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from bookserve.export.durable import fsync, new_file
from bookserve.serving.batch.records import Place

Plan = Mapping[str, Any]
FORM = 3  # of what is in a part; 1 and 2 had the rows of Parquet as JSON
_PLAN, _LOCK = "plan.json", ".lock"


class PartsError(Exception):
    """What is left of another run does not fit this one, or is damaged; the message says what to do."""


@dataclass(frozen=True)
class Done:
    """What the parts hold: so many answered and bad rows up to `place`; `columns` of a table, once a row has any."""

    parts: int = 0
    place: Place = field(default_factory=Place)
    answered: int = 0
    bad: int = 0
    columns: tuple[str, ...] = ()


class Parts:
    """The parts of one OUTPUT. One process at a time has them; a context manager gives them back."""

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(f"{output.name}.parts")
        self._output = output
        self._lock = -1

    def __enter__(self) -> "Parts":
        """Raises PartsError while another process has them."""
        while not self._is_locked():
            pass  # a run that ended just now has removed the folder
        if not self.are_begun:
            self.drop()  # of a run that was killed when all was done
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # another run is beginning
            if [path.name for path in self.folder.iterdir()] == [_LOCK]:
                (self.folder / _LOCK).unlink()
                self.folder.rmdir()
        os.close(self._lock)

    def _is_locked(self) -> bool:
        """Whether the lock is got, and still lies in the folder."""
        self.folder.mkdir(exist_ok=True)
        try:
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(self._lock), (self.folder / _LOCK).stat()):
                return True
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(self._lock)
            raise PartsError(f"another 'bookserve batch' is writing {self._output}: wait for it, or stop it") from error
        os.close(self._lock)
        return False

    @property
    def are_begun(self) -> bool:
        """Whether a run has left its plan."""
        return (self.folder / _PLAN).is_file()

    def drop(self) -> None:
        """Forget what a run has left, interrupted or complete."""
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name != _PLAN):  # the plan first
            if path.name != _LOCK:
                path.unlink()
            if path.name == _PLAN:
                fsync(self.folder)

    def begin(self, plan: Plan) -> Done:
        """How far the run of this plan is; its plan is noted where there is none.

        Raises:
            PartsError: what is there is of another plan, or damaged.
        """
        for left in self.folder.glob(".[!l]*"):
            left.unlink()  # by a writer that was killed
        path = self.folder / _PLAN
        if not path.is_file():
            with new_file(path) as stream:
                stream.write(json.dumps(plan, indent=2).encode())
            return Done()
        try:
            before = json.loads(path.read_bytes())
        except ValueError as error:
            raise PartsError(f"{path} is damaged ({error}): --restart begins anew") from error
        differences = [
            f"{name} was {_shown(before.get(name))} and is {_shown(plan.get(name))}"
            for name in dict.fromkeys((*before, *plan))
            if before.get(name) != plan.get(name)
        ]
        if differences:
            raise PartsError(
                f"{self.folder} is left of an interrupted run of something else: {'; '.join(differences)}. Ask the same"
                " to go on there, or give --restart to drop it"
            )
        return self._read()

    def add(self, done: Done, answers: bytes, errors: bytes) -> None:
        """Write the part that comes to `done`."""
        head = {
            "part": done.parts,
            "line": done.place.line,
            "offset": done.place.offset,
            "answered": done.answered,
            "bad": done.bad,
            "columns": done.columns,
            "bytes": [len(answers), len(errors)],
        }
        with new_file(self._path(done.parts)) as stream:
            stream.write(json.dumps(head).encode() + b"\n")
            stream.write(answers)
            stream.write(errors)

    def answers(self, parts: int) -> Iterator[bytes]:
        """The bytes of all answers, some at a time; a piece ends with a part."""
        for number in range(1, parts + 1):
            with self._path(number).open("rb") as stream:
                left, _ = json.loads(stream.readline())["bytes"]
                yield stream.read(left)

    def errors(self, parts: int) -> Iterator[bytes]:
        """The bytes of all errors."""
        for number in range(1, parts + 1):
            with self._path(number).open("rb") as stream:
                skipped, left = json.loads(stream.readline())["bytes"]
                stream.seek(skipped, os.SEEK_CUR)
                yield stream.read(left)

    def whole_file(self, path: Path) -> AbstractContextManager[IO[bytes]]:
        """A stream to write one of the last files with. Killed meanwhile, it leaves nothing outside the folder, where
        the file system is the same."""
        same = path.parent.stat().st_dev == self.folder.stat().st_dev
        return new_file(path, self.folder if same else None)

    def _read(self) -> Done:
        found = Done()
        for path in sorted(self.folder.glob("*.part")):
            with path.open("rb") as stream:
                found = _next(found, path, stream)
        return found

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08}.part"


def _next(found: Done, path: Path, stream: IO[bytes]) -> Done:
    """What there is with one part more. Raises PartsError where it does not follow or is not whole."""
    try:
        head = json.loads(stream.readline())
        size = stream.tell() + sum(head["bytes"])
        if head["part"] != found.parts + 1 or path.name != f"{head['part']:08}.part":
            raise ValueError(f"part {found.parts + 1} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"it has {path.stat().st_size:,} bytes instead of {size:,}")
        place = Place(head["line"], head["offset"])
        columns = tuple(head["columns"])
        return replace(
            found, parts=head["part"], place=place, answered=head["answered"], bad=head["bad"], columns=columns
        )
    except (ValueError, KeyError, TypeError) as error:
        raise PartsError(f"{path} is damaged ({error}): --restart begins anew") from error


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:20]}…"
