"""The fuzz of requests, as its file describes it, for a minute and a half."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.slow
def test_no_request_ends_the_server_hangs_or_is_internal(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(FUZZ), "--seconds", "90", "--seed", "5", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, out.read_text()[-4000:] + done.stderr[-2000:]
    assert "0 deaths, 0 hangs, 0 faults" in out.read_text()
