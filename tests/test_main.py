"""The command: subcommands, version, completion, what it says of a wrong word."""

import ast
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import lipcomp
from lipcomp import _commands as commands
from lipcomp.__main__ import SUBCOMMANDS, main
from lipcomp.records import Record, append_records


def test_version_and_usage(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lipcomp {lipcomp.__version__}\n"
    assert main(["--help"]) == 0
    assert all(name in capsys.readouterr().out for name in ("bound",))
    assert main([]) == 2


def test_an_interrupt_while_a_command_is_imported_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    path = {"PYTHONPATH": f"{tmp_path}:{Path(lipcomp.__file__).parents[1]}"}
    started = [
        subprocess.Popen(
            [sys.executable, *words.split()], stderr=subprocess.PIPE, text=True, env=os.environ | path
        )
        for words in (
            "-m lipcomp",
            "-umlipcomp.bound -m",
            "-Wi -um train.sweep",
            "-m analyses.paired_study.measure",
        )
    ]
    for process in started:
        assert process.communicate()[1] == "\ninterrupted before it began\n"
        assert process.returncode == 130


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


def test_a_warning_of_the_library_is_one_paragraph_without_code(tmp_path, capsys, monkeypatch):
    """A kill leaves a batch without its end; Python shows the line of code that noticed it."""
    records = tmp_path / "records.jsonl"
    append_records(records, [Record("accuracy.clean", 0.9)])
    append_records(records, [Record("ece", 0.1), Record("brier", 0.1)])
    records.write_bytes(records.read_bytes()[:-5])
    shown = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *told: print(warnings.formatwarning(*told[:4])))
        assert main(["report", str(records), "--out", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert " ".join(said.split()).startswith(f"warning: {records}: 2 lines before and in line 3 are left out")
    assert "_files.py" not in said
    assert warnings.formatwarning is shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_subcommand_and_option(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in (*SUBCOMMANDS, "concentration", "severities"))


def test_completion_of_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "fish"]) == 2
    assert "bash|zsh|tcsh; got 'fish'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["completion", "bash"]])
def test_a_reader_that_closes_the_pipe_is_no_error(words, tmp_path, monkeypatch):
    class Closed(io.FileIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed(tmp_path / "out", "w"))
    assert main(words) == 0


def test_a_name_that_the_terminal_cannot_show_ends_no_command(tmp_path, monkeypatch):
    with io.TextIOWrapper((tmp_path / "out").open("wb"), encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert commands.run(lambda words: print("kernel \u03ba")) == 0
    assert (tmp_path / "out").read_text() == "kernel \\u03ba\n"


def test_the_version_is_cheap():
    code = "import lipcomp, sys; assert lipcomp.__version__; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_messages_of_the_library_name_no_option_of_a_command():
    """They are read in Python too; a command puts its options in."""
    package = Path(lipcomp.__file__).parent
    programs = {
        "jobs/_slurm.py",
        "jobs/_options.py",
        "records/_origin.py",
        "data/_listing.py",
        "measure/_options.py",
    }
    for file in sorted(package.rglob("*.py")):
        if file.name in ("__main__.py", "_commands.py") or str(file.relative_to(package)) in programs:
            continue
        tree = ast.parse(file.read_text())
        documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                named = re.findall(r"(?<!\w)--(?:[a-z][\w-]*|$)", node.value)
                assert (
                    not named
                    or node.value in ("--", "---")
                    or "python -m" in node.value
                    or "ray start" in node.value
                ), (file, node.value)


def test_a_command_names_its_options_for_the_librarys_parameters(monkeypatch):
    parser = commands.Parser()
    for option in (
        "--mean",
        "--std",
        "--image-size",
        "--skip-unreadable",
        "--branch",
        "--data-root",
        "--factory",
        "--layer",
        "--resize",
    ):
        parser.add_argument(option)
    monkeypatch.setattr(commands.Parser, "latest", parser)
    for said, told in {
        "pass mean= and std=, or image_size=32": "pass --mean and --std, or --image-size 32",
        "leave it out with skip_unreadable=True)": "leave it out with --skip-unreadable)",
        "take branch='the top' or branch=\"x\"": "take --branch the top or --branch x",
        "the folder that holds it (root=...)": "the folder that holds it (--data-root)",
        "the file 'runs/mean=3.pt', /data/std=2/x or a.mean=4": "the file 'runs/mean=3.pt', /data/std=2/x or a.mean=4",
        "use arch= or mean==3, or --set mean=2": "use arch= or mean==3, or --set mean=2",
        "the model's mean= is the file's": "the model's --mean is the file's",
        "or let the preprocessing enlarge them (enlarge=True)": "or let the preprocessing enlarge them (--resize)",
        "got mean=(0.5, 1) and std=-1": "got --mean (0.5, 1) and --std -1",
        "wrap it with layer=": "wrap it with layer=",
        "build it yourself (lipcomp.wrap)": "build it yourself (--factory package.module:function)",
    }.items():
        assert commands.as_options(said) == told
