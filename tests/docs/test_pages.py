"""The pages say what the code does: their blocks run, their tables agree, their formulas are the theory's."""

import ast
import importlib
import re
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOWTO = sorted((DOCS / "howto").glob("*.md"))
RUN = [*(DOCS / f"{name}.md" for name in ("tutorial", "data", "statistics", "robustness", "faq")), *HOWTO]
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def run_page(page: Path) -> dict:
    """Execute the python blocks of a page in order, in one namespace; line numbers are the page's."""
    text = page.read_text()
    names: dict = {"__name__": f"page_{page.stem.replace('-', '_')}"}
    module = type(sys)(names["__name__"])
    module.__dict__.update(names)
    sys.modules[names["__name__"]] = module  # dataclasses look their module up
    for match in BLOCK.finditer(text):
        indent = len(match[1])
        code = "\n".join(line[indent:] for line in match[2].split("\n"))
        above = text[: match.start()].count("\n") + 1
        exec(compile("\n" * above + code, str(page), "exec"), module.__dict__)
    return module.__dict__


@pytest.mark.parametrize("page", RUN, ids=lambda p: p.stem)
def test_blocks_run(page, capsys):
    for library in NEEDS.get(page.stem, ()):
        pytest.importorskip(library)
    from lipcomp.bound._rules import RULES
    from lipcomp.objectives import Objective
    from lipcomp.robustness.corruptions._tables import TABLES

    rules = dict(RULES)
    try:
        names = run_page(page)
        assert "nan" not in capsys.readouterr().out
        CHECKS.get(page.stem, lambda names: None)(names)
    finally:
        Objective.known.pop("AlignUniform", None)
        TABLES.pop("mine", None)
        RULES.update(rules)


def check_objective(names):
    """It minimises, it is restored from its description, and its gradient is that of its definition."""
    from lipcomp.objectives import Objective

    objective = names["AlignUniform"](weight=0.5)
    assert Objective.from_dict(objective.to_dict()) == objective
    with pytest.raises(ValueError, match="weight"):
        names["AlignUniform"](weight=-1.0)
    h1, h2 = torch.randn(2, 16, 8, dtype=torch.float64).requires_grad_()
    loss = objective(h1, h2)
    u, v = (torch.nn.functional.normalize(h, dim=1) for h in (h1, h2))
    pairs = [torch.exp(-2 * (u[i] - u[j]).square().sum()) for i in range(16) for j in range(16)]
    slow = (u - v).square().sum(1).mean() + 0.5 * torch.stack(pairs).mean().log()
    assert torch.allclose(loss.value, slow)
    assert torch.autograd.grad(loss.value, h1)[0].isfinite().all()


def check_checkpoint_format(names):
    """The row, put into the table, loads a file of that lab to the network's own output."""
    import tempfile

    import torchvision

    import lipcomp
    from lipcomp.checkpoints import _recognise as recognise

    network = torchvision.models.resnet18(num_classes=16).eval()
    weights = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    state = {f"net.student.{k}": v for k, v in weights.items()} | {
        f"net.teacher.{k}": v for k, v in weights.items()
    }
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        torch.save({"state_dict": state}, Path(folder) / "lab.pth")
        patch.setattr(recognise, "FORMATS", (names["row"], *recognise.FORMATS))
        loaded = lipcomp.load_encoder(Path(folder) / "lab.pth", image_size=32)
    assert loaded.format == "mylab"
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loaded.preprocessing.mean, loaded.preprocessing.std))
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = network((images - mean) / std)
        scale = float(expected.abs().max())
        assert torch.allclose(loaded.encoder.features(images), expected, rtol=0, atol=1e-5 * scale)


def check_pair_source(names):
    assert names["result"]["direction"].n == 100
    assert names["result"]["direction"].maximum > 0


def check_lightning(names):
    logged = names["trainer"].callback_metrics
    assert 0 < logged["lipschitz/lower"] <= logged["lipschitz/searched"] * 1.001
    assert names["trainer"].model.encoder.training


def check_hugging_face(names):
    (entry,) = [e for e in names["trainer"].state.log_history if "lipschitz_local" in e]
    assert 0 < entry["lipschitz_lower"] <= entry["lipschitz_searched"] * 1.001


def check_share_results(names):
    """A tracker gets every value under its name and step, W&B's through one call; the folder's encoder is the same."""
    tracker, run = Mock(), Mock()
    names["log_records"](tracker, names["records"], step=3)
    names["log_records"](names["WandbTracker"](run), names["records"], step=3)
    values = {
        f"{r.quantity}/latent": r.value
        for r in names["records"]
        if r.value is not None and "layer" in r.settings
    }
    values |= {
        r.quantity: r.value for r in names["records"] if r.value is not None and "layer" not in r.settings
    }
    median = values["sigma_max.median/latent"]
    assert {c.args[0]: c.args[1] for c in tracker.log_metric.call_args_list} == values
    assert all(c.kwargs == {"step": 3} for c in tracker.log_metric.call_args_list)
    assert {k: v for c in run.log.call_args_list for k, v in c.args[0].items()} == values
    assert names["frame"]["sigma_max.median"] == median
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(names["again"].encoder(images), names["checkpoint"].encoder(images))
    card = Path(names["folder"], "hub", "README.md").read_text()
    assert f"| sigma_max.median, data mnist5k/test, layer latent | {median:.4g} 1/pixel L2 |" in card


NEEDS = {"lightning": ("pytorch_lightning",), "hugging-face-trainer": ("transformers", "accelerate")}
CHECKS = {
    "lightning": check_lightning,
    "hugging-face-trainer": check_hugging_face,
    "share-results": check_share_results,
    "objective": check_objective,
    "checkpoint-format": check_checkpoint_format,
    "pair-source": check_pair_source,
}


