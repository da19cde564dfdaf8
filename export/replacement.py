"""Whether a version that is about to be published may take the place of the served one: `--require-better`.

Both are asked the same rows whose right answers are known, and their figures are compared in pairs. A version is
refused where it is worse by more than chance: the whole 95 % interval of the difference is on the worse side. What is
equal or better within chance is published.
"""

from collections.abc import Callable
from pathlib import Path

from bookserve.export import figures, graph_contract, labelled_rows
from bookserve.export.confined import Limits
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError, StoreError, WorseError
from bookserve.export.figures import Figure
from bookserve.export.manifest import LOCATION
from bookserve.export.store import ModelStore

Judge = Callable[[Path, Contract], None]  # of a staged version; raises WorseError


def judge(store: ModelStore, figure: Callable[[Contract], Figure], limits: Limits, say: Callable[[str], None]) -> Judge:
    """What compares a staged version with the one of `store` that is served by default, on the rows of `figure`.

    `figure` is called with the contract of the staged version, and only where there is a served one. The judge raises
    WorseError, or ExportError where the two cannot be compared.
    """

    def compare(folder: Path, contract: Contract) -> None:
        try:
            if not store.versions(contract.model):
                say(f"{contract.model}: no version is served yet: there is nothing to compare with")
                return
            number = store.default_version(contract.model)
            served = store.path(contract.model, number)
            known = store.manifest(contract.model, number) if (served / LOCATION).is_file() else None
            before = graph_contract.of_version(served, contract.model, known)
        except StoreError as error:
            raise ExportError(str(error)) from error
        _check_comparable(before, contract, number)
        asked = figure(contract)
        first = labelled_rows.answers(served, None, before, asked.rows, limits)
        second = labelled_rows.answers(folder, None, contract, asked.rows, limits)
        found = figures.paired(asked, first, second)
        told = (
            f"{contract.model}: {found.figure} {found.second:.4g}, version {number}, which is served, has "
            f"{found.first:.4g}, on the same {found.rows:,} rows: {found.text}"
        )
        if found.worse:
            how = "worse" if found.interval is None else "worse by more than chance"
            raise WorseError(f"{told}. It is {how} and not published; without --require-better it would be")
        say(f"{told}. It is {'better' if found.better else 'not worse by more than chance'}")

    return compare


def _check_comparable(before: Contract, after: Contract, number: int) -> None:
    """Raise ExportError where the served version takes or gives something else."""
    kinds = [
        [(tensor.name, tensor.dtype, tensor.shape) for tensor in (*contract.inputs, *contract.outputs)]
        for contract in (before, after)
    ]
    if kinds[0] != kinds[1] or before.labels != after.labels:
        what = "labels" if kinds[0] == kinds[1] else "tensors"
        raise ExportError(
            f"{after.model}: version {number}, which is served, has other {what}: they cannot be compared on "
            "the same rows. Publish without --require-better"
        )
