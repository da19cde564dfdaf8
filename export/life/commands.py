"""The commands of `bookserve models` for versions that are published. They only parse, call and print."""

import json
from pathlib import Path

import click

from bookserve.export import table
from bookserve.export.confined import Limits
from bookserve.export.errors import StoreError
from bookserve.export.life import archive, collect, compare, signing
from bookserve.export.life import promote as promoting
from bookserve.export.life import verify as verifying
from bookserve.export.options import max_memory_option, max_seconds_option, models_dir_option
from bookserve.export.server_options import NOBODY, Asked, server_options, until_loaded
from bookserve.export.store import ModelStore
from bookserve.serving.wire import version_signature
from bookserve.serving.wire.version_signature import SignatureError

_VERSION = click.IntRange(min=1)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("name", required=False)
@click.argument("version", type=_VERSION, required=False)
@click.option("--all", "everything", is_flag=True, help="Every version of NAME, or without NAME of the whole store.")
@click.option("--key", type=_FILE, default=None, help="PEM file of a public key: versions must be signed with it.")
@_json_option
@max_seconds_option
@max_memory_option
@models_dir_option
def verify(
    name: str | None,
    version: int | None,
    everything: bool,
    key: Path | None,
    as_json: bool,
    max_seconds: float,
    max_memory: int,
    models_dir: Path,
) -> None:
    """Check that a version of NAME, by default the newest, is what was published and answers as it did.

    \b
    - Its files are those of the manifest, by their SHA-256.
    - Each graph loads in its engine, in a process of its own.
    - Each graph answers the manifest's example as the manifest says.
    - With --key, it is signed, see 'bookserve models sign'.

    Fails where one of these does not hold. An engine that is not installed is not tried; a line says so.
    """
    store = ModelStore(models_dir)
    try:
        versions = _versions(store, name, version, everything)
        if key is not None:
            version_signature.check_key(key)
    except (StoreError, SignatureError) as error:
        raise click.ClickException(str(error)) from error
    bad, told = [], []
    for model, number in versions:
        findings = []
        if not as_json:
            click.echo(f"{model} version {number}")
        for finding in verifying.verify(store.path(model, number), Limits(max_seconds, max_memory << 20), key):
            findings.append(finding)
            if not as_json:
                click.echo(table.folded(f"  {'' if finding.good else 'WRONG  '}{finding.what}: {finding.told}", 4))
        good = all(finding.good for finding in findings)
        told.append({"model": model, "version": number, "good": good, "findings": verifying.to_json(findings)})
        if not good:
            bad.append(f"{model} version {number}")
    if as_json:
        click.echo(json.dumps(told, indent=2))
    if bad:
        raise click.ClickException(f"{len(bad)} of {len(versions)} versions failed: {', '.join(bad)}")
    if not as_json:
        click.echo(f"{len(versions)} verified")


def _versions(store: ModelStore, name: str | None, version: int | None, everything: bool) -> list[tuple[str, int]]:
    """The versions that `NAME [VERSION]` and `--all` mean."""
    if everything:
        if version is not None:
            raise click.UsageError("--all takes no VERSION")
        if name is not None:
            store.path(name)
        models = store.models() if name is None else [name]
        if not models:
            raise StoreError(f"{store.root} holds no model")
        return [(model, number) for model in models for number in store.versions(model)]
    if name is None:
        raise click.UsageError("give NAME, or --all")
    return [(name, int(store.path(name, version).name))]


@click.command()
@click.argument("name")
@click.argument("first", type=_VERSION)
@click.argument("second", type=_VERSION)
@_json_option
@models_dir_option
def diff(name: str, first: int, second: int, as_json: bool, models_dir: Path) -> None:
    """Show what is different in version SECOND of NAME from version FIRST.

    Compared are contract, how it was made, figures, the number of each operation in the graphs, size and files.
    """
    store = ModelStore(models_dir)
    try:
        told = compare.compare(store.path(name, first), store.path(name, second))
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{name} version {first} -> version {second}")
    for line in compare.lines(told):
        click.echo(table.folded(line, 12))