@pytest.mark.parametrize("page", HOWTO, ids=lambda p: p.stem)
def test_a_howto_is_short(page):
    assert len(page.read_text().splitlines()) < 50


def test_architecture_has_the_arrows_that_are_held():
    tree = ast.parse((ROOT / "tests" / "test_arrows.py").read_text())
    (held,) = (
        ast.literal_eval(ast.unparse(node.value).replace("set()", "()"))
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and node.target.id == "ALLOWED"
    )
    page = (DOCS / "architecture.md").read_text()
    for room, below in held.items():
        imports = ", ".join(sorted(f"`{name.removeprefix('_')}`" for name in below)) or "nothing"
        row = f"| `{room.removeprefix('_')}` | {imports} |"
        assert row in page, f"docs/architecture.md lacks {row}"


def test_architecture_names_every_room():
    page = (DOCS / "architecture.md").read_text()
    rooms = [p.name for p in (ROOT / "lipcomp").iterdir() if p.is_dir() and not p.name.startswith("_")]
    assert all(f"`lipcomp/{room}`" in page for room in rooms)


def test_every_formula_of_the_theory_is_rendered():
    tree = ast.parse((DOCS / "build_tools" / "formulas.py").read_text())
    (node,) = (n for n in tree.body if isinstance(n, ast.AnnAssign))
    formulas = ast.literal_eval(node.value)
    numbered = set(re.findall(r"^\((\d\.\d)\)", (DOCS / "theory.md").read_text(), re.MULTILINE))
    assert set(formulas) == {number for number in numbered if number[0] != "7"}  # those are rules, in words


def test_every_formula_that_the_code_cites_exists():
    numbered = set(re.findall(r"^\((\d\.\d)\)", (DOCS / "theory.md").read_text(), re.MULTILINE))
    for file in (ROOT / "lipcomp").rglob("*.py"):
        cited = set(re.findall(r"theory \((\d\.\d)\)", file.read_text()))
        assert cited <= numbered, f"{file.relative_to(ROOT)} cites {sorted(cited - numbered)}"


@pytest.mark.parametrize("name", ["tutorial", "commands"])
def test_exit_codes_of_the_pages_are_the_commands(name):
    import lipcomp._commands

    page = (DOCS / f"{name}.md").read_text()
    for code in re.findall(r"^(\d+)  ", lipcomp._commands.__doc__, re.MULTILINE):
        assert f"| {code} |" in page


@pytest.fixture(scope="module")
def commands():
    """The tool that writes the page of all commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS / "build_tools")
        yield importlib.import_module("commands")


def test_every_option_states_its_type_and_its_default(commands):
    for command in commands.COMMANDS:
        for name, parser in commands.with_actions(command):
            for option in parser._actions:
                if option.option_strings and option.nargs != 0 and not option.required:
                    text = commands.FORMATTER._get_help_string(option)
                    assert "default" in text, f"{name} {option.option_strings[-1]} has no default in its help"
                assert option.help or option.nargs == "A...", f"{name} {option.dest} has no help"


def test_the_page_of_commands_has_every_option(commands):
    page = commands.page()
    assert len(re.findall(r"^## (?:lipcomp|python -m) ", page, re.MULTILINE)) == len(commands.COMMANDS)
    for flag in ("--pairs NAME,...", "--rtol FLOAT", "--ood [near:]NAME[=FOLDER]", "--seeds INT", "--to {"):
        assert f"`{flag}" in page
    assert page.count("`--data-root FOLDER`") == 1  # shared options come once


def test_names_that_share_a_description_keep_their_own_type_and_default(commands):
    both = " : int\n    Both.\n\n    More.\n"
    rest = "c\n    One.\n\nExamples\n--------\nx, y"
    shown = commands.to_markdown(f"Summary.\n\nParameters\n----------\na, *b{both}{rest}")
    assert shown.partition("----------\n")[2] == f"a{both}*b{both}{rest}"


def test_benchmarks_page_names_every_benchmark():
    page = (DOCS / "benchmarks.md").read_text()
    for file in (ROOT / "benchmarks").glob("[a-z]*.py"):
        assert f"benchmarks.{file.stem}`" in page, f"docs/benchmarks.md does not name benchmarks.{file.stem}"


def test_names_that_the_howtos_send_people_to_exist():
    """A path or a capitalised name in backquotes, `NAME` of `path`, is there."""
    for page in HOWTO:
        text = page.read_text()
        for name, file in re.findall(r"`([A-Z_]{4,})` of\s+`(lipcomp/[\w/.]+py)`", text):
            assert re.search(rf"^{name}\b", (ROOT / file).read_text(), re.MULTILINE), f"{page.name}: {name}"
        for path in re.findall(r"`((?:lipcomp|train|tests|analyses)/[\w/.]+)`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


@pytest.mark.parametrize("name", ["certificates", "certificates-larger"])
def test_the_certificates_table_is_that_of_the_committed_rows(name):
    from benchmarks._harness import read_lines
    from benchmarks.certificates import summary

    rows = read_lines([DOCS / "results" / f"{name}.jsonl"])
    lines = summary(rows)
    assert not any(line.startswith("OUT") for line in lines)
    assert "\n".join(lines) in (DOCS / "benchmarks.md").read_text()
    assert all(row["lower"] <= row["searched"] * 1.001 for row in rows)


def test_the_certified_accuracies_are_those_of_the_committed_rows():
    from benchmarks._harness import read_lines
    from benchmarks.certified_accuracy import summary

    lines = summary(read_lines([DOCS / "results" / "certified-accuracy.jsonl"]))
    assert not any(line.startswith("OUT") for line in lines)
    assert "\n".join(lines) in (DOCS / "benchmarks.md").read_text()
