"""Why RDKit takes a text for no molecule, and at which character of it."""

import logging
import re
import threading
from typing import Any

EXAMPLE = "CCO"

# RDKit tells the place of a fault in its log alone, which counts from 1.
_KIND = re.compile(r"SMILES Parse Error: ([a-z ]+?) (?:while parsing|for input):")
_PLACE = re.compile(r"around position (\d+):")
_BRACKETS = re.compile(r"\[[^\]]*\]")
_ATOM = re.compile(r"\[[^\]]*\]|Br|Cl|[BCNOSPFIbcnosp*]")
_RING = re.compile(r"%\d\d|%\(\d+\)|\d")
_log = threading.Lock()  # RDKit's log is the process's


def fault(smiles: str) -> tuple[str, int | None]:
    """The reason, as a part of a sentence, and the place, from 0, where it is known, of a text that RDKit refused."""
    from rdkit import Chem

    molecule, kind, place = _parse(smiles)
    if molecule is None:
        if kind == "unclosed ring":
            place = _open_ring(smiles)
        what = kind or "brackets, rings or symbols do not match"
        return f"this is no SMILES: {what}{_at(smiles, place)}; {EXAMPLE} would be one", place
    problems: Any = Chem.DetectChemistryProblems(molecule)
    if not problems:
        return "RDKit cannot make sense of it", None
    place = _of_atom(smiles, molecule, problems[0])
    return f"no such molecule can be: {problems[0].Message().strip()}{_at(smiles, place)}", place


def _at(smiles: str, place: int | None) -> str:
    return "" if place is None else f" at character {place + 1}, '{smiles[place]}'"


def _parse(smiles: str) -> tuple[Any, str, int | None]:
    """The molecule as it is written, else None with the first fault that RDKit logs: its kind and its place."""
    from rdkit import Chem, RDLogger, rdBase

    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("rdkit")
    with _log:
        before, propagates = logger.handlers, logger.propagate
        rdBase.LogToPythonLogger()
        logger.handlers, logger.propagate = [Keep()], False
        try:
            molecule = Chem.MolFromSmiles(smiles, sanitize=False)
        finally:
            rdBase.LogToCppStreams()
            RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
            logger.handlers, logger.propagate = before, propagates
    kinds = [match[1] for match in map(_KIND.search, lines) if match]
    places = [int(match[1]) - 1 for match in map(_PLACE.search, lines) if match]
    place = places[0] if places and 0 <= places[0] < len(smiles) else None
    return molecule, kinds[0] if kinds else "", place


def _open_ring(smiles: str) -> int | None:
    """Where the first ring begins that is never closed; a number opens it, and the same number closes it."""
    blank = _BRACKETS.sub(lambda match: " " * len(match[0]), smiles)
    opened: dict[int, int] = {}
    for match in _RING.finditer(blank):
        number = int(match[0].strip("%()"))
        if opened.pop(number, None) is None:
            opened[number] = match.start()
    return min(opened.values(), default=None)


def _of_atom(smiles: str, molecule: Any, problem: Any) -> int | None:
    """Where the atom of a problem is written: RDKit numbers atoms in the order of the text."""
    atoms = [match.start() for match in _ATOM.finditer(smiles)]
    if len(atoms) != molecule.GetNumAtoms():
        return None
    if hasattr(problem, "GetAtomIdx"):
        return atoms[int(problem.GetAtomIdx())]
    return atoms[int(min(problem.GetAtomIndices()))] if hasattr(problem, "GetAtomIndices") else None
