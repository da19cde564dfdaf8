"""Runs a function on foreign files in a child process with limits of time and memory.

What the file does to the child (a crash, no end, all the memory) reaches the caller as one `ConfinedError`. This limits
accidents. It is no sandbox: code that a file brings runs with the rights of the user.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bookserve.export.errors import ConfinedError, ExportError
from bookserve.serving.wire import lean_keras

_LAST_WORDS = 400  # characters of the child's own messages that an error shows


@dataclass(frozen=True)
class Limits:
    """What the child may use: seconds on the clock, and bytes of memory that it writes to; None for any."""

    seconds: float | None = 600.0
    memory_bytes: int | None = 8 << 30

    @property
    def memory(self) -> str:
        """The limit of memory in words."""
        return "there is" if self.memory_bytes is None else f"{self.memory_bytes >> 20} MiB (--max-memory)"


NONE = Limits(None, None)  # for what was made here


def call(target: str, argument: dict[str, Any], limits: Limits) -> Any:
    """What the function `target` ("module:function") gives for `argument`; both are JSON.

    Raises:
        ConfinedError: the child died, took too long or needed more memory; or what the function raised as ExportError.
    """
    with tempfile.TemporaryDirectory(prefix="bookserve-") as scratch:
        result, words = Path(scratch, "result.json"), Path(scratch, "words")
        with words.open("wb") as stream:
            child = subprocess.Popen(
                [sys.executable, "-m", "bookserve.export.confined", target, str(limits.memory_bytes or 0), str(result)],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                # The order of sets is the same in every child: converters go by it, and their graphs are then the same.
                env={
                    **os.environ,
                    "TF_CPP_MIN_LOG_LEVEL": "3",
                    "CUDA_VISIBLE_DEVICES": "",
                    "PYTHONHASHSEED": "0",
                },
            )
            try:
                child.communicate(json.dumps(argument).encode(), timeout=limits.seconds)
            except subprocess.TimeoutExpired as error:
                raise ConfinedError(f"it was not done after {limits.seconds:g} s (--max-seconds)") from error
            finally:
                _end(child)
        try:
            answer = json.loads(result.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfinedError(_how_it_died(child.returncode, words, limits)) from error
    if "error" in answer:
        raise ConfinedError(answer["error"])
    return answer["result"]


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends the child and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _how_it_died(status: int, words: Path, limits: Limits) -> str:
    if status < 0:
        reason = f"it killed the process that tried it ({signal.Signals(-status).name})"
    else:
        reason = f"it ended the process that tried it (status {status})"
    text = words.read_text(encoding="utf-8", errors="replace")
    if "bad_alloc" in text or "MemoryError" in text:
        return f"it needs more memory than {limits.memory}"
    last = text.strip().splitlines()[-1:]
    return f"{reason}: {last[0][:_LAST_WORDS]}" if last else reason


def main() -> None:
    """The child."""
    target, memory, result = sys.argv[1:]
    limits = Limits(memory_bytes=int(memory) or None)
    argument = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits.memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
    module_name, function = target.split(":")
    lean_keras.expect()
    answer: dict[str, Any]
    try:
        gc.disable()  # of what is imported, nothing is garbage
        module = importlib.import_module(module_name)
        gc.enable()
        answer = {"result": getattr(module, function)(argument)}
    except ExportError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": f"it needs more memory than {limits.memory}"}
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        answer = {"error": f"{type(error).__name__}: {lines[0][:_LAST_WORDS]}"}
    Path(result).write_text(json.dumps(answer), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # without the ends of libraries, which may crash or hang after all is done


if __name__ == "__main__":
    main()
