"""Files around the code agree with it: conda recipe, public CI, pre-commit, issue templates, links of root pages."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

import lipcomp

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]


def test_the_conda_recipe_needs_what_the_wheel_needs():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "recipe" / "meta.yaml").read_text()
    assert f'set version = "{lipcomp.__version__}"' in text
    recipe = yaml.safe_load(re.sub(r"\{%.*?%\}", "", text).replace("{{", "").replace("}}", ""))
    run = {re.sub(r"\s", "", line).replace("pytorch", "torch") for line in recipe["requirements"]["run"]}
    assert run == {*needed["dependencies"], f"python{needed['requires-python']}"}
    assert recipe["about"]["license"] == needed["license"]
    (entry,) = recipe["build"]["entry_points"]
    name, _, target = entry.partition(" = ")
    assert needed["scripts"] == {name: target}


def test_public_ci_runs_the_checks_everywhere():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix == {"os": ["ubuntu-latest", "macos-latest"], "python": ["3.11", "3.12", "3.13"]}
    runs = [step["run"] for step in jobs["test"]["steps"] if "run" in step]
    assert runs == ["make check PYTHON=python", "make test-typed PYTHON=python"]


def test_pre_commit_uses_the_ruff_of_the_constraints():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={repo['rev'].removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text()


def test_issue_templates_are_forms():
    for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(file.read_text())
        assert file.name == "config.yml" or {"name", "description", "body"} <= set(form), file


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md"])
def test_links_of_the_pages_of_the_root_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), f"{page} links to {link}"


def test_the_readme_fits_on_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_types_are_checked_with_and_without_shapes(pytestconfig, tmp_path):
    """tests/conftest.py gives functions without shapes to beartype alone."""
    if not pytestconfig.getoption("jaxtyping_packages", None):
        pytest.skip("these tests run without type checks")
    from beartype.roar import BeartypeCallHintParamViolation
    from jaxtyping import TypeCheckError

    from lipcomp.jobs._contract import describe
    from lipcomp.measure._outputs import draw_pair

    with pytest.raises(BeartypeCallHintParamViolation):
        describe("no exception")
    with pytest.raises(TypeCheckError, match="channels height width"):
        draw_pair(tmp_path / "picture.png", torch.zeros(3), torch.zeros(3))
