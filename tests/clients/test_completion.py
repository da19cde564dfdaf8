"""Completion as a person meets it: a real shell reads the script, and is asked what Tab would give."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from book_contracts import write_manifests
from bookserve.clients import command_line
from bookserve.clients.command_line import COMMANDS

BIN = Path(sys.executable).parent

# What each shell is told: read the script, then say what completes the line in $LINE.
BASH = """
eval "$(bookserve completion bash)"
read -ra COMP_WORDS <<< "$LINE"
[[ $LINE == *' ' ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_bookserve_completion bookserve
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = """
bookserve completion fish | source
complete --do-complete "$LINE" | string split --fields 1 \\t
"""
# zsh completes only at a terminal: `compadd` and `_describe` are made to print what they are given.
ZSH = """
autoload -Uz compinit && compinit -u -d "$TMPDIR/zcompdump"
eval "$(bookserve completion zsh)"
_describe() { local -a found; found=("${(@P)2}" "${(@P)3}"); print -l -- "${found[@]%%:*}" }
compadd() { local -a found; found=("${(@P)@[-1]}"); print -l -- "${found[@]}" }
words=(${(z)LINE})
[[ $LINE == *' ' ]] && words+=("")
CURRENT=${#words}
_bookserve_completion
"""
SHELLS = {"bash": ("bash", "--norc", "-c", BASH), "zsh": ("zsh", "-f", "-c", ZSH), "fish": ("fish", "-N", "-c", FISH)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a person stands, with a model store."""
    made = tmp_path_factory.mktemp("completion")
    write_manifests(made / "models", ["mnist", "ptb"])
    return made


def _completions(shell: str, folder: Path, line: str) -> list[str]:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "LINE": line,
        "HOME": str(folder),
        "TMPDIR": str(folder),
    }
    done = subprocess.run(SHELLS[shell], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return [found for found in done.stdout.split("\n") if found]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_options_and_models(shell: str, folder: Path) -> None:
    assert _completions(shell, folder, "bookserve mod") == ["models", "model-server"]
    assert _completions(shell, folder, "bookserve predict m") == ["mnist"]


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bookserve load mnist --conn", ["--connections"]),
        ("bookserve completion ", ["bash", "zsh", "fish"]),
        ("bookserve models dif", ["diff"]),
        ("bookserve predict none", []),
    ],
)
def test_a_shell_completes_what_follows_a_command(shell: str, folder: Path, line: str, expected: list[str]) -> None:
    assert sorted(_completions(shell, folder, line)) == sorted(expected)


def test_listing_the_commands_imports_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line.importlib, "import_module", lambda name: pytest.fail(f"{name} is imported"))
    environment = {"_BOOKSERVE_COMPLETE": "bash_complete", "COMP_WORDS": "bookserve ", "COMP_CWORD": "1"}
    done = CliRunner().invoke(command_line.main, prog_name="bookserve", env=environment)
    assert [line.removeprefix("plain,") for line in done.output.splitlines()] == list(COMMANDS)


def test_a_command_whose_extra_is_missing_completes_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError("no", name="optuna")

    monkeypatch.setattr(command_line.importlib, "import_module", fail)
    environment = {"_BOOKSERVE_COMPLETE": "bash_complete", "COMP_WORDS": "bookserve tune --", "COMP_CWORD": "2"}
    done = CliRunner().invoke(command_line.main, prog_name="bookserve", env=environment)
    assert not isinstance(done.exception, ModuleNotFoundError)
    assert "Traceback" not in done.output


def test_another_shell_is_refused_with_those_that_there_are() -> None:
    done = CliRunner().invoke(command_line.main, ["completion", "tcsh"])
    assert done.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in done.output
