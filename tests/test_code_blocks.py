"""Every code block of the documents runs in a test or says why not, and every command in them exists."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import yaml

from bookserve.clients import command_line
from bookserve.serving.server.settings import flags
from documents import ROOT, Block, all_blocks, commands, documents, inline_commands

# Who runs the blocks of a document, by their language.
RUN_BY = {
    ("README.md", "sh"): "tests/end_to_end/test_readme.py",
    ("README.md", "bash"): "tests/end_to_end/test_documented_servers.py",
    ("README.md", "python"): "tests/clients/test_examples.py",
    ("clients/README.md", "sh"): "tests/end_to_end/test_readme.py",
    ("clients/examples/README.md", "sh"): "tests/clients/test_examples.py",
    ("clients/examples/README.md", "python"): "tests/clients/test_examples.py",
    ("clients/examples/README.md", "go"): "tests/clients/test_examples.py",
    ("clients/examples/README.md", "java"): "tests/clients/test_examples.py",
    ("export/README.md", "python"): "tests/export/converters/test_torch_program.py",
    ("docs/open-inference.md", "sh"): "tests/end_to_end/test_documented_servers.py",
    ("docs/open-inference.md", "python"): "tests/end_to_end/test_documented_servers.py",
    ("docs/runbooks.md", "sh"): "tests/end_to_end/test_runbooks.py",
    ("serving/README.md", "sh"): "tests/end_to_end/test_documented_servers.py",
    ("serving/README.md", "bash"): "tests/end_to_end/test_documented_servers.py",
    ("serving/README.md", "python"): "tests/end_to_end/test_documented_servers.py",
    ("serving/README.md", "text"): "tests/end_to_end/test_documented_servers.py",
}
# Blocks that no test runs, by their document and the beginning of their first line.
_CONTAINERS = "needs containers: tests/containers/check_compose.py runs the compose file where there are some"
_HOURS = "trains for minutes or hours"
_ADDED = "tests/export/test_add.py adds a model and runs the lines that the command prints"
NOT_RUN = {
    ("README.md", "pip install '.[serving,convert]'"): _ADDED,
    ("README.md", "openssl rand -hex 16"): "tests/serving/gateway/test_api_keys.py opens a gateway with keys",
    ("clients/README.md", "bookserve predict mnist pictures/"): "tests/clients/test_predict_many.py runs both kinds",
    ("clients/README.md", "bookserve load score"): "tests/clients/test_load.py runs it on a model of its own",
    ("clients/README.md", "pip install '.[serving,batch]'"): "tests/serving/batch/ runs it on models of its own",
    ("export/README.md", "bookserve models quantize score"): "tests/export/quantization/test_quantize.py runs both",
    ("export/README.md", "bookserve evaluate score"): "tests/clients/test_evaluate.py runs it on a model of its own",
    ("training/README.md", "bookserve train cifar10 --data-dir"): "tests/end_to_end/test_own_data.py runs its lines",
    ("ARCHITECTURE.md", "flowchart TD"): "a drawing",
    ("CONTRIBUTING.md", "make install "): "runs all tests",
    ("docker/README.md", "make up TRAINING=smoke"): _CONTAINERS,
    ("clients/javascript/README.md", "import { Client"): "tests/clients/test_javascript.py runs these methods",
    ("docker/README.md", "docker run --rm -p "): _CONTAINERS,
    ("docker/README.md", "docker save "): "needs the images",
    ("docker/README.md", "podman system service"): _CONTAINERS,
    ("docker/README.md", "docker compose -p bookserve -f docker/compose.yaml --profile gpu build"): "needs a GPU",
    ("docker/README.md", "docker run -d --name bookserve-train"): "needs two hosts",
    ("docker/README.md", "docker run --rm -v bookserve-runs:/runs"): "needs the run of two hosts",
    ("docker/README.md", "kubectl apply -k "): "needs a cluster: tests/docker/test_kubernetes.py renders the overlays",
    ("docker/README.md", "docker compose -p bookserve -f docker/compose.yaml --profile tfserving up"): _CONTAINERS,
    (
        "serving/README.md",
        "python -c 'import tensorflow",
    ): "tests/serving/server/api/test_profiler.py has the load",
    (
        "serving/README.md",
        "curl -H 'Content-Type: application/json' -d '{\"smiles\"",
    ): "tests/serving/gateway/test_tox21.py asks it",
    ("serving/README.md", "printf "): "tests/serving/gateway/test_lines.py runs it",
    ("serving/README.md", "export AWS_ACCESS_KEY_ID="): "tests/serving/server/test_buckets.py has a bucket",
    ("training/README.md", "pip install '.[training,mlflow]'"): "tests/training/test_tracking.py runs the command",
    ("training/README.md", "export TF_CONFIG="): "needs two hosts: tests/training/devices/test_hosts.py has two here",
    ("training/README.md", "bookserve train ptb "): _HOURS,
    ("training/README.md", "bookserve train cifar10 "): _HOURS,
    ("training/README.md", "bookserve tune tox21 "): _HOURS,
}
# Programs of others, whose options are theirs.
FOREIGN = {
    "bookserve-probe",
    "cat",
    "cp",
    "curl",
    "cut",
    "df",
    "du",
    "echo",
    "kubectl",
    "mkdir",
    "mv",
    "openssl",
    "podman",
    "printf",
    "rm",
    "tar",
}


@pytest.fixture(autouse=True)
def _where_a_reader_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project folder with a store: options that name one look whether it is there."""
    (tmp_path / "models").mkdir()
    (tmp_path / "clients").symlink_to(ROOT / "clients")
    monkeypatch.chdir(tmp_path)


