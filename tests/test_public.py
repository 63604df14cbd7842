"""The public surface: few names, each explained by an example on a page that begins with what people use first."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import lipcomp

ROOT = Path(__file__).parents[1]
PACKAGES = [
    ".".join(("lipcomp", *file.relative_to(ROOT / "lipcomp").parts[:-1]))
    for file in sorted((ROOT / "lipcomp").rglob("__init__.py"))
]
FIRST = {
    "bound": "lipschitz",
    "checkpoints": "load_encoder",
    "data": "load_set",
    "distributions": "VonMisesFisher",
    "encoders": "wrap",
    "jacobian": "spectral_norm",
    "measure": "run",
    "objectives": "CSimCLR",
    "plots": "local_constants",
    "records": "read_records",
    "report": "write_report",
    "robustness": "corrupt",
    "statistics": "paired_effect",
}
# Arguments of every day that may stand in their place although they have a default.
POSITIONAL = {
    "load_set": "split",
    "VonMisesFisher": "validate_args",
    "run": "outputs",
}


def public() -> dict[str, str]:
    """Every public name and the package that exports it, the first page's own packages before `lipcomp`."""
    return {
        name: package
        for package in PACKAGES
        for name in importlib.import_module(package).__all__
        if package != "lipcomp" or name not in lipcomp._HOMES
    }


NAMES = public()


def test_there_are_at_most_sixty_names():
    assert set(lipcomp.__all__) <= set(NAMES)
    assert len(NAMES) <= 60, sorted(NAMES)


def test_packages_and_first_names_come_when_they_are_asked_for():
    assert lipcomp.bound.lower_bounds is lipcomp.lower_bounds
    assert set(dir(lipcomp)) >= {*lipcomp.__all__, *FIRST}
    with pytest.raises(AttributeError, match="nothing"):
        _ = lipcomp.nothing


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_explained_with_an_example(name):
    value = getattr(importlib.import_module(NAMES[name]), name)
    text = inspect.getdoc(value) or ""
    assert "Examples\n--------\n>>> " in text
    takes = [p for p in inspect.signature(value).parameters if p not in ("args", "kwargs")]
    assert not takes or re.search(r"^(Parameters|Attributes)\n-{10}", text, re.MULTILINE), "its parameters"
    module = NAMES[name].removeprefix("lipcomp.")
    assert name.lower() != module.rpartition(".")[2], "a function does not share its module's name"


@pytest.mark.parametrize("name", [n for n in NAMES if n != "Record"])
def test_options_are_given_by_keyword_and_spelled_in_one_way(name):
    value = getattr(importlib.import_module(NAMES[name]), name)
    given = inspect.signature(value).parameters.values()
    if not (inspect.isclass(value) and hasattr(value, "__dataclass_fields__")):  # fields have their order
        loose = [p.name for p in given if p.default is not p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        assert loose == [POSITIONAL[name]] if loose else True, loose
    for parameter in given:
        assert parameter.name not in ("normalized", "random_state", "gen", "ord", "p_norm"), parameter
        assert parameter.default not in ("L2", "Linf", "inf"), parameter


@pytest.mark.parametrize("page", FIRST)
def test_a_page_has_every_name_and_begins_with_what_people_use_first(page):
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text()
    shown = re.findall(r"^::: lipcomp\.[\w.]*?(\w+)$", text, re.MULTILINE)
    assert shown[0] == FIRST[page]
    ours = [name for name, package in NAMES.items() if package.split(".")[1] == page]
    assert set(ours) <= set(shown), sorted(set(ours) - set(shown))


def test_every_name_has_a_page():
    assert {package.split(".")[1] for package in NAMES.values()} == set(FIRST)


def test_no_page_sends_people_to_private_modules():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md")]:
        # these change the library
        if page.stem not in ("checkpoint-format", "corruption", "certificate-rule"):
            found = re.findall(r"^ *(?:from|import) lipcomp[\w.]*\._\w+", page.read_text(), re.MULTILINE)
            assert not found, f"{page.name}: {found}"
