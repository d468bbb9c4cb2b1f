"""bash, zsh and fish complete the commands, the options and the values of `llmserve`."""

import os
import pathlib
import pty
import select
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.operations
PATIENCE = 60
# What is typed, and the word that it becomes. `{}` is a folder with a file named settings.toml.
CASES = [
    ("llmserve doct", "doctor"),
    ("llmserve keys li", "list"),
    ("llmserve serve --max-runn", "--max-running"),
    ("llmserve chat --temp", "--temperature"),
    ("llmserve top --onc", "--once"),
    ("llmserve bench sweep --concur", "--concurrency"),
    ("llmserve serve --policy late", "lategate"),
    ("llmserve doctor --engine simu", "simulated"),
    ("llmserve completion zs", "zsh"),
    ("llmserve serve --config {}/sett", "{}/settings.toml"),
    ("llmserve keys list {}/sett", "{}/settings.toml"),
    ("llmserve bench table {}/sett", "{}/settings.toml"),
]
BASH = """
    source "$0"
    read -ra COMP_WORDS <<< "$1"
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _shtab_llmserve llmserve "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
    echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return an environment with `llmserve` as a command, and shells without settings."""
    home = tmp_path_factory.mktemp("home")
    command = home / "llmserve"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from frontends.cli.main import main; main()" "$@"\n')
    command.chmod(0o755)
    path = f"{home}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_DATA_HOME": str(home), "TERM": "dumb"}


def script_of(environment, shell):
    """Write the shell's completion to the file completion.SHELL of the home folder; return its path."""
    path = pathlib.Path(environment["HOME"], f"completion.{shell}")
    path.write_text(output_of(environment, "llmserve", "completion", shell))
    return path


def output_of(environment, *command):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert not done.stderr
    return done.stdout


class Terminal:
    """An interactive shell, whose terminal has 200 columns."""

    def __init__(self, environment, *command):
        self._end, other = pty.openpty()
        self._process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env={**environment, "COLUMNS": "200"})
        os.close(other)
        self.text = ""

    def send(self, text):
        os.write(self._end, text.encode())

    def expect(self, words):
        """Return what the shell has printed until these words."""
        end = time.monotonic() + PATIENCE
        while words not in self.text:
            assert time.monotonic() < end, (words, self.text)
            if select.select([self._end], [], [], 0.1)[0]:
                self.text += os.read(self._end, 65536).decode()
        before, _, self.text = self.text.partition(words)
        return before

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._end)


@pytest.fixture(scope="module")
def zsh(environment):
    terminal = Terminal({**environment, "PS1": "$ "}, "zsh", "-f", "-i")
    # Ctrl-X prints the line as it is after a completion, and empties it.
    terminal.send('autoload -Uz compinit && compinit -u -D; eval "$(llmserve completion zsh)"\n')
    terminal.send("show() { print; print -r -- \"line<$BUFFER>\"; BUFFER=; zle accept-line; }; zle -N show; bindkey '^X' show\n")
    terminal.send("print begin''s\n")
    terminal.expect("begins")
    yield terminal
    terminal.close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "settings.toml").touch()
    return str(tmp_path)


every_case = pytest.mark.parametrize(("typed", "expected"), CASES, ids=[typed for typed, _ in CASES])


@pytest.fixture(scope="module")
def bash(environment):
    return script_of(environment, "bash")


@pytest.fixture(scope="module")
def fish(environment):
    return script_of(environment, "fish")


@every_case
def test_bash_completes(environment, bash, folder, typed, expected):
    found = output_of(environment, "bash", "-c", BASH, bash, typed.format(folder))
    assert found.split() == [expected.format(folder)]


@every_case
def test_fish_completes(environment, fish, folder, typed, expected):
    found = output_of(environment, "fish", "-N", "-c", 'source $argv[1]; complete -C "$argv[2]"', fish, typed.format(folder))
    assert found.partition("\t")[0].strip() == expected.format(folder)
    assert found.count("\n") == 1


@every_case
def test_zsh_completes(zsh, folder, typed, expected):
    zsh.send(f"{typed.format(folder)}\t\x18")
    zsh.expect("line<")
    line = zsh.expect(">").replace("\r", "").replace("\n", "")
    before = typed.format(folder).rpartition(" ")[0]
    assert line.strip().split("=") == [f"{before} {expected.format(folder)}"]
