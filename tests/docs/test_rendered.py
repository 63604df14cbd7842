"""The rendered notebooks are those of the tree; the code below each picture of README and gallery draws it."""

import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("jupytext")
ROOT = Path(__file__).parents[2]
PICTURED = [ROOT / "README.md", ROOT / "docs" / "gallery.md"]


@pytest.fixture(scope="module")
def tool():
    """The tool that renders them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs" / "build_tools")
        yield importlib.import_module("notebooks")


def test_rendered_notebooks_are_those_of_the_tree(tool):
    rendered = sorted(tool.PAGES.glob("*.md"))
    assert rendered
    for file in rendered:
        name, page = file.stem, file.read_text()
        cells = tool.cells(tool.SOURCES[name])
        code = [cell for cell in cells if cell.startswith("```python\n")]
        assert [block for block, _ in tool.OUTPUT.findall(page)] == code, (
            f"run docs/build_tools/notebooks.py {name}"
        )
        assert re.sub(
            r"\n\n<!-- output -->\n.*?<!-- end of output -->", "", page, flags=re.DOTALL
        ).strip() == ("\n\n".join(cells).strip())
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page):
            assert 0 < (tool.PAGES / picture).stat().st_size < 200_000


def test_the_pictures_are_there_and_small(tool):
    for page in PICTURED:
        pictures = [block["file"] for block in tool.PICTURE.finditer(page.read_text()) if block["file"]]
        assert pictures
        for picture in pictures:
            assert 0 < (page.parent / picture).stat().st_size < 200_000, picture


@pytest.mark.slow
def test_the_code_below_each_picture_draws_it(tool, tmp_path, monkeypatch):
    """With untrained encoders and made-up records in place of the reader's files."""
    from lipcomp.checkpoints import save_checkpoint
    from lipcomp.encoders import EncoderSpec, build_encoder
    from lipcomp.records import Record, append_records

    spec = EncoderSpec("small_cnn", (1, 28, 28), mean=(0.131,), std=(0.308,), projector=(32, 16))
    for name in ("SimCLR", "C-SimCLR"):
        save_checkpoint(tmp_path / f"{name}.safetensors", build_encoder(spec, seed=0))
    subject = {"run": "mine", "objective": "SimCLR", "seed": 0}
    settings = [{"corruption": "fog", "severity": s} for s in (1, 5)]
    records = [Record("accuracy.corruption", 0.9, subject=subject, settings=s) for s in settings]
    records += [Record("accuracy.corruption.mean", 0.5, subject=subject)]
    records += [Record("sigma_max.median", 0.5, subject=subject, settings={"layer": "backbone"})]
    append_records(tmp_path / "records.jsonl", records)
    drawn = []
    monkeypatch.setattr(tool, "_save", lambda file: drawn.append(file.name) or tool.plt.close("all"))
    monkeypatch.chdir(tmp_path)
    for page in PICTURED:
        tool.draw(page, tmp_path)
    assert len(drawn) == 6
