"""`bookserve models push` and `pull`: they only parse, call and print."""

from dataclasses import replace
from pathlib import Path

import click

from bookserve.export.errors import StoreError
from bookserve.export.life import archive, bucket_transfer, registry, registry_transfer
from bookserve.export.life.registry import Reference
from bookserve.export.options import models_dir_option
from bookserve.export.store import ModelStore
from bookserve.serving.wire import bucket
from bookserve.serving.wire.bucket import BucketAddress, BucketError

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _place(context: click.Context, parameter: click.Parameter, value: str) -> BucketAddress | Reference:
    """The place that an argument names."""
    try:
        return registry.parse(value) if value.startswith(registry.SCHEME) else bucket.parse(value)
    except (StoreError, BucketError) as error:
        raise click.BadParameter(f"{error}; or oci://HOST/REPOSITORY:TAG of a registry") from error


@click.command()
@click.argument("version", metavar="NAME[/VERSION]")
@click.argument("destination", callback=_place, metavar="DEST")
@click.option(
    "--labels",
    "with_labels",
    is_flag=True,
    help="In a registry, each label of the version becomes a tag of the same artifact (score:stable), and leaves "
    "the version that it named there before.",
)
@models_dir_option
def push(version: str, destination: BucketAddress | Reference, with_labels: bool, models_dir: Path) -> None:
    """Copy a version, by default the newest of NAME, to a bucket or a registry. Nothing there is replaced.

    \b
    DEST is one of
      s3://BUCKET/PATH  gs://BUCKET/PATH  az://CONTAINER/PATH
      oci://HOST/REPOSITORY:TAG

    In a bucket the version gets the folder NAME/VERSION below PATH, the manifest last: model servers with
    --model_root=DEST load it when it is whole. In a registry it is a ModelPack artifact. Credentials come from the
    cloud's environment variables; for a registry from ORAS_USER and ORAS_PASS, DOCKER_AUTH_CONFIG, or what `docker
    login` or `podman login` left, with their credential helpers.
    """
    name, slash, number = version.partition("/")
    if slash and not (number.isascii() and number.isdigit() and int(number) > 0):
        raise click.UsageError(f"'{version}' is not NAME or NAME/VERSION")
    if with_labels and not isinstance(destination, Reference):
        raise click.UsageError("--labels is for registries: in a bucket, labels are the servers' own")
    store = ModelStore(models_dir)
    labels: list[str] = []
    try:
        folder = store.path(name, int(number) if slash else None)
        if isinstance(destination, Reference):
            if with_labels:
                told = store.release(name).labels
                labels = sorted(label for label, labelled in told.items() if labelled == int(folder.name))
            copied = registry_transfer.push(store, name, int(folder.name), destination, click.echo, labels)
        else:
            copied = bucket_transfer.push(store, name, int(folder.name), destination, click.echo)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    what = f"{name} version {folder.name}"
    click.echo(f"{what} is in {destination}" + ("" if copied else " already"))
    if isinstance(destination, Reference):
        for label in labels:
            click.echo(f"{label} is {replace(destination, tag=label)}")
        click.echo(f"  bookserve models pull {destination}")
        return
    click.echo(f"  bookserve model-server --model_root={destination} --port=8500 --rest_api_port=8501")
    click.echo(f"  bookserve models pull {destination / name / folder.name}")


@click.command()
@click.argument("source", callback=_place)
@click.argument("name", required=False)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=archive.MAX_BYTES,
    show_default=True,
    help="What the version may have.",
)
@click.option("--key", type=_FILE, default=None, help="PEM file of a public key: the version must be signed with it.")
@models_dir_option
def pull(
    source: BucketAddress | Reference, name: str | None, max_bytes: int, key: Path | None, models_dir: Path
) -> None:
    """Publish a version that lies in a bucket or a registry as a version of NAME.

    SOURCE is the address of a version, such as s3://BUCKET/PATH/score/3, or of a model there, whose newest version is
    taken, or oci://HOST/REPOSITORY:TAG. NAME is by default the model's own. The version keeps its number where that is
    free, and becomes the next one where another version has it. Every file must have the SHA-256 of the version's
    manifest; it is published whole or not at all.
    """
    store = ModelStore(models_dir)
    try:
        if isinstance(source, Reference):
            made = registry_transfer.pull(store, source, click.echo, name, max_bytes, key)
        else:
            made = bucket_transfer.pull(store, source, click.echo, name, max_bytes, key)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    what = f"{made.model} version {made.version}"
    if made.was_there:
        click.echo(f"{what} is in {store.root} already")
        return
    click.echo(f"{what} is published as {store.path(made.model, made.version)}")
    if made.signature_lost:
        click.echo("its signature was for another name or number and is left out: 'bookserve models sign' signs it")
    click.echo(f"  bookserve model-server --model_root={store.root} --port=8500 --rest_api_port=8501")
    click.echo(f"  bookserve models verify {made.model} {made.version}")


COMMANDS = (push, pull)