def keys(block: Block) -> list[tuple[str, str]]:
    return [key for key in NOT_RUN if key[0] == block.document and block.first_line.startswith(key[1])]


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: f"{block.document}: {block.first_line[:40]}")
def test_a_block_runs_in_a_test_or_says_why_not(block: Block) -> None:
    if not keys(block):
        runner = RUN_BY.get((block.document, block.language))
        assert runner, "name its test in RUN_BY, or the reason in NOT_RUN"
        assert Path(block.document).name in (ROOT / runner).read_text(encoding="utf-8")


def test_no_block_is_listed_that_has_gone() -> None:
    found = all_blocks()
    assert {key for block in found for key in keys(block)} == set(NOT_RUN)
    assert set(RUN_BY) <= {(block.document, block.language) for block in found}


SHELL_BLOCKS = [block for block in all_blocks() if block.is_shell]


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: f"{block.document}: {block.first_line[:40]}")
def test_every_command_of_a_block_exists(block: Block) -> None:
    found = list(commands(block.text))
    assert found
    for words in found:
        check(words)


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_in_a_text_exists(document: Path) -> None:
    for command in inline_commands(document):
        if "…" not in command and "|" not in command:
            for words in commands(command):
                check(words)


@pytest.mark.parametrize(
    "command",
    [
        "bookserve train mnist --profil=full",
        "bookserve models lable mnist stable 3",
        "bookserve model-server --model_rot=models",
        "make train-al",
        "make serve PROFIL=smoke",
        "pip install '.[severing]'",
        "python tests/benchmarks/trainings.py ptb",
        "docker compose -f docker/composed.yaml --profile cpu up",
        "docker compose -f docker/compose.yaml --profile gpus up",
        "docker compose -f docker/compose.yaml run --rm trains mnist",
        "docker run bookserve-training:dev train mnist --profiles=full",
        "docker run bookserve-trainings:dev train mnist",
        "bokserve doctor",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    ((words),) = commands(command)
    with pytest.raises((AssertionError, click.ClickException)):
        check(words)


def check(words: list[str]) -> None:
    """Whether a command, its subcommands, options, files and targets exist; nothing is run."""
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    assert program in PROGRAMS or program in FOREIGN, f"no such command: {program}"
    if program in PROGRAMS:
        PROGRAMS[program](arguments)


def check_bookserve(arguments: list[str]) -> None:
    """Parses the arguments as click does, without the defaults of prompts and without running anything."""
    if arguments == ["model-server"]:
        return
    if arguments[0] == "model-server":
        unknown = [line for line in flags.parse(arguments[1:])[1] if line.startswith("unknown")]
        assert not unknown
        return
    command: click.Command = command_line.main
    context = click.Context(command)
    while isinstance(command, click.Group):
        if not arguments or arguments[0].startswith("--"):
            return
        name, *arguments = arguments
        found = command.get_command(context, name)
        assert found is not None, f"no such command: bookserve {name}"
        command = found
    only_named = not arguments or arguments == ["--help"]
    if not only_named:
        try:
            command.make_context(command.name, [place(argument) for argument in arguments])
        except click.BadParameter as error:
            if "does not exist" not in error.message:  # the reader has the file
                raise


def place(argument: str) -> str:
    """An argument as the reader would write it: `[MODEL…]` and the like stand for a model, N for a number."""
    return {"NAME": "mnist", "[MODEL…]": "mnist", "N": "1"}.get(argument, argument)


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        known = rf"^{re.escape(name)} *\?=" if equals else rf"^{re.escape(name)}:"
        assert re.search(known, makefile, re.MULTILINE), f"the Makefile has no {argument}"


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for argument in arguments[1:]:
        if named := re.fullmatch(r"(?:\.|bookserve)\[(.*)\]", argument):
            assert set(named[1].split(",")) <= set(extras), f"no such extra: {argument}"


def check_python(arguments: list[str]) -> None:
    if arguments and arguments[0] != "-c":
        assert (ROOT / arguments[0]).is_file(), f"no such file: {arguments[0]}"


def check_docker(arguments: list[str]) -> None:
    if arguments[0] == "compose":
        check_compose(arguments[1:])
        return
    images = [(place, word) for place, word in enumerate(arguments) if re.fullmatch(r"bookserve-[\w-]+:dev", word)]
    targets = [image.removeprefix("bookserve-").removesuffix(":dev") for _, image in images]
    for target in targets:
        assert re.search(rf"^FROM \S+ AS {target}$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE), target
    if arguments[0] == "save":
        return
    assert arguments[0] == "run", f"docker {arguments[0]} is not known here"
    assert len(images) == 1
    if targets[0].startswith("training"):
        check_bookserve(arguments[images[0][0] + 1 :])


def check_compose(arguments: list[str]) -> None:
    """Options before the subcommand, the profile, and the service that `run` names."""
    file = ROOT / arguments[arguments.index("-f") + 1]
    assert file.is_file(), f"no such file: {file}"
    services = yaml.safe_load(file.read_text(encoding="utf-8"))["services"]
    if "--profile" in arguments:
        profile = arguments[arguments.index("--profile") + 1]
        assert any(profile in service.get("profiles", []) for service in services.values()), f"no profile {profile}"
    if "run" in arguments:
        rest = [word for word in arguments[arguments.index("run") + 1 :] if word != "--rm"]
        if rest[0] == "--entrypoint":
            check_bookserve(rest[3:])
            rest = rest[2:]
        assert rest[0] in services, f"no service {rest[0]}"


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "bookserve": check_bookserve,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "docker": check_docker,
    "docker-compose": check_compose,
}
