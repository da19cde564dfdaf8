"""The program of a worker: a process that answers requests, which the main process starts (`workers/pool.py`).

Its arguments are the descriptor of a socket to the main process and the server's flags. When it has imported what it
needs, it waits there for its number, the APIs of its listening sockets and, as descriptors, the socket over which it is
told what to do and those sockets. It loads, unloads and drains as the main process says, and ends at once when that is
gone.
"""

import asyncio
import gc
import importlib
import json
import logging
import os
import signal
import socket
import sys

from bookserve.serving.server.assembly import Process, run
from bookserve.serving.server.models.catalog import State
from bookserve.serving.server.observability.metrics import Snapshot
from bookserve.serving.server.settings import flags as flag_parser
from bookserve.serving.server.settings import server_log
from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.supervisor import end_with
from bookserve.serving.server.transport.listeners import Api
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.server.workers.channel import Channel
from bookserve.serving.server.workers.worker_catalog import WorkerCatalog
from bookserve.serving.wire import tensorflow_serving_pb2 as messages

log = logging.getLogger(__name__)

_MAX_SOCKETS = 253  # that Linux passes in one message


class MainProcessAdmin:
    """The `Admin` that has the main process do it."""

    def __init__(self, main: Channel) -> None:
        self._main = main

    async def config(self) -> messages.ModelServerConfig:
        """See Admin.config."""
        return messages.ModelServerConfig.FromString(await self._main.ask("config"))

    async def reload(self, config: messages.ModelServerConfig) -> None:
        """See Admin.reload."""
        await self._main.ask("reload", config.SerializeToString())

    async def add_or_replace(self, model: messages.ModelConfig) -> None:
        """See Admin.add_or_replace."""
        await self._main.ask("add_or_replace", model.SerializeToString())

    async def remove(self, name: str) -> None:
        """See Admin.remove."""
        await self._main.ask("remove", name)

    async def load(self, name: str) -> None:
        """See Admin.load."""
        await self._main.ask("load_model", name)


class Worker:
    """Everything that the main process may have this one do."""

    def __init__(self, flags: Flags, number: int, sockets: list[tuple[Api, socket.socket]]) -> None:
        self._process = Process(flags, number)
        self._catalog = WorkerCatalog(self._process.loader)
        self._sockets = sockets
        self._ending = asyncio.Event()
        self.main = Channel(
            {
                "state": self._follow,
                "load": self._catalog.load,
                "unload": self._catalog.unload,
                "answer": lambda: None,
                "serve": self._serve,
                "metrics": lambda: self._process.snapshot(),
                "stop_being_ready": self._process.stop_being_ready,
                "drain": lambda: self._process.ports.drain(),
                "finish": lambda seconds: self._process.ports.finish(seconds),
                "exit": self._ending.set,
            }
        )
        self._process.connect(self._catalog, MainProcessAdmin(self.main), self._snapshots)

    async def run(self) -> int:
        """Does as the main process says; answers the exit status."""
        self._process.start(self._end_with_main())
        await self._ending.wait()
        self._process.stop_tasks()
        await self._process.loader.close()
        await self._process.write_logs()
        await self.main.close()
        return 0

    async def _end_with_main(self) -> None:
        await self.main.lost.wait()
        logging.shutdown()
        os._exit(1)

    def _follow(self, state: State) -> None:
        self._process.observer.follow([model.setting for model in state.models.values()])
        self._catalog.follow(state)

    async def _serve(self) -> None:
        gc.collect()
        gc.freeze()
        await self._process.serve(self._sockets)

    async def _snapshots(self) -> list[Snapshot]:
        """The metrics of all processes."""
        snapshots: list[Snapshot] = await self.main.ask("snapshots")
        return snapshots


def _wait_for_task(descriptor: int) -> tuple[int, socket.socket, list[tuple[Api, socket.socket]]]:
    """The number of this worker, the socket to the main process and the listening sockets."""
    with socket.socket(fileno=descriptor) as waiting:
        message, descriptors, _, _ = socket.recv_fds(waiting, 1 << 16, _MAX_SOCKETS)
    if not message:
        sys.exit(0)  # the server has ended without a need for this process
    number, apis = json.loads(message)
    control, *listening = [socket.socket(fileno=received) for received in descriptors]
    for one in (control, *listening):
        one.set_inheritable(False)
    return number, control, [(Api(api), one) for api, one in zip(apis, listening, strict=True)]


async def _run(flags: Flags, number: int, control: socket.socket, sockets: list[tuple[Api, socket.socket]]) -> int:
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, lambda: None)  # the main process, which has got it, too, decides
    try:
        worker = Worker(flags, number, sockets)
    except ServingError as error:  # files that the flags name have changed since the main process read them
        log.error("%s", error)
        return 1
    await loop.create_unix_connection(lambda: worker.main, sock=control)
    return await worker.run()


def main() -> None:
    """Runs the process."""
    end_with(os.getppid())  # were it too busy to notice that the main process is gone
    flags, _ = flag_parser.parse(sys.argv[2:])
    importlib.import_module("bookserve.serving.server.engines.onnx_engine")  # which most versions need
    number, control, sockets = _wait_for_task(int(sys.argv[1]))
    server_log.configure(flags.log_format, flags.log_level, number)
    run(_run(flags, number, control, sockets))


if __name__ == "__main__":
    main()
