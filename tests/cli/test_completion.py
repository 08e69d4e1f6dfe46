"""Tab completes commands, options, packaged specs and the names of runs in a real shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mnist_ray.cli.main import main
from mnist_ray.config import packaged_specs

COMPLETE = """
cd "$1"; source "$2"; shift 2
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_mnist_ray
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    for name in ("alpha", "beta", "$(touch run)"):
        (tmp_path / "results" / name / "record").mkdir(parents=True)
    (tmp_path / "elsewhere" / "gamma" / "record").mkdir(parents=True)
    return tmp_path / "completion"


def completed(script: Path, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    command = ["bash", "--norc", "-c", COMPLETE, "bash", str(script.parent), str(script), "mnist-ray", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["re"], ["results", "report", "replay"]),
        (["--v"], ["--version"]),
        (["run", "--n"], ["--name"]),
        (["results", "--j"], ["--json"]),
        (["plan", ""], packaged_specs()),
        (["run", "--local", "qu"], ["quickstart"]),
        (["report", ""], ["alpha", "beta"]),
        (["compare", "alpha", "b"], ["beta"]),
        (["report", "--storage", "elsewhere", ""], ["gamma"]),
        (["predict", "--run", "a"], ["alpha"]),
        (["run", "--set", ""], []),
        (["completion", ""], ["bash", "zsh"]),
    ],
)
def test_bash_completes(script: Path, words: list[str], offered: list[str]) -> None:
    assert completed(script, *words) == offered


def test_names_of_folders_are_not_run(script: Path) -> None:
    completed(script, "report", "")
    assert not (script.parent / "run").exists()


def test_script_is_what_bash_loads(script: Path) -> None:
    """As a line in ~/.bashrc: a Tab after `mnist-ray` then calls it."""
    loaded = f'eval "$(cat {script})"; complete -p mnist-ray'
    done = subprocess.run(["bash", "--norc", "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "complete -o default -F _mnist_ray mnist-ray"


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_loads_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    loaded = f"autoload -U compinit && compinit -D\n{capsys.readouterr().out}\nwhence -w _mnist_ray"
    done = subprocess.run(["zsh", "-f", "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "_mnist_ray: function"
