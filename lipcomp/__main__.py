"""The command ``lipcomp``; ``lipcomp bound ...`` is the same as ``python -m lipcomp.bound ...``."""

import argparse
import importlib
import sys
from collections.abc import Sequence

import shtab

from lipcomp._commands import run
from lipcomp._messages import nearest

SUBCOMMANDS = {
    "bound": "lower bounds of the Lipschitz constant, from pairs of images",
    "jacobian": "local Lipschitz constants: spectral norms of the Jacobian",
    "robustness": "accuracy under corruptions, distribution shifts and attacks",
    "report": "one self-contained HTML page from files of records",
    "records": "recover a damaged file of records",
    "checkpoints": "show what a checkpoint contains; export it to other formats",
}

SHELLS = ("bash", "zsh", "tcsh")

USAGE = """usage: lipcomp [--version] [--help] COMMAND ...

commands:
{commands}

lipcomp COMMAND --help lists the options. Exit codes: 0 done, 1 bad input (one paragraph on stderr),
2 wrong usage, 130 interrupted. Results go to stdout, progress and errors to stderr.

lipcomp completion bash|zsh|tcsh prints a completion script: eval "$(lipcomp completion bash)"

example:
  lipcomp bound model.safetensors --data mnist5k --out bounds.jsonl"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    return run(_main, arguments)


def _main(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    usage = USAGE.format(commands="\n".join(f"  {name:12s} {text}" for name, text in SUBCOMMANDS.items()))
    if not words or words[0] in ("-h", "--help"):
        print(usage, file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from lipcomp import __version__

        print(f"lipcomp {__version__}")
        return 0
    name, *rest = words
    if name == "completion":
        return _print_completion(rest)
    if name not in SUBCOMMANDS:
        hint = nearest(name, [*SUBCOMMANDS, "completion"])
        print(f"{usage}\n\nlipcomp: error: unknown command {name!r}{hint}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"lipcomp.{name}.__main__")
    return run(command.main, rest)


def _print_completion(words: Sequence[str]) -> int:
    """Print a completion script for every subcommand and option."""
    if len(words) != 1 or words[0] not in SHELLS:
        got = f"; got {' '.join(words)!r}" if words else ""
        print(f"usage: lipcomp completion {'|'.join(SHELLS)}{got}", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(prog="lipcomp")
    parser.add_argument("--version", action="store_true", help="print the version")
    actions = parser.add_subparsers()
    for name, text in SUBCOMMANDS.items():
        own = importlib.import_module(f"lipcomp.{name}.__main__").build_parser()
        actions.add_parser(name, help=text, parents=[own], add_help=False)
    print(shtab.complete(parser, words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
