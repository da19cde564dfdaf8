"""Removes what neither server uses from the packages of an image: `python slim.py FOLDER`, a site-packages.

A package is installed whole, with its tests, sources and tools. UNUSED says what goes; then go the libraries that no
other needs any more, and the debug symbols of those in STRIPPED. It needs binutils, and ends with 1 when a library that
stays needs one that went. `tests/docker/test_slim.py` has the servers' code use none of it.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

UNUSED = (
    # Sources, headers and types
    *("**/*.pyi", "**/*.pyx", "**/*.pxd", "**/*.cpp", "**/*.c", "**/*.h", "**/*.a", "rdkit-stubs"),
    # The C library, which Python's module holds a second time; and tools, which the export uses
    *("onnxruntime/capi/libonnxruntime.so.*", "onnxruntime/transformers", "onnxruntime/quantization"),
    *("onnxruntime/tools", "onnxruntime/backend", "onnxruntime/datasets"),
    *("numpy/**/tests", "numpy/f2py", "numpy/distutils", "numpy/_pyinstaller"),
    # Molecules are read, described and drawn as SVG
    *("rdkit/Contrib", "rdkit/sping", "rdkit/Dbase", "rdkit/VLib", "rdkit/SimDivFilters", "rdkit/Avalon"),
    *("rdkit/DataManip", "rdkit/DistanceGeometry", "rdkit/Numerics", "rdkit/ForceField", "rdkit/ML/Cluster"),
    *("rdkit/ML/Data", "rdkit/ML/Descriptors", "rdkit/Data/NCI", "rdkit/Data/Pains", "rdkit/Data/SmartsLib"),
    *("rdkit/Chem/MolStandardize", "rdkit/Chem/Scaffolds", "rdkit/Chem/fmcs", "rdkit/Chem/Pharm2D"),
    *("rdkit/Chem/Pharm3D", "rdkit/Chem/Subshape", "rdkit/Chem/FeatMaps", "rdkit/Chem/MolDb", "rdkit/Chem/MolKey"),
    *("rdkit/Chem/Fraggle", "rdkit/Chem/nbtests", "rdkit/Chem/Features"),
    *(
        f"rdkit/Chem/rd{module}.so"
        for module in (
            *("Abbreviations", "ChemDraw", "ChemReactions", "ChemicalFeatures", "Deprotect", "DetermineBonds"),
            *("DistGeom", "EHTTools", "EnumerateStereoisomers", "FMCS", "ForceFieldHelpers", "FreeSASA"),
            *("GaussianShape", "GeneralizedSubstruct", "MHFPFingerprint", "MIF", "MMPA", "MolAlign", "MolCatalog"),
            *("MolChemicalFeatures", "MolEnumerator", "MolHash", "MolProcessing", "MolTransforms"),
            *("RGroupDecomposition", "RascalMCES", "ReducedGraphs", "SLNParse", "ShapeAlign", "ShapeHelpers"),
            *("SubstructLibrary", "SynthonSpaceSearch", "TautomerQuery", "filtercatalog", "fragcatalog", "queries"),
            "trajectory",
        )
    ),
)
# Their wheels hold the symbols of a debugger. Libraries that auditwheel has changed do not survive `strip`.
STRIPPED = ("uvloop/loop.*.so", "csimdjson.*.so", "obstore/_obstore.*.so", "h2corn/_lib.*.so")


def unused(folder: Path) -> Iterator[Path]:
    """The files and folders of `folder` that UNUSED names."""
    for pattern in UNUSED:
        yield from sorted(folder.glob(pattern))


def orphans(folder: Path) -> list[Path]:
    """The libraries in `*.libs` folders that no other library of `folder` needs."""
    needed = {name for library in _libraries(folder) for name in _needs(library)}
    return [
        library for library in _libraries(folder) if library.parent.suffix == ".libs" and library.name not in needed
    ]


def main() -> None:
    """Removes, then looks whether all is there that is needed."""
    folder = Path(sys.argv[1])
    before = _size(folder)
    for path in unused(folder):
        if path.is_dir():
            for inner in sorted(path.rglob("*"), reverse=True):
                inner.rmdir() if inner.is_dir() else inner.unlink()
            path.rmdir()
        else:
            path.unlink()
    while found := orphans(folder):
        for library in found:
            library.unlink()
    for pattern in STRIPPED:
        for library in folder.glob(pattern):
            subprocess.run(["strip", "--strip-unneeded", library], check=True)
    there = {library.name for library in _libraries(folder)}
    for library in _libraries(folder):
        # auditwheel puts a digest into the names of what it copies into a wheel.
        missing = [name for name in _needs(library) if re.search(r"-[0-9a-f]{8}[.-]", name) and name not in there]
        if missing:
            sys.exit(f"{library} needs {missing[0]}, which UNUSED in docker/slim.py removes: shorten that list")
    sys.stdout.write(f"{folder}: {before / 1e6:.0f} MB, now {_size(folder) / 1e6:.0f} MB\n")


def _libraries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.so*") if path.is_file()]


def _needs(library: Path) -> list[str]:
    told = subprocess.run(["readelf", "--dynamic", "--wide", library], check=True, capture_output=True, text=True)
    return re.findall(r"\(NEEDED\).*\[(.+)\]", told.stdout)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
