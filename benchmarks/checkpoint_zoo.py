"""Every architecture of timm, torchvision and transformers in every wrapping, against the library's own features.

    python -m benchmarks.checkpoint_zoo --shard 1/16 --out zoo-1.jsonl
    python -m benchmarks.checkpoint_zoo --summarise zoo-*.jsonl

Small networks come first. Every network is tried in one wrapping before any is tried in a second, so that a sweep that
is stopped has seen as many kinds as it could; started again, it goes on.

Each network gets random weights that show every difference, is written in six wrappings, as a bare file and (where the
library has one) as a hub folder, and is loaded by :func:`lipcomp.load_encoder`. A case ends in one of

=============  =========================================================================================================
equal          the features are the library's own, on pixels in [0, 1], to 1e-5 of the largest
ambiguous      refused with "ambiguous: A or B; pass ...", and with the right choice equal
refused        refused, and equal with ``--arch`` as the message says
noted          read as another architecture of equal names and shapes, or with the usual normalisation of its kind,
               which the report says; equal with ``--arch``, ``--mean`` and ``--std``
too large      more parameters than ``--largest``; not written
no reference   the library itself fails on an image, or its features are not finite
MISMATCH       other features, and nothing said: a silent error
STUCK          refused, and no choice of ``--arch``, ``--mean`` and ``--std`` helps
=============  =========================================================================================================
"""

import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks._harness import add_part, append_lines, read_lines
from benchmarks._zoo_networks import REFERENCES, Reference, State, architectures, transformers_kind
from lipcomp._commands import Parser, run
from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._architectures import build_backbone
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._lean import Budget, build_lean

TOLERANCE = 1e-5  # of the largest feature
OUTCOMES = ("equal", "ambiguous", "refused", "noted", "too large", "no reference", "MISMATCH", "STUCK")


def _insert(key: str, depth: int, part: str) -> str:
    parts = key.split(".")
    return ".".join([*parts[:depth], part, *parts[depth:]]) if len(parts) > depth else key


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "ddp": lambda state: {
        "epoch": 3,
        "best_acc1": torch.tensor(71.5),
        "state_dict": _named(state, "module.{}"),
    },
    "compiled": lambda state: {
        "model": {_insert(key, 1, "_orig_mod"): value for key, value in state.items()}
    },
    "averaged": lambda state: {"n_averaged": torch.tensor(7), **_named(state, "module.{}")},
    "fsdp": lambda state: {
        "model": {
            "_fsdp_wrapped_module." + _insert(key, 2, "_checkpoint_wrapped_module"): value
            for key, value in state.items()
        },
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    },
    "lightning": lambda state: {
        "state_dict": _named(state, "model.net.{}"),
        "best_acc1": torch.zeros(1),
        "global_step": 9,
    },
}


def _named(state: State, name: str) -> State:
    return {name.format(key): value for key, value in state.items()}


def count(library: str, name: str, largest: int) -> int:
    """A network's parameters, counted without making them, as far as ``largest``; 0 where it cannot be built."""
    try:
        if library == "transformers":
            body, settings = transformers_kind(name)
            network = build_lean(lambda: body(settings), Budget(largest))
        else:
            network = build_backbone(f"{library}/{name}", budget=Budget(largest)).network
        return sum(value.numel() for value in network.parameters())
    except CheckpointError:
        return largest + 1
    except Exception:  # its sweep will say why
        return 0


def counts(chosen: Sequence[tuple[str, str]], options: Any) -> Iterator[tuple[tuple[str, str], int]]:
    """Each network's parameters; they are kept beside the results, since counting all takes minutes."""
    kept = options.out and options.out.with_suffix(".counts")
    known = {(a, b): numbers for a, b, numbers in read_lines([kept] if kept and kept.exists() else [])}
    for one in chosen:
        if one not in known:
            known[one] = count(*one, options.largest)
            append_lines(kept, [[*one, known[one]]])
        yield one, known[one]


def sweep(library: str, name: str, wrappings: Sequence[str] = tuple(WRAPPINGS)) -> Iterator[dict[str, Any]]:
    """One architecture in every wrapping and container."""
    try:
        reference = REFERENCES[library](name)
        numbers = sum(value.numel() for value in reference.state.values())
        images = torch.rand(1, 3, *reference.size, generator=torch.Generator().manual_seed(1))
        mean, std = (torch.tensor(given).view(-1, 1, 1) for given in (reference.mean, reference.std))
        with torch.no_grad():
            expected = reference.features((images - mean) / std)
        if not isinstance(expected, Tensor) or not bool(expected.isfinite().all()):
            raise RuntimeError("its features are not finite numbers")
    except Exception as error:
        text = (str(error).strip() or repr(error)).splitlines()[0][:200]
        yield {"library": library, "name": name, "outcome": "no reference", "message": text}
        return

    def right(checkpoint: Any) -> bool:
        if tuple(checkpoint.image_shape) != tuple(images.shape[1:]):
            return False
        projected = checkpoint.encoder.layers()[-2] == "projection" and library == "transformers"
        with torch.no_grad():
            found = checkpoint.encoder.embedding(images) if projected else checkpoint.encoder.features(images)
        same = found.shape == expected.shape
        return same and bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())

    for wrapping in wrappings:
        for container in ("file", "folder") if reference.config else ("file",):
            with tempfile.TemporaryDirectory() as folder:
                path = write(reference, WRAPPINGS[wrapping], Path(folder), container)
                if path is None:
                    continue
                started = time.perf_counter()
                outcome, message = judge(path, library, name, reference, right)
                seconds = round(time.perf_counter() - started, 2)
            yield {
                "library": library, "name": name, "wrapping": wrapping, "container": container, "outcome": outcome,
                "message": message, "seconds": seconds, "numbers": numbers,
            }  # fmt: skip


