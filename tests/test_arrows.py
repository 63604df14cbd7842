"""The import arrows of the house, held: few, one way, no cycles (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Who may import whom inside lipcomp. `__main__` modules join everything and are imported by nobody.
LEAVES = {
    "_arguments",
    "_atomic",
    "_functions",
    "_identity_code",
    "_identity_files",
    "_messages",
    "_startup",
    "_norms",
    "_results",
}  # small helpers that import nothing of the house; everyone may use them
ALLOWED: dict[str, set[str]] = {
    "distributions": set(),
    "objectives": {"distributions"},
    "encoders": {"distributions"},
    "checkpoints": {"data", "encoders", "_identity"},
    "data": {"_identity"},
    "jacobian": set(),
    "bound": {"distributions", "jacobian"},
    "robustness": {"data", "_identity", "jacobian"},
    "_identity": set(),
    "records": {"_claims"},
    "_claims": set(),
    "jobs": set(),
    "statistics": {"records"},
    "plots": {"checkpoints", "records"},
    "report": {"checkpoints", "plots", "records", "statistics"},
    "_commands": set(),
    "measure": {
        "bound",
        "checkpoints",
        "_claims",
        "_commands",
        "data",
        "distributions",
        "encoders",
        "_identity",
        "jacobian",
        "jobs",
        "records",
        "robustness",
    },
}


def imported_parts(file: Path, package: str) -> set[str]:
    """The parts of ``package`` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [node.module or ""]
            if node.module == package:
                names = [f"{package}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith(package + ".")}
        if package in names:
            found.add("")
    return found


def library_files() -> list[Path]:
    return sorted(
        file
        for file in (ROOT / "lipcomp").rglob("*.py")
        if file.name not in ("__main__.py",) and file != ROOT / "lipcomp" / "__init__.py"
    )


@pytest.mark.parametrize("file", library_files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_lipcomp_imports_along_its_arrows(file):
    part = file.relative_to(ROOT / "lipcomp").parts[0].removesuffix(".py")
    strangers = imported_parts(file, "lipcomp") - ALLOWED.get(part, set()) - {part} - LEAVES
    assert not strangers, (
        f"{file.relative_to(ROOT)} may not import lipcomp.{', lipcomp.'.join(sorted(strangers))}"
    )


def test_the_arrows_have_no_cycle():
    def below(part: str, seen: tuple[str, ...]) -> None:
        assert part not in seen, f"cycle: {' -> '.join((*seen, part))}"
        for other in ALLOWED[part]:
            below(other, (*seen, part))

    for part in ALLOWED:
        below(part, ())


def test_every_part_of_the_library_has_its_arrows_written_down():
    parts = {f.relative_to(ROOT / "lipcomp").parts[0].removesuffix(".py") for f in library_files()}
    assert parts <= set(ALLOWED) | LEAVES


@pytest.mark.parametrize(("one", "other"), [("train", "analyses"), ("analyses", "train")])
def test_train_and_analyses_meet_only_at_files(one, other):
    for file in (ROOT / one).rglob("*.py"):
        tree = ast.parse(file.read_text())
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        assert not any(m == other or m.startswith(other + ".") for m in modules), file


def test_nobody_below_imports_train_analyses_or_tests():
    for file in (ROOT / "lipcomp").rglob("*.py"):
        text = file.read_text()
        for name in ("train", "analyses", "tests"):
            assert f"from {name}" not in text, f"{file} imports {name}"
            assert f"import {name}\n" not in text, f"{file} imports {name}"
