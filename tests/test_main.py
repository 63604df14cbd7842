"""The command: subcommands, version, completion, what it says of a wrong word."""

import subprocess
import sys

import pytest

import lipcomp
from lipcomp.__main__ import SUBCOMMANDS, main


def test_version_and_usage(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lipcomp {lipcomp.__version__}\n"
    assert main(["--help"]) == 0
    assert all(name in capsys.readouterr().out for name in ("bound",))
    assert main([]) == 2


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert main(["bounds"]) == 2
    assert "did you mean 'bound'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert f"python -m lipcomp.{name}" in capsys.readouterr().out


def test_an_unknown_option_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as end:
        main(["bound", "model.safetensors", "--concentraton", "3"])
    assert end.value.code == 2
    assert "did you mean --concentration?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--data", ""], ["--data="], [""], ["--data", "x", "--out", ""]])
def test_an_empty_argument_is_refused(arguments, capsys):
    """A variable of the shell that is not set would otherwise mean the current folder."""
    with pytest.raises(SystemExit) as end:
        main(["bound", "model.safetensors", *arguments])
    assert end.value.code == 2
    assert "an argument is empty" in capsys.readouterr().err


def test_a_missing_checkpoint_is_one_paragraph_and_exit_1(capsys):
    assert main(["bound", "nowhere.safetensors"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nowhere.safetensors" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_subcommand_and_option(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in (*SUBCOMMANDS, "concentration", "severities"))


def test_completion_of_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "fish"]) == 2
    assert "bash|zsh|tcsh" in capsys.readouterr().err


def test_the_version_is_cheap():
    code = "import lipcomp, sys; assert lipcomp.__version__; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
