import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from book_contracts import CONTRACTS
from bookserve.clients.inputs import molecules
from bookserve.export.contracts import Fingerprint, Preprocessing
from bookserve.serving.gateway import molecule_pool
from bookserve.serving.gateway.molecule_pool import MoleculePool
from bookserve.serving.gateway.problems import Problem

BITS = Preprocessing("fingerprint", fingerprint=Fingerprint("morgan", radius=2, bits=1024))  # of contract 1


@pytest.fixture
def children(monkeypatch) -> list[subprocess.Popen]:
    """Every process that a pool starts."""
    started = []
    original = subprocess.Popen

    def record(*arguments, **options):
        started.append(original(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(molecule_pool.subprocess, "Popen", record)
    return started


def test_the_process_answers_as_the_functions_do(children) -> None:
    with closing(MoleculePool(processes=1)) as pool:
        assert children == []
        good, bad, large = pool.features(["c1ccccc1O", "C1", "C" * 600], CONTRACTS["tox21"].preprocessing)
        assert pool.drawing("CCO") == molecules.drawing("CCO").encode()
        assert len(children) == 1
    expected = molecules.features("c1ccccc1O", CONTRACTS["tox21"].preprocessing)
    assert list(good) == list(expected) == ["fingerprint", "counts", "descriptors"]
    for name, array in expected.items():
        np.testing.assert_array_equal(good[name], array)
        assert good[name].dtype == array.dtype
    assert type(bad) is molecules.MoleculeError
    assert type(large) is molecules.MoleculeTooLarge
    assert children[0].returncode == -signal.SIGKILL


def test_what_takes_too_long_is_killed_and_the_next_call_works(children) -> None:
    with closing(MoleculePool(processes=1, seconds=1.0)) as pool:
        pool.features(["C"], BITS)
        os.kill(children[0].pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(molecules.MoleculeError, match="more than 1 s"):
            pool.features(["C"], BITS)
        assert time.monotonic() - started < 3
        assert children[0].returncode == -signal.SIGKILL
        assert pool.features(["C"], BITS)[0]["fingerprint"].sum() == 1
    assert len(children) == 2


def test_a_process_that_died_is_replaced(children) -> None:
    with closing(MoleculePool(processes=1)) as pool:
        pool.features(["C"], BITS)
        children[0].kill()
        children[0].wait()
        assert pool.features(["CC"], BITS)[0]["fingerprint"].sum() > 0


def test_a_process_keeps_to_its_memory(children) -> None:
    with closing(MoleculePool(processes=1, memory=2 << 30)) as pool:
        pool.features(["C"], BITS)
        limits = Path(f"/proc/{children[0].pid}/limits")
        if not limits.exists():
            pytest.skip("this system does not show a process's limits")
        line = next(line for line in limits.read_text().splitlines() if line.startswith("Max address space"))
        assert line.split()[3] == str(2 << 30)


def test_when_all_are_busy_others_are_told_to_come_again(children, monkeypatch) -> None:
    monkeypatch.setattr(molecule_pool, "_WAIT_SECONDS", 0.1)
    with closing(MoleculePool(processes=1, seconds=2.0)) as pool:
        pool.features(["C"], BITS)
        os.kill(children[0].pid, signal.SIGSTOP)
        failures = []

        def wait() -> None:
            try:
                pool.features(["C"], BITS)
            except molecules.MoleculeError as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        deadline = time.monotonic() + 5
        while pool._free.qsize() and time.monotonic() < deadline:
            time.sleep(0.005)
        with pytest.raises(Problem) as caught:
            pool.features(["C"], BITS)
        thread.join()
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "2"})
        assert len(failures) == 1


def test_a_process_ends_with_its_gateway() -> None:
    script = (
        "import os, bookserve.serving.gateway.molecule_pool as c; pool = c.MoleculePool(); pool.drawing('C');"
        " print(pool._free.get().process.pid, flush=True); os._exit(1)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    pid = int(result.stdout)
    deadline = time.monotonic() + 10
    while _runs(pid):
        assert time.monotonic() < deadline, "the process outlived its gateway"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
