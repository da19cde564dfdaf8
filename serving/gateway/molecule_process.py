"""A process that runs RDKit for the gateway; its standard input is the connection to `molecule_pool.py`.

It limits its own memory, and ends by itself when the gateway is gone: when the connection closes, or when its alarm
goes off in the middle of a molecule.
"""

import contextlib
import json
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from bookserve.clients.inputs import molecule_atoms, molecules


def answer(request: dict[str, Any], smiles: str) -> tuple[str, str, int | None]:
    """One molecule's answer: "value" and what was asked for, or "error" or "too_large", the reason and the place."""
    try:
        if request["job"] == "drawing":
            return "value", molecules.drawing(smiles, request["weights"]), None
        if request["job"] == "digest":
            return "value", f"{molecules.version()} {molecules.digest(request['names'])}", None
        radius, bits, names = request["radius"], request["bits"], request["names"]
        if request["job"] == "without":
            found = molecule_atoms.without_each(smiles, radius, bits, names)
            return "value", "\n".join(f"{symbol} {_hex(made)}" for symbol, made in found), None
        return "value", _hex(molecules.describe(smiles, radius, bits, names)), None
    except molecules.MoleculeTooLarge as error:
        return "too_large", str(error), error.position
    except molecules.MoleculeError as error:
        return "error", str(error), error.position
    except (MemoryError, RuntimeError, ValueError):  # what RDKit's C++ exceptions arrive as
        return "error", "RDKit gave up on this molecule", None


def _hex(made: molecules.Description) -> str:
    return " ".join(part.tobytes().hex() for part in (made.fingerprint, made.counts, made.values))


def main(memory: int, seconds: float) -> None:
    """Answers until the connection closes.

    `memory` is the address space in bytes, `seconds` the longest that one message may take.
    """
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    molecules.describe(molecules.EXAMPLE, molecules.RADIUS, molecules.BITS, ("MolWt",))
    molecules.drawing(molecules.EXAMPLE)
    with Connection(sys.stdin.fileno()) as connection, contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_REAL, seconds)
            answers = [answer(request, smiles) for smiles in request["smiles"]]
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(json.dumps(answers).encode())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to handle
    main(int(sys.argv[1]), float(sys.argv[2]))
