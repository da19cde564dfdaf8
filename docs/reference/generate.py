"""Writes the reference pages of this folder from the code: `make reference`.

The flags come from `settings/flags.py`, the commands from their `--help`, the metrics from both servers' own lists.
What a metric of the model server means is written here, since its page has no help lines. A test compares the pages
with what this module makes (tests/test_documents.py).
"""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from bookserve.clients.command_line import COMMANDS, main
from bookserve.serving.gateway.metrics import Metrics as GatewayMetrics
from bookserve.serving.server.observability import metrics
from bookserve.serving.server.observability.metric_families import FAMILIES
from bookserve.serving.server.settings import flags

FOLDER = Path(__file__).resolve().parent
_MADE = "<!-- Made by `make reference`: do not edit. -->"
_WIDTH = 100  # of the help texts


def flags_page() -> str:
    """Every flag of the model server, with its default and its help text."""
    lines = [
        "# Flags of `bookserve model-server`",
        "",
        _MADE,
        "",
        "Write a flag as `--name=value`; a boolean may also be given as `--name`. A space instead of `=` is refused.",
        "",
        "| flag | default | what it does |",
        "|---|---|---|",
    ]
    for flag in fields(flags.Flags):
        lines.append(f"| `--{flag.name}` | {_default(flag.default)} | {_cell(flag.metadata['help'])} |")
    lines += [
        "",
        "## Flags without effect",
        "",
        "`tensorflow_model_server` has these flags, too. They are accepted, and a line in the log says so.",
        "",
        "| flag | type | why |",
        "|---|---|---|",
    ]
    for name, kind in flags.WITHOUT_EFFECT.items():
        lines.append(f"| `--{name}` | {kind.__name__} | {_cell(_why(name, kind))} |")
    return "\n".join([*lines, ""])


def _default(value: Any) -> str:
    if value == "":
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _why(name: str, kind: type) -> str:
    if kind is bool:
        try:
            flags.parse([f"--{name}=true"])
        except flags.FlagError as error:
            return f"true is refused: {error}"
    _, (warning,) = flags.parse([f"--{name}={kind()}".replace("=False", "=false")])
    return warning.partition(": ")[2] or "–"


def commands_page() -> str:
    """The help text of every command."""
    top = click.Context(main, info_name="bookserve", terminal_width=_WIDTH, help_option_names=["-h", "--help"])
    lines = [
        "# Commands",
        "",
        _MADE,
        "",
        "`bookserve model-server` takes the flags of [flags.md](flags.md) instead of options.",
        *_help(main, top),
    ]
    for name in COMMANDS:
        command = main.get_command(top, name)
        assert command is not None
        if name == "model-server":
            lines += ["", "## `bookserve model-server`", "", f"{command.help} See [flags.md](flags.md)."]
            continue
        context = click.Context(command, info_name=name, parent=top)
        lines += _help(command, context)
        if isinstance(command, click.Group):
            for child_name in command.list_commands(context):
                child = command.get_command(context, child_name)
                assert child is not None
                lines += _help(child, click.Context(child, info_name=child_name, parent=context))
    return "\n".join([*lines, ""])


def _help(command: click.Command, context: click.Context) -> list[str]:
    return ["", f"## `{context.command_path}`", "", "```text", command.get_help(context), "```"]


def metrics_page() -> str:
    """Every metric of both servers."""
    families = sorted(FAMILIES, key=lambda family: family.name)
    names = [line.split()[2] for line in metrics.render([]).decode().splitlines() if line.startswith("# TYPE ")]
    lines = [
        "# Metrics",
        "",
        _MADE,
        "",
        "## Model server",
        "",
        f"On the REST port at `{metrics.DEFAULT_PATH}`, with `--enable_metrics` or `--monitoring_config_file`.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for family, name in zip(families, names, strict=True):
        lines.append(f"| `{name}` | {family.kind} | {_labels(family.labels)} | {family.help} |")
    lines += [
        "",
        "## Gateway",
        "",
        "On the gateway's port at `/metrics`.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *_gateway_rows(), ""])


def _gateway_rows() -> list[str]:
    counted = GatewayMetrics()
    counted.answered("GET", "/", 200, 0.1)  # so that every family has a series, which shows its labels
    counted.refused(503)
    text = counted.text().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    rows = []
    for name, meaning in re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE):
        series = re.search(rf"^{name}(?:_bucket)?\{{(.*)\}}", text, re.MULTILINE)
        labels = [label for label in re.findall(r'(\w+)="', series[1] if series else "") if label != "le"]
        rows.append(f"| `{name}` | {kinds[name]} | {_labels(labels)} | {meaning} |")
    return rows


def _labels(names: "list[str] | tuple[str, ...]") -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


PAGES = {"flags.md": flags_page, "commands.md": commands_page, "metrics.md": metrics_page}


if __name__ == "__main__":
    for page_name, make in PAGES.items():
        (FOLDER / page_name).write_text(make(), encoding="utf-8")
