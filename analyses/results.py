"""The published studies: designed, run and published in docs/results.

    python -m analyses.results design                  write every design that is not there; commit it before running
    python -m analyses.results run mnist --workers 2   train, measure and publish one study (or all); resumable
    python -m analyses.results publish mnist           publish again what is measured already

`make results` runs all of them. A study is made in studies/results/NAME; docs/results/NAME keeps its design, records
(compressed), correctness bits, values per image, figures and page, and the page is redrawn from them alone.
"""

import json
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from analyses.paired_study.answer import answer_study
from analyses.paired_study.design import write_design
from analyses.paired_study.frames import load_study
from analyses.paired_study.study import RECORDS
from analyses.runs import ROLL
from lipcomp._commands import Parser, run
from lipcomp._messages import needed
from lipcomp.data import load_set

PUBLISHED = Path("docs/results")
MADE = Path("studies/results")
SHOWN = ("features", "given_clean", "latent")  # outcomes on the page of all studies
FASHION = Path("studies/fashion5k")
CIFAR = Path("studies/cifar5k")
MORE_CIFAR = Path("studies/cifar15k")
FIRST_IMAGES = {
    FASHION: ("fashion_mnist", {"train": 5000, "test": 1000}),
    CIFAR: ("cifar10", {"train": 5000, "test": 1000}),
    MORE_CIFAR: ("cifar10", {"train": 15000, "test": 1000}),
}
FASHION_ROOT = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
TRIPLE = "simclr,weighted_simclr,c_simclr"
DOSES = "simclr,noisy_simclr,weighted_simclr,c_simclr,byol,c_byol,supervised,ceb"
BETAS = "0.1,0.3,1,3"
SMALL_COLOUR = (
    *("--backbone", "small_cnn", "--epochs", "10", "--batch-size", "64", "--lr", "0.004"),
    *("--set", "optimizer=adamw", "--set", "weight_decay=0.01", "--set", "warmup_epochs=1"),
    *("--set", "encoder.projector=(256, 64)"),
)
WIDER_AND_LONGER = (
    *("--epochs", "20", "--batch-size", "256", "--lr", "0.001", "--precision", "bf16"),
    *("--set", "optimizer=adamw", "--set", "weight_decay=0.01", "--set", "warmup_epochs=3"),
)


@dataclass(frozen=True)
class Published:
    """One study: what is trained with how many seeds, on which images."""

    methods: str  # with commas between
    data: str  # "mnist5k", or one of :data:`FIRST_IMAGES`
    seeds: int  # paired seeds
    options: tuple[str, ...] = ()  # further options of train.sweep
    measured: tuple[str, ...] = ()  # further options of analyses.paired_study.measure

    def sweep(self) -> list[str]:
        """The options of train.sweep."""
        if self.data == "mnist5k":
            names = [f"mnist_{method}" for method in self.methods.split(",")]
            what = ["--recipes", ",".join(names)]
        else:
            what = ["--methods", self.methods, "--data", self.data]
        return [*what, "--seeds", str(self.seeds), *self.options]


STUDIES = {
    "mnist": Published(TRIPLE, "mnist5k", 10),
    "fashion": Published(TRIPLE, str(FASHION), 10),
    "mnist-again": Published(TRIPLE, "mnist5k", 10, ("--perturb", "1e-7")),
    "fashion-again": Published(TRIPLE, str(FASHION), 10, ("--perturb", "1e-7")),
    "mnist-doses": Published(DOSES, "mnist5k", 3, ("--betas", BETAS)),
    "fashion-doses": Published(DOSES, str(FASHION), 3, ("--betas", BETAS)),
    # Exploratory, as cifar-resnet: where the effect of the paper could be, if it is not in the other studies.
    "fashion-kappa": Published(TRIPLE, str(FASHION), 5, ("--set", "c_simclr:objective.kappa_e=64")),
    # Colour, with the digits' network and schedule: the recipe of CIFAR-10 itself needs a GPU.
    "cifar": Published(TRIPLE, str(CIFAR), 4, SMALL_COLOUR, ("--sigma-images", "150")),
    # Needs a GPU: minutes there.
    "cifar-resnet": Published(TRIPLE, str(MORE_CIFAR), 4, WIDER_AND_LONGER, ("--sigma-images", "100")),
}


