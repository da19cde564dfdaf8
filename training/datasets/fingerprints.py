"""Morgan fingerprints of molecules by deepchem, kept on disk: what the networks of chapters 4 and 5 see of a molecule.

deepchem takes ten seconds to import, brings TensorFlow along and writes a line for every molecule, so it runs as a
process of its own, `python -m bookserve.training.datasets.fingerprints`, and only for molecules not met before.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from bookserve.training.datasets.files import DataError

logger = logging.getLogger(__name__)

SIZE = 1024  # bits of a fingerprint, deepchem's loader of Tox21 has as many
RADIUS = 2  # bonds around each atom; deepchem's default


def fingerprints(smiles: Sequence[str], folder: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """The fingerprints uint8 [n, 1024] of 0 and 1, and bool [n]: whether RDKit could read the molecule at all.

    They are kept in `folder` under the checksum of the molecules; a fingerprint of an unreadable one is all 0.

    Raises:
        DataError: deepchem is not installed or fails; the message holds its last words.
    """
    text = "\n".join(smiles)
    key = hashlib.sha256(f"CircularFingerprint {SIZE} {RADIUS}\n{text}".encode()).hexdigest()
    path = folder / f"fingerprints-{key[:32]}.npz"
    try:
        return _read(path, len(smiles))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged and is made anew (%s)", path, error)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made.npz"
        console = Console(stderr=True)
        with console.status(f"fingerprints of {len(smiles):,} molecules by deepchem, once: about 20 seconds"):
            _run_deepchem(text, made)
        _keep(made, path)
        return _read(made, len(smiles))


def _read(path: Path, rows: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
        bits, readable = content["bits"], content["readable"]
    if bits.shape != (rows, SIZE // 8) or readable.shape != (rows,):
        raise ValueError(f"it holds {bits.shape} instead of {(rows, SIZE // 8)}")
    return np.unpackbits(bits, axis=1), readable.astype(bool)


def _run_deepchem(text: str, target: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "bookserve.training.datasets.fingerprints", target],
        input=text.encode(),
        capture_output=True,
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise DataError(f"deepchem could not make the fingerprints (status {done.returncode}): {' '.join(words)}")


def _keep(made: Path, path: Path) -> None:
    """Copy into the cache in one rename; a cache that cannot be written costs only the time of the next training."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
            copy = Path(scratch) / path.name
            with copy.open("wb") as stream:
                stream.write(made.read_bytes())
                stream.flush()
                os.fsync(stream.fileno())
            copy.replace(path)
    except OSError as error:
        logger.warning("the fingerprints cannot be kept in %s: %s", path.parent, error.strerror or error)


def main() -> None:
    """Read one SMILES a line from standard input and write the packed fingerprints to the path given."""
    from deepchem.feat import CircularFingerprint  # type: ignore[import-untyped]

    smiles = sys.stdin.read().split("\n")
    rows = CircularFingerprint(radius=RADIUS, size=SIZE).featurize(smiles)
    readable = np.array([len(row) == SIZE for row in rows])  # deepchem gives an empty row for what it cannot read
    bits = np.zeros((len(smiles), SIZE), np.uint8)
    for number in np.flatnonzero(readable):
        bits[number] = rows[number]
    np.savez_compressed(Path(sys.argv[1]), bits=np.packbits(bits, axis=1), readable=readable)


if __name__ == "__main__":
    main()
