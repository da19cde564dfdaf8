"""`bookserve serve`: the model server and the gateway together on loopback, over one model store.

What `make serve` runs. On an empty store the models are trained first; nothing is trained into a bucket. Both servers
are processes of their own; Ctrl-C or SIGTERM drains the gateway, then the model server, and when one of them dies the
other is stopped. Of their logs warnings and errors are shown, and with --verbose all lines.
"""

import ctypes
import http.client
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from signal import SIGINT, SIGTERM, signal

import click

from bookserve.clients.doctor import left_out
from bookserve.serving.wire import bucket
from bookserve.serving.wire.bucket import BucketAddress, BucketError

_HOST = "127.0.0.1"
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # Linux's prctl(2)
_PEM = click.Path(exists=True, dir_okay=False, path_type=Path)


class _Stopped(Exception):
    """SIGTERM or Ctrl-C, by `number`."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Asked:
    """Notes that SIGTERM or Ctrl-C came; `wait` raises where it is time to hear of it.

    A handler that raises by itself can be lost: Python drops what is raised in a callback, such as those of a fork.
    """

    def __init__(self) -> None:
        self._number = 0
        for number in (SIGTERM, SIGINT):
            signal(number, self._note)  # more than one changes nothing: the drain has its own time limit

    def _note(self, number: int, frame: object) -> None:
        self._number = self._number or number

    def wait(self) -> None:
        """A moment. Raises _Stopped."""
        if self._number:
            raise _Stopped(self._number)
        time.sleep(_POLL_SECONDS)


def _place(context: click.Context, parameter: click.Parameter, value: str) -> Path | BucketAddress:
    """Where the models are, as --models-dir says."""
    try:
        return bucket.parse(value) if bucket.is_address(value) else Path(value)
    except BucketError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option(
    "--models-dir",
    default="models",
    callback=_place,
    show_default=True,
    help="The model store, or its address in a bucket: s3://, gs:// or az://BUCKET/PATH.",
)
@click.option("--profile", default="default", show_default=True, help="Of the training, when the store is empty.")
@click.option("--data", default="auto", show_default=True, help="For the training, when the store is empty.")
@click.option(
    "--data-dir",
    default=None,
    type=click.Path(path_type=Path),
    envvar="DATA_DIR",
    help="A folder with the training's data files, looked into first.  [env: DATA_DIR]",
)
@click.option(
    "--runs-dir",
    default=Path("runs"),
    type=click.Path(file_okay=False, path_type=Path),
    show_default=True,
    help="For the training, when the store is empty.",
)
@click.option(
    "--grpc-port", default=8500, show_default=True, type=click.IntRange(1, 65535), help="Of the model server's gRPC."
)
@click.option(
    "--rest-port", default=8501, show_default=True, type=click.IntRange(1, 65535), help="Of the model server's REST."
)
@click.option(
    "--gateway-port",
    default=8080,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Of the gateway and its page.",
)
@click.option(
    "--bind",
    default=_HOST,
    show_default=True,
    help="The address that the gateway listens on; the model server stays on loopback.",
)
@click.option("--tls-cert", type=_PEM, help="PEM file of the gateway's own certificate: speak TLS on its port.")
@click.option("--tls-key", type=_PEM, help="PEM file of its key.")
@click.option(
    "--allowed-hosts",
    default="",
    help="Names that requests of the gateway may have as Host, with commas, beside loopback's and --bind; * for any.",
)
@click.option(
    "--api-keys",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file with a key a line, or NAME:KEY: a request to the gateway's /api/ must have one.",
)
@click.option(
    "--require-signature",
    type=_PEM,
    help="PEM file of a public key: only versions that 'bookserve models sign' signed with its private key are served.",
)
@click.option(
    "--verbose", is_flag=True, help="Show the servers' whole logs, with a line for each request of the gateway."
)
def main(
    models_dir: Path | BucketAddress,
    profile: str,
    data: str,
    data_dir: Path | None,
    runs_dir: Path,
    grpc_port: int,
    rest_port: int,
    gateway_port: int,
    bind: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    allowed_hosts: str,
    api_keys: Path | None,
    require_signature: Path | None,
    verbose: bool,
) -> None:
    """Model server and gateway together, on loopback; trains first when there are no models.

    --bind opens the gateway to others; give it --api-keys then, and --tls-cert with --tls-key, or TLS in front.
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together: the gateway's certificate and its key")
    asked = _Asked()
    ports = {"--grpc-port": grpc_port, "--rest-port": rest_port, "--gateway-port": gateway_port}
    _check_ports(ports)
    level = "info" if verbose else "warning"
    steps = _Steps()
    servers: list[tuple[str, subprocess.Popen[bytes]]] = []
    stopped = 0
    try:
        if isinstance(models_dir, Path):
            if not _trained(models_dir):
                _train(models_dir, profile, data, data_dir, runs_dir, asked)
                steps.done("models trained and exported")
            _tell_missing(models_dir)
        server_flags = [f"--port={grpc_port}", f"--rest_api_port={rest_port}", f"--bind_address={_HOST}"]
        root = models_dir.absolute() if isinstance(models_dir, Path) else models_dir
        server_flags += [f"--model_root={root}", f"--log_level={level}", "--enable_metrics"]
        server_flags += [f"--require_signature={require_signature}"] if require_signature is not None else []
        servers.append(("model server", _run("model-server", *server_flags)))
        _wait_for(f"http://{_HOST}:{rest_port}/readyz", servers, asked)
        steps.done(f"model server ready, with the models of {models_dir}")
        gateway_options = ["--port", str(gateway_port), "--model-server", f"{_HOST}:{grpc_port}"]
        gateway_options += ["--model-server-rest", f"http://{_HOST}:{rest_port}"]
        gateway_options += ["--log-level", level, "--bind", bind, "--allowed-hosts", allowed_hosts]
        gateway_options += ["--api-keys", str(api_keys)] if api_keys is not None else []
        gateway_options += ["--models-dir", str(models_dir)]
        for option, file in (("--tls-cert", tls_cert), ("--tls-key", tls_key)):
            gateway_options += [option, str(file)] if file is not None else []
        servers.append(("gateway", _run("gateway", *gateway_options, quiet=not verbose)))
        gateway = f"{'http' if tls_cert is None else 'https'}://{_reached_at(bind)}:{gateway_port}"
        _wait_for(f"{gateway}/healthz", servers, asked)
        steps.done("gateway ready")
        click.echo(
            "\nCtrl-C stops both.\n\n"
            f"  web page  {gateway}/\n"
            f"  REST      http://{_HOST}:{rest_port}/v1/models\n"
            f"  gRPC      {_HOST}:{grpc_port}"
        )
        while True:
            _check_alive(servers)
            asked.wait()
    except _Stopped as stop:
        stopped = stop.number
        if servers:
            click.echo("stopping: what was asked is answered first")
    finally:
        failed = [name for name, process in reversed(servers) if not _end(process)]
    if failed:
        raise click.ClickException(f"the {' and the '.join(failed)} did not stop cleanly: see the log above")
    if servers:
        click.echo(f"{' and '.join(name for name, _ in servers)} stopped; the same command starts them again")
    else:
        click.echo(
            "training stopped; 'bookserve train-all' trains all models, the same command serves those that are there"
        )
    if stopped == SIGINT:
        raise SystemExit(128 + SIGINT)


