"""Mutation testing: how many random mutants of the arithmetic the tests catch.

    python -m benchmarks.mutants --count 300 [--seed 0] [--only statistics,bound/_pairs] [--out mutants.jsonl]

A mutant differs from the code in one place: a number (3 becomes 4, .5 becomes 1), an operator (+ and -, * and /), a
comparison, an index, a sign, `and` and `or`, a minimum and a maximum, a mean and a sum. It is caught if a test fails,
raises or takes ten times as long. Only tests that reach its line run, the quickest first, in files of its package and
of the whole that speak of it and take a minute or two, until one fails.

Every mutant runs in a fork of a process that has imported everything, as another code of one function, so that most
take a second or two. What is no arithmetic is left alone: annotations, messages of errors, decorators, versions, paths,
seeds, and numbers below 1e-6 with their signs (guards against rounding). `a < b` becomes `a >= b`, and `a <= b` only
beside a whole number: the border of two floats is not tested by anybody.
"""

import ast
import copy
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import pytest

from benchmarks._harness import append_lines, read_lines
from lipcomp._commands import Parser, run

ROOT = Path(__file__).parents[1]
PACKAGES = ("distributions", "objectives", "bound", "jacobian", "statistics", "robustness")
VIEWS = ("data/_views", "data/_crops", "data/_colour", "data/_preprocessing", "data/_digits")
LEFT_OUT = re.compile(  # files, commands, other people's programs: no arithmetic
    r"__init__|__main__|_capture|_checks|_arrays|_sets|_robustbench|_videos|_watermark|_texture|_protocols|_shifted"
)
HEAVY = ("torchvision", "hypothesis", "mpmath")  # what tests import beside what the modules do
BROKEN = 99  # exit code of a mutant that could not be made
WAITS = 300.0  # seconds without any CPU time that end a test
LIMIT = 120.0  # CPU seconds that a file of tests may take, every line noted, to be among the fast ones
OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
BORDERS: dict[type, type] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
NAMES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "minimum": "maximum", "maximum": "minimum",
         "mean": "sum", "sum": "mean", "sin": "cos", "cos": "sin"}  # fmt: skip
ASIDE = ("annotation", "returns", "decorator_list")
SEEDS = ("manual_seed", "default_rng", "rng", "seed")  # of calls and arguments: any number would do


@dataclass(frozen=True)
class Mutant:
    """One change: the number of its place in the module's tree, the lines of its statement, and what it makes of it."""

    module: str
    place: int
    first: int
    line: int
    before: str
    after: str
    verdict: str = ""
    by: str = ""