def write(reference: Reference, wrap: Callable[[State], Any], folder: Path, container: str) -> Path | None:
    """The checkpoint; None for a container that does not hold the wrapping."""
    wrapped = wrap(dict(reference.state))
    if container == "file":
        torch.save(wrapped, folder / "checkpoint.pth")
        return folder / "checkpoint.pth"
    weights = next(
        (wrapped[name] for name in ("state_dict", "model") if isinstance(wrapped.get(name), Mapping)), wrapped
    )
    weights = {key: value.clone().contiguous() for key, value in weights.items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(reference.config, default=str))
    if reference.processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(reference.processor))
    return folder


def judge(
    path: Path, library: str, name: str, reference: Reference, right: Callable[[Any], bool]
) -> tuple[str, str]:
    """How one case ends, and what was said."""
    choice: dict[str, Any] = {"mean": reference.mean, "std": reference.std}
    if library != "transformers":
        choice["arch"] = f"{library}/{name}"
    try:
        checkpoint = load_encoder(path)
    except (CheckpointError, ImportError) as error:
        said = str(error)
        # as it says: with its config.json
        if library == "transformers" and path.is_file() and "--mean" not in said:
            path, choice = write(reference, dict, path.parent, "folder") or path, {}
        try:
            helped = right(load_encoder(path, **choice))
        except (CheckpointError, ImportError) as again:
            return "STUCK", f"{said[:300]} || {str(again)[:300]}"
        kind = "ambiguous" if said.startswith("ambiguous") else "refused"
        return (kind, said[:300]) if helped else ("MISMATCH", f"after {kind}: {said[:300]}")
    if right(checkpoint):
        return "equal", ""
    notes = " | ".join(checkpoint.report.notes) if checkpoint.report else ""
    told = str(checkpoint.preprocessing) if "; assumed" in str(checkpoint.preprocessing) else ""
    if (name in notes or told) and right(load_encoder(path, **choice)):
        return "noted", notes + told
    return "MISMATCH", f"{checkpoint.encoder.architecture}, {checkpoint.image_shape}: {notes}"


def summarise(files: list[Path]) -> str:
    """The table, and every case that is an error."""
    cases = read_lines(files)
    counts = Counter((case["library"], case.get("container", "-"), case["outcome"]) for case in cases)
    rows = sorted({(library, container) for library, container, _ in counts})
    shown = [outcome for outcome in OUTCOMES if any(case["outcome"] == outcome for case in cases)]
    lines = [f"| library | container | {' | '.join(shown)} |", "|---" * (2 + len(shown)) + "|"]
    for library, container in rows:
        numbers = (str(counts[library, container, outcome]) for outcome in shown)
        lines.append(f"| {library} | {container} | {' | '.join(numbers)} |")
    for outcome in ("MISMATCH", "STUCK"):
        bad = [case for case in cases if case["outcome"] == outcome]
        names = sorted({(case["library"], case["name"]) for case in bad})
        lines += ["", f"{len(bad)} cases of {len(names)} architectures: {outcome}"] if bad else []
        for library, name in names[:60]:
            first = next(case for case in bad if (case["library"], case["name"]) == (library, name))
            lines.append(
                f"- {library}/{name}, {first['wrapping']}, {first['container']}: {first['message'][:240]}"
            )
    slow = max((case.get("seconds", 0) for case in cases), default=0)
    return "\n".join([*lines, "", f"{len(cases)} cases, the slowest {slow} s"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a shard, or summarise."""
    parser = Parser(prog="python -m benchmarks.checkpoint_zoo", description=__doc__)
    add_part(parser)
    parser.add_argument("--out", type=Path, help="file of JSON lines; architectures in it are skipped")
    parser.add_argument("--largest", type=int, default=150_000_000, help="parameters (default 150 million)")
    parser.add_argument(
        "--whole", action="store_true", help="every wrapping of a network before the next one: faster"
    )
    parser.add_argument("--only", help="library, or library/name with * at the end")
    parser.add_argument("--summarise", nargs="+", type=Path, metavar="FILE", help="print the table and stop")
    options = parser.parse_args(arguments)
    if options.summarise:
        print(summarise(options.summarise))
        return 0
    warnings.simplefilter("ignore")
    chosen = architectures()
    if options.only:
        chosen = [
            (a, b)
            for a, b in chosen
            if Path(f"{a}/{b}").match(options.only if "/" in options.only else f"{options.only}/*")
        ]
    done: Counter[tuple[str, str]] = Counter()
    for case in read_lines([options.out] if options.out and options.out.exists() else []):
        whole = "wrapping" not in case  # too large, or without a reference: not tried again
        done[case["library"], case["name"]] += len(WRAPPINGS) if whole else case.get("container") == "file"
    sized = sorted((numbers, *one) for one, numbers in counts(chosen[options.shard], options))
    for turn in range(1 if options.whole else len(WRAPPINGS)):
        for place, (numbers, library, name) in enumerate(sized):
            if done[library, name] >= (len(WRAPPINGS) if options.whole else turn + 1):
                continue
            turns = range(done[library, name], len(WRAPPINGS)) if options.whole else [turn]
            wrappings = [[*WRAPPINGS][(place + k) % len(WRAPPINGS)] for k in turns]
            if numbers > options.largest:
                cases = [{"library": library, "name": name, "outcome": "too large", "numbers": numbers}]
            else:
                cases = list(sweep(library, name, wrappings))
            done[library, name] += len(wrappings) if "wrapping" in cases[0] else len(WRAPPINGS)
            append_lines(options.out, cases)
            told = ", ".join(f"{case.get('container', '')} {case['outcome']}".strip() for case in cases)
            print(f"{library}/{name}, {', '.join(wrappings)}: {told}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