def make_images(root: Path | None, out: Path) -> None:
    """The first images of a known set's two splits as a folder of PNG files, one sub-folder per class.

    Parameters
    ----------
    root
        The folder of the set, as :func:`lipcomp.load_set` takes it.
    out
        The folder to make, one of :data:`FIRST_IMAGES`; nothing is done where it exists.
    """
    if out.exists():
        return
    known, counts = FIRST_IMAGES[out]
    if root is None:
        raise ValueError(
            f"{str(out)!r} is made from {known}: name the folder that holds it, --cifar-root FOLDER"
        )
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for split, count in counts.items():
        images = load_set(known, split, root=root)
        for index in range(count):
            pixels = (255 * images.batch(torch.tensor([index]))[0]).round().byte().movedim(0, -1).squeeze(-1)
            name = images.classes[int(images.labels[index])].replace("/", "-")
            place = part / split / name / f"{index:05d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(place)
    part.rename(out)


def design(name: str) -> Path:
    """Write the design of a study into its published folder, unless it is there."""
    file = PUBLISHED / name / "study.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"seeds": STUDIES[name].seeds}))
        write_design(file.parent)
        told = json.loads(file.read_text())
        del told["seeds"]  # the sweep writes what it trains
        file.write_text(json.dumps(told, indent=1) + "\n")
    return file


def make(name: str, machine: Sequence[str], roots: Mapping[Path, Path | None]) -> None:
    """Train and measure a study by its committed design; goes on where it was stopped.

    Parameters
    ----------
    name
        One of :data:`STUDIES`.
    machine
        Options of both commands that say where they run, such as ``--workers 2``.
    roots
        For each folder of :data:`FIRST_IMAGES` the folder that holds the whole set.
    """
    study, folder = STUDIES[name], MADE / name
    if (images := Path(study.data)) in FIRST_IMAGES:
        make_images(roots[images], images)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "study.json").exists():
        shutil.copy(design(name), folder / "study.json")
    for command in (
        ["train.sweep", *study.sweep(), "--out", folder],
        ["analyses.paired_study.measure", folder, "--data", study.data, *study.measured],
    ):
        subprocess.run([sys.executable, "-m", *map(str, command), *machine], check=True)


def publish(name: str) -> None:
    """Copy what a study's page is drawn from, and draw the page, into docs/results."""
    made, out = MADE / name, PUBLISHED / name
    if not (made / RECORDS).exists():
        raise FileNotFoundError(
            f"{str(made)!r} holds no records; make it with: python -m analyses.results run {name}"
        )
    out.mkdir(parents=True, exist_ok=True)
    for file in (made / "study.json", made / ROLL):
        if file.exists():
            shutil.copy(file, out)
    pack(made / RECORDS, out)
    for kind in ("bits", "images"):
        shutil.rmtree(out / kind, ignore_errors=True)
        (out / kind).mkdir()
    for file in sorted((made / "bits").glob("*.npz")):
        shutil.copy(file, out / "bits" / file.name)
    for file in sorted((made / "images").glob("*.csv")):
        pack(file, out / "images")
    redraw(out, out)
    write_summary(name, PUBLISHED / "index.md")


def pack(file: Path, folder: Path) -> None:
    """Write a compressed copy of a file into a folder; equal files give equal copies."""
    (folder / f"{file.name}.xz").write_bytes(lzma.compress(file.read_bytes(), preset=9 | lzma.PRESET_EXTREME))


