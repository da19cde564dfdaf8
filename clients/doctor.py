"""The command `bookserve doctor`: what this machine has for training and serving, and what to do about the rest.

Every line is a `Finding`. Only what is broken makes the command fail: what is merely absent, such as a GPU or an extra
that was not installed, is a note.
"""

import http.client
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click
from packaging.requirements import Requirement

from bookserve.export import table
from bookserve.export.options import json_option, local_folder
from bookserve.training.datasets import DOWNLOADED
from bookserve.training.models import MODELS

HOST = "127.0.0.1"
LITTLE_MEMORY, LITTLE_DISK = 4, 2  # GiB: below them trainings of the default profile may fail
SECONDS = 60  # that a question to another program may take: TensorFlow's first import from a cold disk is slow
PROBE_SECONDS = 2  # for a server on loopback
_DATA_DIR = "A folder with the data files, looked into first.  [env: DATA_DIR]"
DEVICES = "import tensorflow as tf; print(*(gpu.name for gpu in tf.config.list_physical_devices('GPU')))"


@dataclass(frozen=True)
class Finding:
    """One line: `advice` says what to do, where something can be done."""

    status: Literal["ok", "note", "bad"]
    about: str
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Places:
    """Where to look: what the options of the command name. What listens in `make serve` -> port."""

    models_dir: Path
    data_dir: Path | None
    ports: Mapping[str, int]


@click.command()
@click.option("--data-dir", default=None, type=click.Path(path_type=Path), envvar="DATA_DIR", help=_DATA_DIR)
@click.option("--grpc-port", default=8500, show_default=True, type=click.IntRange(1, 65535), help="The server's gRPC.")
@click.option("--rest-port", default=8501, show_default=True, type=click.IntRange(1, 65535), help="The server's REST.")
@click.option("--gateway-port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="The gateway's.")
@click.option(
    "--models-dir",
    default=Path("models"),
    type=click.Path(path_type=Path),
    callback=local_folder,
    show_default=True,
    help="The model store.",
)
@json_option
def main(
    data_dir: Path | None, grpc_port: int, rest_port: int, gateway_port: int, models_dir: Path, as_json: bool
) -> None:
    """Look at machine, packages, GPUs, data, models and ports; fails when something is broken."""
    ports = {"the model server's gRPC": grpc_port, "the model server's REST": rest_port, "the gateway": gateway_port}
    places = Places(models_dir, data_dir and data_dir.expanduser(), ports)
    found = []
    for check in CHECKS:
        for finding in check(places):
            found.append(finding)
            if not as_json:
                advice = f": {finding.advice}" if finding.advice else ""
                click.echo(table.folded(f"{finding.status:<5} {finding.about:<10} {finding.text}{advice}", 17))
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in found]}))
    bad = sum(finding.status == "bad" for finding in found)
    if bad:
        raise click.ClickException(f"{bad} of these {'is' if bad == 1 else 'are'} bad")


