"""The page "Commands": a section per command with a table of its options, read from the parsers themselves."""

import argparse
import importlib
import re
from collections import Counter
from unittest.mock import patch

from docstrings import to_markdown

from lipcomp._commands import HelpFormatter

COMMANDS = (
    *(f"lipcomp.{name}" for name in ("bound", "jacobian", "robustness", "checkpoints", "report", "records")),
    *(f"train.{name}" for name in ("pretrain", "sweep")),
    *(f"analyses.paired_study.{name}" for name in ("design", "measure", "report")),
    *(f"analyses.bound_study.{name}" for name in ("measure", "report")),
    *(f"analyses.{name}" for name in ("image_by_image", "results")),
)
FORMATTER = HelpFormatter("")
OPTION = re.compile(r"(?<![\w`-])(--[a-z][a-z-]*[a-z])")


class _ParserFound(Exception):  # noqa: N818
    pass


def _stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
    raise _ParserFound(parser)


def find_parser(command: str) -> argparse.ArgumentParser:
    """The parser that ``python -m command`` builds."""
    module = importlib.import_module(f"{command}.__main__" if command.startswith("lipcomp.") else command)
    main = importlib.import_module("train.command").main if command == "train.pretrain" else module.main
    with patch.object(argparse.ArgumentParser, "parse_args", _stop):
        try:
            main([])
        except _ParserFound as found:
            return found.args[0]
    raise AssertionError(f"{command} builds no parser")


def page() -> str:
    """The sections of all commands; groups of options that several commands share come once, at the end."""
    parsers = {name: parser for command in COMMANDS for name, parser in with_actions(command)}
    groups = {name: _groups(parser) for name, parser in parsers.items()}
    count = Counter(table for found in groups.values() for table in found.items())
    shared = {
        title: table for (title, table), n in count.items() if n > 1 and title not in ("arguments", "options")
    }
    parts = []
    for name, parser in parsers.items():
        own = [t for title, t in groups[name].items() if shared.get(title) != t]
        links = [
            f"[{_short(title)}](#{_slug(title)})"
            for title, t in groups[name].items()
            if shared.get(title) == t
        ]
        also = [f"Shared options: {', '.join(links)}."] if links else []
        example = [f"```text\n{parser.epilog.strip()}\n```"] if parser.epilog else []
        level = "##" if parser.description else "###"
        text = OPTION.sub(r"`\1`", to_markdown(parser.description or ""))
        parts += [f"{level} {name}", text, *example, *own, *also]
    parts += ["## Shared options"]
    for title, t in shared.items():
        parts += [f"### {_short(title).capitalize()} {{#{_slug(title)}}}", t]
    return "\n\n".join(part for part in parts if part)


def _short(title: str) -> str:
    return title.split(" (")[0]


def _slug(title: str) -> str:
    return "shared-" + _short(title).replace(" ", "-")


def with_actions(command: str) -> list[tuple[str, argparse.ArgumentParser]]:
    """A command and its subcommands, each with its parser."""
    parser = find_parser(command)
    name = command.replace(".", " ") if command.startswith("lipcomp.") else f"python -m {command}"
    found = [(name, parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [(f"{name} {word}", each) for word, each in action.choices.items()]
    return found


def _groups(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Title of a group of options -> its table."""
    found = {}
    for group in parser._action_groups:
        rows = [_row(a) for a in group._group_actions if a.dest != "help" and a.nargs != argparse.PARSER]
        if rows:
            title = (group.title or "").replace("positional arguments", "arguments")
            found[title] = f"| {title} | |\n| --- | --- |\n" + "\n".join(rows)
    return found


def _row(action: argparse.Action) -> str:
    name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        default = FORMATTER._get_default_metavar_for_optional(action)
        name += " " + FORMATTER._metavar_formatter(action, default)(1)[0]
    text = FORMATTER._get_help_string(action).replace("%%", "%")
    text += " (required)" if action.option_strings and action.required else ""
    text = OPTION.sub(r"`\1`", re.sub(r"([_*<[|])", r"\\\1", text))
    return f"| `{name}` | {text} |"