@contextmanager
def unpacked(published: Path) -> Iterator[Path]:
    """A temporary folder that holds a published study as it was measured."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / published.name
        shutil.copytree(published, folder, ignore=shutil.ignore_patterns("figures", "report.*"))
        for file in folder.rglob("*.xz"):
            file.with_suffix("").write_bytes(lzma.decompress(file.read_bytes()))
        yield folder


def redraw(published: Path, out: Path) -> None:
    """Draw a published study's page and figures from what is committed."""
    from analyses.paired_study.page import make_report

    with unpacked(published) as folder:
        make_report(folder, downloads=False)
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for figure in (folder / "figures").glob("*.png"):  # the page has its own, as SVG
            shutil.copy(figure, out / "figures")
        for file in ("report.html", "report.md"):
            shutil.copy(folder / file, out / file)


def summary(published: Path) -> str:
    """The headline of a published study and a table of its main outcomes, as Markdown; its report has all of them."""
    from analyses.paired_study.words import headline, shown_value

    with unpacked(published) as folder:
        study = load_study(folder)
        answered = answer_study(study)
    lines = [headline(answered, study.design), ""]
    lines += ["| | outcome | verdict | estimate | seeds |", "|---|---|---|---|---|"]
    for row in answered.verdicts.rows:
        if row.outcome.key not in SHOWN:
            continue
        against = f"{row.contrast.treated} against {row.contrast.control}"
        what = f"**{row.outcome.label}** (primary)" if row.primary else row.outcome.label
        said = f"{row.verdict.value}: {row.word}" if row.word else row.verdict.value
        lines.append(f"| {against} | {what} | {said} | {shown_value(row)} | {row.effect.n} |")
    return "\n".join(lines)


def overview(page: str) -> str:
    """A table of the primary outcomes of all studies whose summaries stand on a page, as Markdown."""
    lines = [
        "| study | seeds | σ of the features | corruption accuracy, at equal clean accuracy |",
        "|---|---|---|---|",
    ]
    for name, said in re.findall(r"^<!-- ([\w-]+) -->\n(.*?)^<!-- /\1 -->", page, re.MULTILINE | re.DOTALL):
        rows = [line.strip("| ").split(" | ") for line in said.splitlines() if "(primary)" in line]
        if len(rows) == 2:
            told = (
                f"**{verdict}**: {estimate.replace(', 97.5% interval ', ' (')})"
                for _, _, verdict, estimate, _ in rows
            )
            lines.append(f"| [{name}]({name}/report.md) | {rows[0][-1]} | {' | '.join(told)} |")
    return "\n".join(lines)


def write_summary(name: str, page: Path) -> None:
    """Put a study's summary between its marks on a page, ``<!-- NAME -->`` and ``<!-- /NAME -->``, and the overview."""
    text = _between(page.read_text(), name, summary(PUBLISHED / name))
    page.write_text(_between(text, "overview", overview(text)))


def _between(text: str, name: str, said: str) -> str:
    before, start, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    return f"{before}{start}{said}\n{end}{after}" if start and end else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Design, run or publish the studies."""
    parser = Parser(prog="python -m analyses.results", description=__doc__)
    parser.add_argument("step", choices=("design", "run", "publish"), help="what to do")
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(STUDIES)} (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    parser.add_argument(
        "--fashion-root",
        type=Path,
        default=FASHION_ROOT,
        help=f"folder of Fashion-MNIST's four files (default {FASHION_ROOT})",
    )
    parser.add_argument(
        "--cifar-root", type=Path, help="folder in which torchvision finds CIFAR-10 (default: none)"
    )
    options = parser.parse_args(arguments)
    roots = {FASHION: options.fashion_root, CIFAR: options.cifar_root, MORE_CIFAR: options.cifar_root}
    if options.step != "design":
        with needed("drawing a study's page", ".[study]"):  # before the work
            import analyses.paired_study.page  # noqa: F401
    machine = ["--workers", str(options.workers), "--device", options.device]
    for name in options.studies or STUDIES:
        if name not in STUDIES:
            raise ValueError(f"study {name!r} is unknown; known: {', '.join(STUDIES)}")
        if options.step == "design":
            print(design(name))
            continue
        if options.step == "run":
            make(name, machine, roots)
        publish(name)
        print(PUBLISHED / name / "report.md")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