def machine(places: Places) -> Iterator[Finding]:
    """Python, system, cores, memory and disk."""
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform == "linux":
        yield Finding("ok", "system", system)
    else:
        yield Finding("note", "system", f"{system}: only Linux was ever tried")
    yield Finding("ok", "cores", str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()))
    memory = _available_memory()
    if memory is not None:
        yield _enough("memory", memory, LITTLE_MEMORY, "end other programs, or train with --profile smoke")
    wanted = places.models_dir.absolute()
    folder = next(folder for folder in (wanted, *wanted.parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free / 2**30
    yield _enough("disk", free, LITTLE_DISK, f"make room below {folder}")


def packages(places: Places) -> Iterator[Finding]:
    """What each extra of bookserve needs, by the installed metadata; nothing is imported."""
    bookserve = importlib.metadata.distribution("bookserve")
    needs = [Requirement(text) for text in bookserve.requires or ()]
    for extra in bookserve.metadata.get_all("Provides-Extra") or ():
        missing, old = [], []
        for need in needs:
            if need.marker is None or not need.marker.evaluate({"extra": extra}):
                continue
            try:
                version = importlib.metadata.version(need.name)
            except importlib.metadata.PackageNotFoundError:
                missing.append(need.name)
                continue
            if not need.specifier.contains(version, prereleases=True):
                old.append(f"{need.name} is {version}, needed is {need.specifier}")
        install = f"pip install 'bookserve[{extra}]'"
        if old:
            yield Finding("bad", "packages", f"{extra}: {'; '.join(old)}", install)
        elif missing:
            yield Finding("note", "packages", f"{extra}: not installed ({', '.join(missing)})", install)
        else:
            yield Finding("ok", "packages", f"{extra}: all installed")


def gpus(places: Places) -> Iterator[Finding]:
    """The GPUs that the driver names, and whether TensorFlow can use them."""
    found = _ask(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if not found:
        yield Finding("note", "gpu", "no NVIDIA GPU: everything runs on the processor")
        return
    for line in found.splitlines():
        yield Finding("ok", "gpu", line)
    if importlib.util.find_spec("tensorflow") is None:
        return
    seen = (_ask([sys.executable, "-c", DEVICES]) or "").split()
    if len(seen) == len(found.splitlines()):
        yield Finding("ok", "gpu", f"TensorFlow uses {', '.join(seen)}")
    else:
        text = f"TensorFlow sees {len(seen)} of {len(found.splitlines())}"
        yield Finding("bad", "gpu", text, "pip install 'tensorflow[and-cuda]', or look at CUDA_VISIBLE_DEVICES")


def data(places: Places) -> Iterator[Finding]:
    """Where the files of each data set lie. Their checksums are for the training to check."""
    if places.data_dir is not None and not places.data_dir.is_dir():
        yield Finding("bad", "data", f"DATA_DIR {places.data_dir} is not a folder", "name another, or none")
        return
    for name in DOWNLOADED:
        try:
            dataset = importlib.import_module(f"bookserve.training.datasets.{name}")
        except ModuleNotFoundError:
            return  # without the extra that trains, data is of no use
        folder = dataset.at_hand(places.data_dir)
        if folder is not None:
            yield Finding("ok", "data", f"{name}: in {folder}")
        else:
            yield Finding("note", "data", f"{name}: will be downloaded, or set DATA_DIR to the folder that has it")


def models(places: Places) -> Iterator[Finding]:
    """The newest version of every model, each of its files checked against the manifest."""
    from bookserve.export import manifest as manifests
    from bookserve.export.errors import StoreError
    from bookserve.export.store import ModelStore

    if places.models_dir.is_file():
        yield Finding("bad", "models", f"{places.models_dir} is a file, not a folder", "name another")
        return
    store = ModelStore(places.models_dir)
    names = store.models()
    if not names:
        yield Finding("note", "models", f"none in {places.models_dir}", "'bookserve train-all' makes them")
    for name in names:
        advice = f"'bookserve export {name}' publishes the last run anew"
        try:
            manifest = store.manifest(name)
            changed = manifests.changed_files(store.path(name), manifest)
        except (StoreError, OSError) as error:
            yield Finding("bad", "models", f"{name}: {error}", advice)
            continue
        made = f"profile {manifest.profile}" if manifest.source is None else f"from {manifest.source.format}"
        version = f"{name}: version {manifest.version}, {made}"
        if changed:
            yield Finding("bad", "models", f"{version}: missing or changed: {', '.join(changed)}", advice)
        else:
            yield Finding("ok", "models", version)
    missing = " ".join(left_out(names))
    if missing:
        yield Finding("note", "models", f"not trained yet: {missing}", f"'bookserve train-all {missing}' trains them")


def left_out(names: Collection[str]) -> list[str]:
    """The models that `bookserve train-all` makes and that are not among `names`, unless none of them is."""
    missing = [name for name in MODELS if name not in names]
    return missing if len(missing) < len(MODELS) else []


def ports(places: Places) -> Iterator[Finding]:
    """Whether the ports are free, or bookserve itself has them."""
    users: dict[int, str] = {}
    for purpose, port in places.ports.items():
        other = users.setdefault(port, purpose)
        if other != purpose:
            yield Finding("bad", "ports", f"{port} is for {other}, and for {purpose}", "name two ports")
            continue
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((HOST, port))
            except PermissionError:
                yield Finding("bad", "ports", f"{port} for {purpose} needs more rights", "name one above 1023")
                continue
            except OSError:
                yield _taken(port, purpose)
                continue
        yield Finding("ok", "ports", f"{port} for {purpose} is free")


CHECKS: tuple[Callable[[Places], Iterator[Finding]], ...] = (machine, packages, gpus, data, models, ports)


def _taken(port: int, purpose: str) -> Finding:
    """What to say of a port that something listens on."""
    if _answers_http(port):
        return Finding("ok", "ports", f"{port} for {purpose}: a healthy server answers there")
    if _answers_grpc(port):
        return Finding("ok", "ports", f"{port} for {purpose}: a gRPC server answers there")
    return Finding("note", "ports", f"{port} for {purpose} is in use", "if not by bookserve, name another port")


def _answers_http(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/healthz", timeout=PROBE_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException, ValueError):
        return False


def _answers_grpc(port: int) -> bool:
    try:
        import grpc
    except ImportError:
        return False  # which is told among the packages
    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=PROBE_SECONDS)
        except grpc.FutureTimeoutError:
            return False
    return True


def _enough(about: str, amount: float, little: float, advice: str) -> Finding:
    if amount < little:
        return Finding("bad", about, f"{amount:.1f} GiB free, {little} are needed", advice)
    return Finding("ok", about, f"{amount:.1f} GiB free")


def _available_memory() -> float | None:
    """GiB that programs can have without swapping, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) / 2**20


def _ask(command: list[str]) -> str | None:
    """What a program prints, None where it is not there, fails or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
