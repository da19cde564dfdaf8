"""What a network sees of molecules, by deepchem and RDKit, kept on disk: fingerprints, counts and descriptors.

deepchem makes what it can: Morgan fingerprints and counts, MACCS keys and descriptors; RDKit the topological torsions.
Whoever asks a served model has the same from `clients/inputs/molecules.py`, with which some molecules are compared.
deepchem takes ten seconds to import, brings TensorFlow along and writes a line for every molecule, so it runs as a
process of its own, `python -m bookserve.training.datasets.molecule_features`, and only for molecules not met before.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rdkit import Chem
from rich.console import Console

from bookserve.clients.inputs import molecules
from bookserve.training.datasets.files import DataError

logger = logging.getLogger(__name__)

SIZE = molecules.BITS  # bits of a fingerprint, deepchem's loader of Tox21 has as many
RADIUS = molecules.RADIUS  # bonds around each atom; deepchem's default
COMPARED = 100  # molecules
VERSION = molecules.version()  # of RDKit
# RDKit's descriptors but for those that take most of the time (qed, SPS, BertzCT, BCUT2D, fingerprints' densities) or
# have no bounds (Ipc): without them the validation AUC is no lower. In the order of deepchem's featuriser.
NAMES = (
    *("BalabanJ", "Chi0", "Chi0n", "Chi0v", "Chi1", "Chi1n", "Chi1v", "Chi2n", "Chi2v", "Chi3n", "Chi3v", "Chi4n"),
    *("Chi4v", "EState_VSA1", "EState_VSA10", "EState_VSA11", "EState_VSA2", "EState_VSA3", "EState_VSA4"),
    *("EState_VSA5", "EState_VSA6", "EState_VSA7", "EState_VSA8", "EState_VSA9", "ExactMolWt", "FractionCSP3"),
    *("HallKierAlpha", "HeavyAtomCount", "HeavyAtomMolWt", "Kappa1", "Kappa2", "Kappa3", "LabuteASA"),
    *("MaxAbsEStateIndex", "MaxAbsPartialCharge", "MaxEStateIndex", "MaxPartialCharge", "MinAbsEStateIndex"),
    *("MinAbsPartialCharge", "MinEStateIndex", "MinPartialCharge", "MolLogP", "MolMR", "MolWt", "NHOHCount"),
    *("NOCount", "NumAliphaticCarbocycles", "NumAliphaticHeterocycles", "NumAliphaticRings", "NumAmideBonds"),
    *("NumAromaticCarbocycles", "NumAromaticHeterocycles", "NumAromaticRings", "NumAtomStereoCenters"),
    *("NumBridgeheadAtoms", "NumHAcceptors", "NumHDonors", "NumHeteroatoms", "NumHeterocycles", "NumRadicalElectrons"),
    *("NumRotatableBonds", "NumSaturatedCarbocycles", "NumSaturatedHeterocycles", "NumSaturatedRings"),
    *("NumSpiroAtoms", "NumUnspecifiedAtomStereoCenters", "NumValenceElectrons", "PEOE_VSA1", "PEOE_VSA10"),
    *("PEOE_VSA11", "PEOE_VSA12", "PEOE_VSA13", "PEOE_VSA14", "PEOE_VSA2", "PEOE_VSA3", "PEOE_VSA4", "PEOE_VSA5"),
    *("PEOE_VSA6", "PEOE_VSA7", "PEOE_VSA8", "PEOE_VSA9", "Phi", "RingCount", "SMR_VSA1", "SMR_VSA10", "SMR_VSA2"),
    *("SMR_VSA3", "SMR_VSA4", "SMR_VSA5", "SMR_VSA6", "SMR_VSA7", "SMR_VSA8", "SMR_VSA9", "SlogP_VSA1", "SlogP_VSA10"),
    *("SlogP_VSA11", "SlogP_VSA12", "SlogP_VSA2", "SlogP_VSA3", "SlogP_VSA4", "SlogP_VSA5", "SlogP_VSA6"),
    *("SlogP_VSA7", "SlogP_VSA8", "SlogP_VSA9", "TPSA", "VSA_EState1", "VSA_EState10", "VSA_EState2", "VSA_EState3"),
    *("VSA_EState4", "VSA_EState5", "VSA_EState6", "VSA_EState7", "VSA_EState8", "VSA_EState9", "fr_Al_COO"),
    *("fr_Al_OH", "fr_Al_OH_noTert", "fr_ArN", "fr_Ar_COO", "fr_Ar_N", "fr_Ar_NH", "fr_Ar_OH", "fr_COO", "fr_COO2"),
    *("fr_C_O", "fr_C_O_noCOO", "fr_C_S", "fr_HOCCN", "fr_Imine", "fr_NH0", "fr_NH1", "fr_NH2", "fr_N_O"),
    *("fr_Ndealkylation1", "fr_Ndealkylation2", "fr_Nhpyrrole", "fr_SH", "fr_aldehyde", "fr_alkyl_carbamate"),
    *("fr_alkyl_halide", "fr_allylic_oxid", "fr_amide", "fr_amidine", "fr_aniline", "fr_aryl_methyl", "fr_azide"),
    *("fr_azo", "fr_barbitur", "fr_benzene", "fr_benzodiazepine", "fr_bicyclic", "fr_diazo", "fr_dihydropyridine"),
    *("fr_epoxide", "fr_ester", "fr_ether", "fr_furan", "fr_guanido", "fr_halogen", "fr_hdrzine", "fr_hdrzone"),
    *("fr_imidazole", "fr_imide", "fr_isocyan", "fr_isothiocyan", "fr_ketone", "fr_ketone_Topliss", "fr_lactam"),
    *("fr_lactone", "fr_methoxy", "fr_morpholine", "fr_nitrile", "fr_nitro", "fr_nitro_arom"),
    *("fr_nitro_arom_nonortho", "fr_nitroso", "fr_oxazole", "fr_oxime", "fr_para_hydroxylation", "fr_phenol"),
    *("fr_phenol_noOrthoHbond", "fr_phos_acid", "fr_phos_ester", "fr_piperdine", "fr_piperzine", "fr_priamide"),
    *("fr_prisulfonamd", "fr_pyridine", "fr_quatN", "fr_sulfide", "fr_sulfonamd", "fr_sulfone", "fr_term_acetylene"),
    *("fr_tetrazole", "fr_thiazole", "fr_thiocyan", "fr_thiophene", "fr_unbrch_alkane", "fr_urea"),
)


@cache
def digest() -> str:
    """What tells this RDKit from others in a contract."""
    return molecules.digest(NAMES)


@dataclass(frozen=True)
class Features:
    """What is known of n molecules.

    `fingerprints` uint8 [n, 1024] of 0 and 1, `counts` uint8 [n, 2215] and `descriptors` float32 [n, 201] as
    `contracts.Descriptors` says; `readable` bool [n]: whether RDKit could read the molecule at all, of which all is 0
    else.
    """

    fingerprints: npt.NDArray[np.uint8]
    counts: npt.NDArray[np.uint8]
    descriptors: npt.NDArray[np.float32]
    readable: npt.NDArray[np.bool_]

    def inputs(self, rows: Any) -> dict[str, npt.NDArray[Any]]:
        """The rows as inputs of the model."""
        return {
            "fingerprint": self.fingerprints[rows],
            "counts": self.counts[rows],
            "descriptors": self.descriptors[rows],
        }


def features(smiles: Sequence[str], folder: Path) -> Features:
    """What is known of each molecule; kept in `folder` under the checksum of the molecules and RDKit's version.

    Raises:
        DataError: deepchem is not installed or fails, and the message holds its last words; or it says something else
            of a molecule than what a served model would be asked.
    """
    text = "\n".join(smiles)
    how = f"{SIZE} {RADIUS} {VERSION} {' '.join(NAMES)}"
    key = hashlib.sha256(f"{how}\n{text}".encode()).hexdigest()
    path = folder / f"features-{key[:32]}.npz"
    try:
        return _read(path, len(smiles))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged and is made anew (%s)", path, error)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made.npz"
        console = Console(stderr=True)
        with console.status(f"features of {len(smiles):,} molecules by deepchem, once: about two minutes for 8,000"):
            _run_deepchem(text, made)
        found = _read(made, len(smiles))
        _compare(smiles, found)
        _keep(made, path)
        return found


def _read(path: Path, rows: int) -> Features:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
        bits, readable = content["bits"], content["readable"]
        counts, descriptors = content["counts"], content["descriptors"]
    shapes = (bits.shape, counts.shape, descriptors.shape, readable.shape)
    expected = ((rows, SIZE // 8), (rows, 2 * SIZE + molecules.KEYS), (rows, len(NAMES)), (rows,))
    if shapes != expected:
        raise ValueError(f"it holds {shapes} instead of {expected}")
    return Features(np.unpackbits(bits, axis=1), counts, descriptors, readable.astype(bool))


def _compare(smiles: Sequence[str], found: Features) -> None:
    """Compare the first molecules with what a served model is asked.

    Raises:
        DataError: a molecule differs.
    """
    for row in np.flatnonzero(found.readable)[:COMPARED]:
        if len(smiles[row]) > molecules.MAX_CHARACTERS:
            continue
        said = molecules.describe(smiles[row], RADIUS, SIZE, NAMES)
        if (said.fingerprint != found.fingerprints[row]).any() or (said.counts != found.counts[row]).any():
            raise DataError(f"deepchem counts otherwise in {smiles[row]} than RDKit: install the versions of the lock")
        apart = ~np.isclose(said.values, found.descriptors[row], rtol=1e-3, atol=1e-3)
        if apart.any():
            raise DataError(
                f"deepchem's descriptor {NAMES[int(apart.argmax())]} of {smiles[row]} is not RDKit's: install the "
                "versions of the lock"
            )


def _run_deepchem(text: str, target: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "bookserve.training.datasets.molecule_features", target],
        input=text.encode(),
        capture_output=True,
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise DataError(f"deepchem could not make the features (status {done.returncode}): {' '.join(words)}")


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
        logger.warning("the features cannot be kept in %s: %s", path.parent, error.strerror or error)


def main() -> None:
    """Read one SMILES a line from standard input and write the features to the path given."""
    from deepchem.feat import (  # type: ignore[import-untyped]
        CircularFingerprint,
        MACCSKeysFingerprint,
        RDKitDescriptors,
    )

    smiles = sys.stdin.read().split("\n")
    bits, readable = _rows(CircularFingerprint(radius=RADIUS, size=SIZE).featurize(smiles), SIZE)
    counts, _ = _rows(CircularFingerprint(radius=RADIUS, size=SIZE, is_counts_based=True).featurize(smiles), SIZE)
    keys, _ = _rows(MACCSKeysFingerprint().featurize(smiles), molecules.KEYS)
    values, _ = _rows(RDKitDescriptors(descriptors=list(NAMES)).featurize(smiles), len(NAMES))
    found = np.zeros((len(smiles), SIZE))
    for row in np.flatnonzero(readable):
        found[row] = molecules.torsions(Chem.MolFromSmiles(smiles[row]), SIZE)
    np.savez_compressed(
        Path(sys.argv[1]),
        bits=np.packbits(bits.astype(np.uint8), axis=1),
        counts=molecules.counted((counts, found, keys)),
        descriptors=molecules.finite(values),
        readable=readable,
    )


def _rows(featurised: Any, size: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """deepchem's rows as float64 [n, size], and bool [n]: which it could make; it gives an empty row for the others."""
    made = np.array([np.size(row) == size for row in featurised])
    rows = np.zeros((len(made), size))
    for number in np.flatnonzero(made):
        rows[number] = featurised[number]
    return rows, made


if __name__ == "__main__":
    main()