def places(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute something."""
    fields = [field for name, field in ast.iter_fields(tree) if name not in ASIDE]
    if isinstance(tree, (ast.Raise, ast.Assert, ast.JoinedStr)):
        return
    if getattr(getattr(tree, "func", None), "attr", getattr(tree, "arg", "")) in SEEDS:
        return
    if isinstance(tree, (ast.Assign, ast.AnnAssign)) and "version" in ast.unparse(tree).partition("=")[0]:
        return
    if isinstance(tree, ast.arguments):
        arguments = [*tree.posonlyargs, *tree.args, *tree.kwonlyargs]
        defaults = [*tree.defaults, *tree.kw_defaults]  # of the last of them
        of = zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)
        fields = [[default for argument, default in of if argument.arg not in SEEDS]]
    yield tree
    for field in fields:
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from places(child)


def guard_or_text(node: ast.AST) -> bool:
    """Whether it is a tiny number, or text: a part of a path."""
    value = getattr(node, "value", None)
    return (
        0 < value < 1e-6
        if isinstance(value, float)
        else isinstance(value, str) or isinstance(node, ast.JoinedStr)
    )


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What a node may become."""
    new = copy.deepcopy(node)
    match new:
        case ast.Constant(value=bool() | str() | bytes() | None):
            return
        case ast.Constant(value=int() | float() as value) if value == 0 or abs(value) >= 1e-6:
            for other in (
                (value + 1, value - 1) if isinstance(value, int) else (value * 2 or 1.0, value / 2 or -1.0)
            ):
                yield ast.copy_location(ast.Constant(other), node)
        case ast.BinOp(left=left, right=right) if guard_or_text(left) or guard_or_text(right):
            return
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in OPERATORS:
            new.op = OPERATORS[type(op)]()
            yield new
        case ast.Compare(ops=[op]) if type(op) in OPERATORS:
            new.ops = [OPERATORS[type(op)]()]
            yield new
            if type(op) in BORDERS and getattr(new.comparators[0], "value", 0.0) in range(1, 1000):
                new = copy.deepcopy(new)
                new.ops = [BORDERS[type(op)]()]
                yield new
        case ast.UnaryOp(op=ast.USub() | ast.Not()) if not isinstance(new.operand, ast.Constant):
            yield new.operand
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            new.func.id = NAMES[name]
            yield new
        case ast.Call(func=ast.Attribute(attr=name)) if name in NAMES:
            new.func.attr = NAMES[name]
            yield new


def mutants(file: Path) -> list[Mutant]:
    """All of a module's."""
    tree = ast.parse(file.read_text())
    statements = [n for n in ast.walk(tree) if isinstance(n, ast.stmt)]
    found = []
    for place, node in enumerate(places(tree)):
        for new in changes(node):
            line = getattr(node, "lineno", 0)
            around = [s for s in statements if s.lineno <= line <= (s.end_lineno or 0)]
            inner = max(around, key=lambda s: s.lineno, default=tree)
            where = "" if hasattr(inner, "body") else f"{ast.unparse(inner)[:110]}: "
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            first = getattr(inner, "lineno", line)
            found.append(Mutant(module, place, first, line, where + ast.unparse(node), ast.unparse(new)))
    return found


def changed(mutant: Mutant) -> tuple[CodeType, list[str], bool]:
    """The module's code with the change, the names down to the function that holds it, whether a class in it does.

    No names if no function holds it. A class in a function may have been made on import.
    """
    path = ROOT / (mutant.module.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text())
    node = list(places(tree))[mutant.place]
    new = ast.copy_location(next(n for n in changes(node) if ast.unparse(n) == mutant.after), node)

    class Exchange(ast.NodeTransformer):
        def visit(self, seen: ast.AST) -> ast.AST:
            return new if seen is node else self.generic_visit(seen)

    names, inside = [], tree
    while isinstance(inside, (ast.Module, ast.ClassDef)):
        inside = next((n for n in inside.body if any(part is node for part in ast.walk(n))), node)
        names.append(getattr(inside, "name", ""))
    body = [part for n in getattr(inside, "body", []) if isinstance(n, ast.AST) for part in ast.walk(n)]
    classes = [n for part in body if isinstance(part, ast.ClassDef) for n in ast.walk(part)]
    in_class = any(part is node for part in classes)
    held = any(part is node for part in body)
    code = compile(ast.fix_missing_locations(Exchange().visit(tree)), str(path), "exec")
    return code, names if held else [], in_class


def install(mutant: Mutant) -> None:
    """Exchange the code of one function that is imported already; or else forget lipcomp, to import it changed."""
    code, names, in_class = changed(mutant)
    here: Any = sys.modules[mutant.module]
    for name in names:
        here = vars(here).get(name)
        code = next((c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name), code)
    here = getattr(here, "fget", None) or getattr(here, "func", None) or getattr(here, "__func__", here)
    here = inspect.unwrap(here) if callable(here) else here
    simple = names and not in_class and isinstance(here, FunctionType)
    if simple and here.__code__.co_freevars == code.co_freevars:
        here.__code__ = code
        return
    for name in [n for n in sys.modules if n.partition(".")[0] in ("lipcomp", "train", "analyses")]:
        del sys.modules[name]
    code, *_ = changed(mutant)

    class Loader(importlib.machinery.SourceFileLoader):
        def get_code(self, fullname: str) -> CodeType:
            return code

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: object = None, target: object = None) -> object:
            place = str(ROOT / (name.replace(".", "/") + ".py"))
            return (
                importlib.util.spec_from_loader(name, Loader(name, place)) if name == mutant.module else None
            )

    sys.meta_path.insert(0, Finder())


def end_if_it_waits(seconds: float) -> None:
    """End this process once it, and what it waited for, used no CPU time for so long: the clock also runs while
    a process only gets no turn, on a busy machine.
    """

    def used() -> float:
        return sum(os.times()[:4])

    before = used()

    def look(*_: object) -> None:
        nonlocal before
        if used() - before < seconds / 1000:
            os.killpg(0, signal.SIGKILL)
        before = used()

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)


def run_tests(
    tests: Sequence[str], mutant: Mutant | None, seconds: float, reached: Path | None = None
) -> tuple[int, float, str]:
    """Pytest in a fork, with a limit of CPU time: (exit code, CPU seconds, the test that failed).

    ``reached`` is a file for what :class:`Reach` found.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(read)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 5))
        end_if_it_waits(WAITS)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        if mutant is not None:
            try:
                install(mutant)
            except BaseException:
                os._exit(BROKEN)
        words = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not cuda"]
        words += ["-o", "addopts=--import-mode=importlib --strict-markers", *tests]
        code = 1
        try:
            code = int(pytest.main(words, plugins=[First(write), *([Reach(reached)] if reached else [])]))
        finally:
            os._exit(code)
    os.close(write)
    _, status, used = os.wait4(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # processes that its tests started and left hold the pipe open
    by = os.read(read, 500).decode()
    os.close(read)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, by


class First:
    """Says which test failed."""

    def __init__(self, write: int) -> None:
        self.write = write

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each phase of each test."""
        if report.failed:
            os.write(self.write, report.nodeid.encode()[:500])


