"""Gateways on loopback, each a process."""

import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from model_servers import Server

BOOKSERVE = str(Path(sys.executable).with_name("bookserve"))


@dataclass
class Gateway:
    """A gateway process."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


def start_gateway(log: Path, *arguments: str, host: str) -> Gateway:
    command = [BOOKSERVE, "gateway", "--port=0", *arguments]
    with log.open("w") as errors_file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors_file, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.fullmatch(rf"gateway ready on http://{re.escape(host)}:(\d+) \(model server .*\)\n", line)
    assert match, f"{line!r}\n{log.read_text()}"
    return Gateway(process, int(match[1]), log)


@dataclass
class Servers:
    """A model server and a gateway before it, both of the store `models_dir`."""

    model_server: Server
    gateway_url: str
    models_dir: Path
