"""A version of the store in this process, in the engine that serves it.

As in the model server, its files are compared with its manifest, and it is tried in a child process first: a file that
crashes or hangs its engine ends the child. Rows share a run only where the graph or the manifest says that they are
independent.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from bookserve.clients.answers import Array
from bookserve.export.contracts import Contract
from bookserve.serving.batch.model import ModelLost, Pace, RowsRefused
from bookserve.serving.server.batching import row_independence
from bookserve.serving.server.engines import choose
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.models import integrity, manifest
from bookserve.serving.server.models.trial import Trials
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire import missing_package
from bookserve.serving.wire.version_folder import MANIFEST


class LocalModel:
    """See Model."""

    def __init__(
        self,
        folder: Path,
        contract: Contract,
        pace: Pace,
        rows_independent: bool,
        trial_seconds: float,
        trials: Trials | None,
    ) -> None:
        """`pace` is what the user wants; one row a run and one run at a time where the version takes no more.

        `rows_independent` is whether the user says so, whatever the version's files say.

        Raises ModelLost where the version does not load, or does not survive its trial.
        """
        self.contract = contract
        self.version = int(folder.name)
        options = EngineOptions(
            parallel_runs=pace.runs,
            tflite_interpreters=pace.runs,
            trial_seconds=trial_seconds,
        )
        try:
            seen = integrity.check(folder)
            if trials is not None:
                trials.check(folder, seen, options, warm_up=True)
            self._engine = choose.load(folder, options)
            integrity.check_unchanged(folder, seen)
        except ServingError as error:
            raise ModelLost(error.message) from error
        except ModuleNotFoundError as error:
            raise ModelLost(f"{folder} needs {missing_package.told(error, 'serving,batch')}") from error
        if contract.signature not in self._engine.signatures:
            raise ModelLost(f"{folder} has no signature '{contract.signature}'")
        self._signature = self._engine.signatures[contract.signature]
        self._outputs = tuple(tensor.name for tensor in contract.outputs)
        declared = True if rows_independent else manifest.rows_independent(folder)
        independent = self._signature.name in row_independence.shared(self._engine, folder, True, declared)
        self.can_run_beside_itself = not self._engine.keeps_state
        self.pace = Pace(pace.rows if independent else 1, pace.runs if self.can_run_beside_itself else 1)
        self.identity = _identity(folder)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See Model.run. What the engine raises over values has no common class: any of it refuses the rows."""
        try:
            found = self._engine.run(self._signature, self._signature.complete(inputs), self._outputs)
        except ServingError as error:
            raise RowsRefused(error.message) from error
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise RowsRefused(f"the model failed on it: {lines[0][:300]}") from error
        return dict(zip(self._outputs, found, strict=True))

    def close(self) -> None:
        """See Model.close."""
        self._engine.close()


def _identity(folder: Path) -> str:
    """The SHA-256 of the manifest, which lists those of all files; of the graphs where there is none."""
    found = hashlib.sha256()
    listed = folder / MANIFEST
    for path in [listed] if listed.is_file() else sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()
