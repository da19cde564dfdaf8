"""A process that runs RDKit for the gateway: molecules as JSON lines on standard input, answers on standard output.

Started by `chemist.py`, which kills it when it takes too long. It limits its own memory, and ends by itself when the
gateway is gone: at the end of its input, or when its alarm goes off in the middle of a molecule.
"""

import base64
import contextlib
import json
import resource
import signal
import sys

import numpy as np

from bookserve.clients.inputs import molecules


def answer(job: str, smiles: str) -> dict[str, str]:
    """One molecule's answer: {"value"}, or {"error"} or {"too_large"} with the reason."""
    try:
        if job == "drawing":
            return {"value": molecules.drawing(smiles)}
        return {"value": base64.b64encode(np.packbits(molecules.fingerprint(smiles)).tobytes()).decode()}
    except molecules.MoleculeTooLarge as error:
        return {"too_large": str(error)}
    except molecules.MoleculeError as error:
        return {"error": str(error)}
    except (MemoryError, RuntimeError, ValueError):  # what RDKit's C++ exceptions arrive as
        return {"error": "RDKit gave up on this molecule"}


def main(memory: int, seconds: float) -> None:
    """Answers until the input ends. `memory` is the address space in bytes, `seconds` the longest one line may take."""
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    molecules.fingerprint(molecules.EXAMPLE)
    molecules.drawing(molecules.EXAMPLE)
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answers = [answer(request["job"], smiles) for smiles in request["smiles"]]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answers), flush=True)  # noqa: T201


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to handle
    main(int(sys.argv[1]), float(sys.argv[2]))