def _reached_at(bind: str) -> str:
    """The host by which this machine reaches a server that listens on an address."""
    if bind in ("0.0.0.0", "::"):
        return _HOST if bind == "0.0.0.0" else "[::1]"
    return f"[{bind}]" if ":" in bind else bind


class _Steps:
    """Prints each step of the start with the seconds that it took."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def done(self, what: str) -> None:
        """A step is done, and the next one begins."""
        now = time.monotonic()
        click.echo(f"{now - self._since:6.1f} s  {what}")
        self._since = now


def _check_ports(ports: dict[str, int]) -> None:
    if len(set(ports.values())) < len(ports):
        raise click.ClickException(f"{', '.join(ports)} must differ")
    for option, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError as error:
                name = option.removeprefix("--").replace("-", "_").upper()
                raise click.ClickException(
                    f"port {port} cannot be used ({error.strerror}): choose another with {option} (make serve {name}=…)"
                ) from error


def _trained(models_dir: Path) -> set[str]:
    """The models of which a version was published."""
    return {manifest.parents[2].name for manifest in models_dir.glob("*/[1-9]*/assets.extra/manifest.json")}


def _tell_missing(models_dir: Path) -> None:
    """Names the models of the book that a stopped training has left out; a store without any of them is the user's."""
    names = " ".join(left_out(_trained(models_dir)))
    if names:
        elsewhere = "" if models_dir == Path("models") else f" --models-dir={models_dir}"
        click.echo(f"not trained yet: {names} ('bookserve train-all{elsewhere} {names}' trains them)")


def _train(models_dir: Path, profile: str, data: str, data_dir: Path | None, runs_dir: Path, asked: _Asked) -> None:
    click.echo(f"{models_dir} holds no models yet: training them first (profile {profile}, data {data})")
    options = [f"--profile={profile}", f"--data={data}", f"--models-dir={models_dir}", f"--runs-dir={runs_dir}"]
    if data_dir is not None:
        options.append(f"--data-dir={data_dir}")
    training = _run("train-all", *options)
    try:
        while training.poll() is None:
            asked.wait()
    except _Stopped:
        _end(training)
        raise
    if training.returncode:
        raise click.ClickException(
            "the training failed, its message is above. Without it: 'bookserve models add NAME PATH' puts a model of "
            "yours into the store, then serve again"
        )


def _run(*arguments: str, quiet: bool = False) -> subprocess.Popen[bytes]:
    # A process group of its own: Ctrl-C reaches this process alone, which stops the others in order.
    return subprocess.Popen(
        [sys.executable, "-m", "bookserve.clients.command_line", *arguments],
        start_new_session=True,
        stdout=subprocess.DEVNULL if quiet else None,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    """Runs in the child before its program: it gets SIGTERM when this process dies, so no server is left behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(SIGTERM))


def _wait_for(url: str, servers: list[tuple[str, subprocess.Popen[bytes]]], asked: _Asked) -> None:
    end = time.monotonic() + _START_SECONDS
    while not _answers(url):
        _check_alive(servers)
        if time.monotonic() > end:
            raise click.ClickException(
                f"the {servers[-1][0]} is not ready after {_START_SECONDS:g} s: see its log above"
            )
        asked.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5, context=_any_certificate()):
            return True
    except (OSError, http.client.HTTPException):  # also of another program that has taken the port meanwhile
        return False


def _any_certificate() -> ssl.SSLContext:
    """The names in the gateway's certificate are those by which others ask; here it is this process's own child."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _check_alive(servers: list[tuple[str, subprocess.Popen[bytes]]]) -> None:
    for name, process in servers:
        if process.poll() is not None:
            raise click.ClickException(f"the {name} ended with status {process.returncode}: its log is above")


def _end(process: subprocess.Popen[bytes]) -> bool:
    """Stops a process with SIGTERM, and with SIGKILL when that does not do; true unless it failed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode in (0, -SIGTERM)
