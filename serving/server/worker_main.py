"""The program of a follower: a process that answers requests beside the leader, which starts it (`workers/pool.py`).

Its arguments are its number, the descriptors of two sockets to the leader, and the server's flags. It loads, unloads
and drains as the leader says, takes over the connections that it is handed, and ends at once when the leader is gone.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from typing import Any

from bookserve.serving.server.assembly import Process, run
from bookserve.serving.server.models.catalog import State
from bookserve.serving.server.models.replica import Replica
from bookserve.serving.server.observability.metrics import Snapshot
from bookserve.serving.server.settings import flags as flag_parser
from bookserve.serving.server.settings import server_log
from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.transport.connections import Activity, Api
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.server.workers.channel import Channel
from bookserve.serving.wire import tensorflow_serving_pb2 as messages

log = logging.getLogger(__name__)

_TELL_SECONDS = 0.05  # between two tellings of how many connections there are
_PR_SET_PDEATHSIG = 1  # Linux's prctl(2); Python has no name for it


class LeadersAdmin:
    """The `Admin` that has the leader do it."""

    def __init__(self, leader: Channel) -> None:
        self._leader = leader

    async def config(self) -> messages.ModelServerConfig:
        """See Admin.config."""
        return messages.ModelServerConfig.FromString(await self._leader.ask("config"))

    async def reload(self, config: messages.ModelServerConfig) -> None:
        """See Admin.reload."""
        await self._leader.ask("reload", config.SerializeToString())

    async def add_or_replace(self, model: messages.ModelConfig) -> None:
        """See Admin.add_or_replace."""
        await self._leader.ask("add_or_replace", model.SerializeToString())

    async def remove(self, name: str) -> None:
        """See Admin.remove."""
        await self._leader.ask("remove", name)

    async def load(self, name: str) -> None:
        """See Admin.load."""
        await self._leader.ask("load_model", name)


class Follower:
    """Everything that the leader may have this process do."""

    def __init__(self, flags: Flags, number: int, taking: socket.socket) -> None:
        """`taking` brings connections."""
        self._loop = asyncio.get_running_loop()
        self._process = Process(flags, number)
        self._replica = Replica(self._process.loader)
        self._taking = taking
        self._received = dict.fromkeys(Api, 0)
        self._ending = asyncio.Event()
        self.leader = Channel(
            {
                "state": self._follow,
                "load": self._replica.load,
                "unload": self._replica.unload,
                "answer": lambda: None,
                "serve": self._serve,
                "metrics": self._snapshot,
                "stop_being_ready": self._process.stop_being_ready,
                "drain": self._drain,
                "finish": self._finish,
                "exit": self._ending.set,
            }
        )
        self._process.connect(self._replica, LeadersAdmin(self.leader), self._snapshots)

    async def run(self) -> int:
        """Does as the leader says; answers the exit status."""
        self._process.start(self._end_with_leader())
        await self._ending.wait()
        self._loop.remove_reader(self._taking.fileno())
        self._process.stop_tasks()
        await self._process.loader.close()
        await self._process.write_logs()
        await self.leader.close()
        return 0

    async def _end_with_leader(self) -> None:
        await self.leader.lost.wait()
        logging.shutdown()
        os._exit(1)

    def _follow(self, state: State) -> None:
        self._process.observer.follow([model.setting for model in state.models.values()])
        self._replica.follow(state)

    def _serve(self) -> None:
        gc.collect()
        gc.freeze()
        self._loop.add_reader(self._taking.fileno(), self._take_connections)
        self._process.start(self._process.connections.sweep())
        self._process.start(self._tell_counts())

    def _take_connections(self) -> None:
        while True:
            try:
                kind, descriptors, _, _ = socket.recv_fds(self._taking, 1, 1)
            except BlockingIOError:
                return
            api = Api(kind)
            self._received[api] += 1
            for descriptor in descriptors:
                endpoint = socket.socket(fileno=descriptor)
                endpoint.set_inheritable(False)
                endpoint.setblocking(False)
                self._process.connections.adopt(api, endpoint)

    async def _tell_counts(self) -> None:
        told: Any = None
        while True:
            counts = {api: (self._received[api], self._process.connections.count(api)) for api in Api}
            if counts != told:
                told = counts
                self.leader.tell("connections", counts)
            await asyncio.sleep(_TELL_SECONDS)

    def _snapshot(self) -> Snapshot:
        return self._process.snapshot()

    async def _snapshots(self) -> list[Snapshot]:
        """The metrics of all processes."""
        snapshots: list[Snapshot] = await self.leader.ask("snapshots")
        return snapshots

    def _drain(self) -> Activity:
        self._take_connections()
        return self._process.connections.drain()

    async def _finish(self, seconds: float) -> None:
        self._take_connections()
        await self._process.connections.finish(seconds)


def _die_with_leader() -> None:
    """Has the kernel kill this process when the leader dies, were it too busy to notice (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _serve(flags: Flags, number: int, control: socket.socket, taking: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, lambda: None)  # the leader, which has got it, too, decides
    taking.setblocking(False)
    try:
        follower = Follower(flags, number, taking)
    except ServingError as error:  # files that the flags name have changed since the leader read them
        log.error("%s", error)
        return 1
    await loop.create_unix_connection(lambda: follower.leader, sock=control)
    return await follower.run()


def main() -> None:
    """Runs the process."""
    _die_with_leader()
    number, control, taking = map(int, sys.argv[1:4])
    flags, _ = flag_parser.parse(sys.argv[4:])
    server_log.configure(flags.log_format, flags.log_level, number)
    with contextlib.closing(socket.socket(fileno=taking)) as taking_socket:
        run(_serve(flags, number, socket.socket(fileno=control), taking_socket))


if __name__ == "__main__":
    main()