class Reach:
    """Writes how long each test took and which tests ran which lines of lipcomp; a fixture's are under the name ""."""

    def __init__(self, path: Path) -> None:
        self.path, self.seconds = path, dict[str, float]()
        self.coverage = coverage.Coverage(None, include=[str(ROOT / "lipcomp" / "*")], config_file=False)
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Called by pytest around each test, without its fixtures."""
        self.coverage.switch_context(item.nodeid)
        started = time.process_time()
        yield
        self.seconds[item.nodeid] = time.process_time() - started
        self.coverage.switch_context("")

    def pytest_unconfigure(self) -> None:
        """Called by pytest at the end."""
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {file: data.contexts_by_lineno(file) for file in data.measured_files()}
        self.path.write_text(json.dumps([lines, self.seconds]))


@cache
def told_by(file: str) -> tuple[float, dict[str, dict[str, list[str]]], dict[str, float]]:
    """CPU seconds of a file of tests (infinite: too slow, or fails), which tests ran each line, seconds of each."""
    with tempfile.TemporaryDirectory() as folder:
        reached = Path(folder) / "reached.json"
        code, seconds, by = run_tests((file,), None, LIMIT, reached)
        print(f"  {file}: {seconds:.0f} s" + (f", not used: exit {code} {by}" if code else ""), flush=True)
        lines, each = ({}, {}) if code else json.loads(reached.read_text())
        return float("inf") if code else seconds, lines, each


@cache
def tests_of(module: str) -> tuple[str, ...]:
    """Files of tests: the package's, first those that speak most of the module, and others that import it."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    package, own = module.split(".")[1], module.split(".")[-1]
    defined = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    words = re.compile(rf"\b({'|'.join([own, *defined])})\b")
    files = [*(ROOT / "tests" / package).glob("test_*.py")]
    files += [f for f in (ROOT / "tests").glob("test_*.py") if f"lipcomp.{package}" in f.read_text()]
    told = {str(f.relative_to(ROOT)): len(words.findall(f.read_text())) for f in files}
    return tuple(sorted(told, key=lambda f: (-told[f], f)))


def judge(mutant: Mutant) -> Mutant:
    """Run the tests that reach a mutant, file by file until one fails."""
    path = str(ROOT / (mutant.module.replace(".", "/") + ".py"))
    # none where no function holds it: it ran on import
    lines = [str(n) for n in range(mutant.first, mutant.line + 1)] if changed(mutant)[1] else []
    for file in tests_of(mutant.module):
        seconds, reached, each = told_by(file)
        tests = {test for line in lines for test in reached.get(path, {}).get(line, [])}
        if seconds == float("inf") or (lines and not tests):
            continue
        asked = sorted(tests, key=lambda test: each.get(test, 0.0)) if lines and "" not in tests else [file]
        code, _, by = run_tests(asked, mutant, 10 * seconds + 10)
        if code == BROKEN:
            raise RuntimeError(f"no such mutant: {mutant}; did the code change meanwhile?")
        if code:
            verdict = "caught" if code > 0 else "caught: takes for ever"
            return Mutant(**asdict(mutant) | {"verdict": verdict, "by": by or f"{file} (exit {code})"})
    return Mutant(**asdict(mutant) | {"verdict": "survived"})


def chosen(only: str) -> list[Path]:
    """The modules whose arithmetic is in question."""
    files = [
        f
        for p in PACKAGES
        for f in sorted((ROOT / "lipcomp" / p).rglob("*.py"))
        if not LEFT_OUT.search(f.name)
    ]
    files += [ROOT / "lipcomp" / f"{name}.py" for name in VIEWS]
    return [f for f in files if not only or any(word in str(f.relative_to(ROOT)) for word in only.split(","))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make mutants, test them, print the survivors."""
    parser = Parser(prog="python -m benchmarks.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="mutants (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default 0)")
    parser.add_argument("--only", default="", help="parts of module paths, comma-separated")
    parser.add_argument("--again", type=Path, help="judge the survivors of an earlier --out again")
    parser.add_argument("--workers", type=int, default=2, help="at the same time (default 2)")
    parser.add_argument("--out", type=Path, help="write every verdict as a line of JSON")
    options = parser.parse_args(arguments)
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in chosen("")]
    for name in (*modules, *HEAVY):
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    every = [m for file in chosen(options.only) for m in mutants(file)]
    if options.again:
        lines = read_lines([options.again])
        lost = {(m["module"], m["before"], m["after"]) for m in lines if m["verdict"] == "survived"}
        drawn = [m for m in every if (m.module, m.before, m.after) in lost]
    else:
        drawn = random.Random(options.seed).sample(every, min(options.count, len(every)))
    print(f"{len(drawn)} of {len(every)} mutants", flush=True)
    started, done = time.monotonic(), []
    with ThreadPoolExecutor(options.workers) as pool:
        for mutant in pool.map(judge, drawn):
            done.append(mutant)
            append_lines(options.out, [asdict(mutant)])
            if mutant.verdict == "survived":
                print(
                    f"SURVIVED {mutant.module}:{mutant.line}  {mutant.before}  ->  {mutant.after}", flush=True
                )
    caught, whole = Counter(), Counter()
    for mutant in done:
        whole[mutant.module.split(".")[1]] += 1
        caught[mutant.module.split(".")[1]] += mutant.verdict != "survived"
    for package, count in sorted(whole.items()):
        print(f"{package:15} {caught[package]:4} of {count:4} caught")
    total = sum(caught.values())
    print(f"{'all':15} {total:4} of {len(done):4} caught, {100 * total / max(1, len(done)):.1f}%, "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