@click.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Every model of the store.")
@click.option("--keep", type=click.IntRange(min=1), required=True, help="Newest versions of a model that stay.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@server_options
@models_dir_option
def gc(asked: Asked, name: str | None, everything: bool, keep: int, dry_run: bool, models_dir: Path) -> None:
    """Remove old versions of NAME, or of every model.

    The newest --keep versions stay, and also each version that has a label, that is served after a rollback, that
    models.config tells servers to load, or that a server has: those of --server, or else ours that serve this store.
    """
    if everything == (name is not None):
        raise click.UsageError("give NAME, or --all")
    if not asked.seconds:
        raise click.UsageError("--wait must be above 0: what a server has is never removed, so servers are asked")
    store = ModelStore(models_dir)
    freed = 0
    try:
        servers = asked.servers(store)
        for model in store.models() if name is None else [name]:
            plan = collect.plan(store, model, keep, servers)
            for version, why in plan.kept.items():
                click.echo(f"{model} version {version} stays: {why}")
            if dry_run:
                for version, size in plan.gone.items():
                    click.echo(f"{model} version {version} would be removed, {size} bytes")
                freed += sum(plan.gone.values())
            else:
                freed += collect.carry_out(store, plan, click.echo)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{freed} bytes {'would be' if dry_run else 'are'} freed")


@click.command()
@click.argument("name")
@click.argument("target", nargs=-1, required=True, metavar="[VERSION] FILE")
@models_dir_option
@click.pass_context
def pack(context: click.Context, name: str, target: tuple[str, ...], models_dir: Path) -> None:
    """Write a version of NAME, by default the newest, into one FILE, a .tar.gz.

    The same version gives the same bytes. It holds the files of the manifest, and the signature if there is one.
    """
    *before, last = target
    if len(before) > 1:
        raise click.UsageError("give NAME [VERSION] FILE")
    version = _VERSION(before[0], None, context) if before else None
    file = Path(last)
    store = ModelStore(models_dir)
    try:
        left_out = archive.pack(store, name, version, file)
        folder = store.path(name, version)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    if left_out:
        click.echo(f"left out, as it is not in the manifest: {', '.join(left_out)}")
    click.echo(f"{name} version {folder.name} is in {file}, {file.stat().st_size} bytes")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("name", required=False)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=archive.MAX_BYTES,
    show_default=True,
    help="What FILE may hold, unpacked.",
)
@click.option("--key", type=_FILE, default=None, help="PEM file of a public key: FILE must be signed with it.")
@models_dir_option
def unpack(file: Path, name: str | None, max_bytes: int, key: Path | None, models_dir: Path) -> None:
    """Publish the version in FILE, which 'bookserve models pack' made, as a version of NAME.

    NAME is by default the model's own. The version keeps its number where that is free, and becomes the next one where
    another version has it. Everything in FILE is checked before anything is written; it is published whole or not at
    all.
    """
    store = ModelStore(models_dir)
    try:
        made = archive.unpack(store, file, name, max_bytes, key)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    what = f"{made.model} version {made.version}"
    if made.was_there:
        click.echo(f"{what} is in {store.root} already")
        return
    click.echo(f"{what} is published as {store.path(made.model, made.version)}")
    if made.signature_lost:
        click.echo("its signature was for another name or number and is left out: 'bookserve models sign' signs it")


@click.command()
@click.argument("name")
@click.argument("label")
@click.option("--to", "target", default="stable", show_default=True, help="The label that moves to LABEL's version.")
@click.option(
    "--margin",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Percent by which a figure may be worse.",
)
@click.option(
    "--error-margin",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Percent of the requests that may fail more often.",
)
@click.option(
    "--min-requests",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Requests that LABEL's version must have been asked, with --server.",
)
@click.option("--force", is_flag=True, help="Move the label although something is worse.")
@server_options
@models_dir_option
def promote(
    asked: Asked,
    name: str,
    label: str,
    target: str,
    margin: float,
    error_margin: float,
    min_requests: int,
    force: bool,
    models_dir: Path,
) -> None:
    """Move a label, by default 'stable', to the version that LABEL names, such as 'canary', if that is no worse.

    Compared are the figures on the test rows in both manifests and, with --server, how often each version failed to
    answer on those servers since they loaded it. Without the label that moves, the version served by default is the
    one to compare with. The servers load the version first, as for 'bookserve models label'.
    """
    store = ModelStore(models_dir)
    try:
        candidate, current = promoting.versions(store, name, label, target)
        compared = current or store.default_version(name)
        if current == candidate:
            click.echo(f"{name}: '{target}' is version {candidate} already")
            return
        checks = promoting.figures(store.manifest(name, candidate), store.manifest(name, compared), margin / 100)
        if asked.addresses:
            checks += promoting.error_rates(
                asked.servers(store), name, candidate, compared, error_margin / 100, min_requests
            )
        click.echo(f"{name}: version {candidate} instead of version {compared}")
        for check in checks:
            click.echo(f"  {check.told}")
        worse = sum(check.worse for check in checks)
        if worse and not force:
            raise StoreError(f"nothing is changed: {worse} of {len(checks)} checks speak against version {candidate}")
        servers = asked.servers(store)
        store.label(name, target, candidate, until_loaded(servers, name))
        click.echo(f"{name}: '{target}' is version {candidate}")
        servers.until_named(name, {target: candidate})
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"served by {servers}" if servers else NOBODY)


@click.command()
@click.argument("name")
@click.argument("version", type=_VERSION, required=False)
@click.option("--key", type=_FILE, required=True, help="PEM file of an elliptic curve's private key.")
@models_dir_option
def sign(name: str, version: int | None, key: Path, models_dir: Path) -> None:
    """Sign a version of NAME, by default the newest, with a private key of your own. Needs no network.

    The signature covers every file, and with the manifest the name and the number. A pair of keys is made by

    
      openssl ecparam -name prime256v1 -genkey -noout -out private.pem
      openssl ec -in private.pem -pubout -out public.pem

    Model servers with --require_signature=public.pem load only what was signed with private.pem.
    """
    store = ModelStore(models_dir)
    try:
        password = click.prompt("Password of the key", hide_input=True).encode() if signing.is_encrypted(key) else None
        signature = signing.sign(store, name, version, key, password)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{name} version {signature.parent.parent.name} is signed: {signature}")


COMMANDS = (verify, diff, gc, pack, unpack, promote, sign)
