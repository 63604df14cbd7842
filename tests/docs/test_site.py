"""The site builds without a warning, needs no network, and has its formulas rendered."""

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr, done.stderr
    return out


class Loaded(HTMLParser):
    """What a browser would fetch to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.found.append(given["src"] or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.found.append(given["href"] or "")


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert not [url for url in loaded.found if url.startswith(("http", "//"))], page
        if page.name == "index.html":
            missing = [
                u for u in loaded.found if not (page.parent / re.sub(r"[?#].*", "", u)).resolve().exists()
            ]
            assert not missing, page


def test_formulas_are_rendered_where_they_are_cited(site):
    theory = (site / "theory" / "index.html").read_text()
    numbered = re.findall(r"^\((\d\.\d)\)", (ROOT / "docs" / "theory.md").read_text(), re.MULTILINE)
    # section 7 has rules, in words
    assert theory.count("<math") == sum(number[0] != "7" for number in numbered)
    bound = (site / "reference" / "bound" / "index.html").read_text()
    assert bound.count("<math") >= 5
    assert 'href="../../theory/#formula-3-4"' in bound
    assert 'id="formula-3-4"' in theory


def test_every_public_name_is_in_the_reference(site):
    text = "".join(page.read_text() for page in (site / "reference").rglob("index.html"))
    for file in (ROOT / "lipcomp").rglob("__init__.py"):
        package = ".".join(file.relative_to(ROOT).parts[:-1])
        for name in importlib.import_module(package).__all__ if package != "lipcomp" else ():
            assert f'id="{package}.{name}"' in text, name


def test_docstrings_leave_no_markup_behind(site):
    """No roles, no table rules of reStructuredText in what is shown."""
    for page in (site / "reference").rglob("index.html"):
        shown = re.sub(r"<[^>]+>", "", page.read_text())
        assert not re.search(r":(func|class|meth|mod|data):", shown), page
        assert not re.search(r"={6,}\s+={6,}", shown), page


def test_links_inside_the_site_lead_somewhere(site):
    for page in site.rglob("index.html"):
        for link in re.findall(r'href="([^"#:?]+)(?:#[^"]*)?"', page.read_text()):
            target = (page.parent / link).resolve()
            assert target.exists(), f"{page.relative_to(site)} links to {link}"
