"""python -m lipcomp.jacobian: the local Lipschitz constant of encoders at every image, side by side.

sigma_max of the Jacobian of the mean direction (or of the embedding, --unnormalised) in the raw pixels, with the
residual reached; on request the k largest singular values, the Frobenius norm with its standard error, the Fisher trace
and the extreme value diagnostic. Each encoder is written as soon as it is done: run the same command again after an
interruption and it goes on there.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcomp import commands
from lipcomp.bound import fisher_trace
from lipcomp.checkpoints import Checkpoint
from lipcomp.jacobian import (
    FrobeniusNorm,
    SpectralNorm,
    extreme_values,
    frobenius_norm,
    spectral_norm,
)
from lipcomp.jacobian.checks import check_layer
from lipcomp.records import Record, append_records, provenance, read_records

EXAMPLE = """example:
  python -m lipcomp.jacobian runs/simclr.safetensors runs/c-simclr.safetensors --data mnist5k --limit 500 \\
      --frobenius 16 --out jacobian.jsonl --table per_image.csv
"""
QUANTILES = (0.1, 0.5, 0.9, 0.99)

Number = tuple[str, float | None, str, int, dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the records."""
    options = build_parser().parse_args(arguments)
    _check(options)
    device = commands.choose_device(options.device)
    written = set()
    if options.out and options.out.exists():
        written = {record.identity for record in read_records(options.out)}
    rows: list[tuple[str, ...]] = []
    for checkpoint in commands.load_encoders(options):
        rows += _measure(options, checkpoint, device, written)
    if not options.json:
        print(commands.table(("encoder", "quantity", "value", "unit", "images"), rows))
    return 0


def _measure(
    options: Any, checkpoint: Checkpoint, device: torch.device, written: set[str]
) -> list[tuple[str, ...]]:
    dtype = {"float32": torch.float32, "float64": torch.float64}[options.precision]
    encoder = checkpoint.encoder.to(device, dtype)
    check_layer(encoder, options.layer)
    images, indices = commands.load_images(options, encoder.image_shape)
    settings = {
        "data": images.name,
        "data_hash": images.content_hash(),
        "images": len(indices),
        "seed": options.seed,
        "layer": options.layer,
        "normalised": not options.unnormalised,
        "rtol": options.rtol,
        "k": options.k,
        "method": options.method,
        "frobenius": options.frobenius,
        "extremes": options.extremes,
    }
    label = checkpoint.label
    told: dict[str, Any] = {"subject": checkpoint.subject(), "settings": settings}
    if Record("sigma_max.images", float(len(indices)), **told).identity in written:
        print(f"{label}: already in {options.out}", file=sys.stderr)
        return []
    fn = partial(encoder.embedding if options.unnormalised else encoder, layer=options.layer)
    started = time.monotonic()
    numbers: list[Number] = [("sigma_max.images", float(len(indices)), "images", len(indices), {})]
    columns: dict[str, Any] = {"checkpoint": [str(checkpoint.path)] * len(indices), "image": indices.tolist()}
    with commands.progress(len(indices), f"{label} sigma_max") as advance:
        sigma = _by_chunks(spectral_norm, fn, options, images, indices, device, dtype, advance)
    numbers += _spectral_numbers(sigma, indices)
    columns |= _spectral_columns(sigma)
    if options.frobenius:
        with commands.progress(len(indices), f"{label} Frobenius norm") as advance:
            norms = _by_chunks(frobenius_norm, fn, options, images, indices, device, dtype, advance)
        kappa = options.concentration or checkpoint.concentration
        numbers += _frobenius_numbers(norms, fn, images.batch(indices[:1]).to(device, dtype), options, kappa)
        columns["frobenius_squared"] = torch.cat([norm.squared for norm in norms]).tolist()
        columns["frobenius_standard_error"] = torch.cat([norm.standard_error for norm in norms]).tolist()
    if options.extremes:
        numbers += _extreme_numbers(fn, options, images.batch(indices).to(device, dtype), indices, label)
    seconds = round(time.monotonic() - started, 3)
    origin = provenance(device, options.precision, options.seed, seconds=seconds)
    records = [
        Record(name, value, unit, n, **told, provenance=origin | more)
        for name, value, unit, n, more in numbers
    ]
    if options.table:
        commands.write_table(options.table, columns)
    if options.out:
        append_records(options.out, records)
    if options.json:
        print("\n".join(record.to_json() for record in records))
    return [
        (label, name, "none" if value is None else f"{value:.5g}", unit, str(n))
        for name, value, unit, n, _ in numbers
        if value or not name.startswith("sigma_max.excluded")
    ]


def _by_chunks(
    measure: Callable[..., Any],
    fn: Callable[[Tensor], Tensor],
    options: Any,
    images: Any,
    indices: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    advance: Callable[[int], object],
) -> list[Any]:
    """A measure over the set in chunks, so that neither all images nor all vectors are in memory."""
    generator = torch.Generator().manual_seed(options.seed)
    more: dict[str, Any] = {"batch_size": options.batch_size, "generator": generator, "advance": advance}
    if measure is spectral_norm:
        more |= {"k": options.k, "rtol": options.rtol, "method": options.method, "vectors": False}
        more["max_iterations"] = options.max_iterations
    else:
        more["probes"] = options.frobenius
    return [measure(fn, images.batch(part).to(device, dtype), **more) for part in indices.split(512)]


def _spectral_numbers(parts: list[SpectralNorm], indices: Tensor) -> Iterator[Number]:
    sigma = torch.cat([part.sigma for part in parts]).double().cpu()
    known = sigma[~sigma.isnan()]
    n, unit = len(known), "1/pixel L2"
    for reason in parts[0].excluded:
        count = sum(part.excluded[reason] for part in parts)
        key = reason.replace(" ", "_").replace("-", "_")
        yield f"sigma_max.excluded.{key}", float(count), "images", len(sigma), {}
    if not n:
        yield "sigma_max.max", None, unit, 0, {}
        return
    witness = int(sigma.nan_to_num(-1).argmax())
    yield "sigma_max.mean", float(known.mean()), unit, n, {}
    yield "sigma_max.max", float(known.max()), unit, n, {"witness": int(indices[witness])}
    for q in QUANTILES:
        yield f"sigma_max.q{100 * q:g}", float(known.quantile(q)), unit, n, {}
    residual = torch.cat([part.residual for part in parts])
    steps = torch.cat([part.iterations for part in parts]).double()
    converged = torch.cat([part.converged for part in parts])
    yield "sigma_max.residual.max", float(residual.nan_to_num(0).max()), "", n, {}
    yield "sigma_max.iterations.mean", float(steps[steps > 0].mean()), "steps", n, {}
    yield "sigma_max.unconverged", float(n - int(converged.sum())), "images", n, {}


def _spectral_columns(parts: list[SpectralNorm]) -> dict[str, list[Any]]:
    values = torch.cat([part.values for part in parts])
    columns = {f"sigma_{j + 1}": values[:, j].tolist() for j in range(values.shape[1])}
    for name in ("residual", "iterations", "converged", "miss_probability"):
        columns[name] = torch.cat([getattr(part, name) for part in parts]).tolist()
    return columns


def _frobenius_numbers(
    parts: list[FrobeniusNorm],
    fn: Callable[[Tensor], Tensor],
    image: Tensor,
    options: Any,
    kappa: float | None,
) -> Iterator[Number]:
    squared = torch.cat([part.squared for part in parts]).double().cpu()
    error = torch.cat([part.standard_error for part in parts]).double().cpu()
    known = ~squared.isnan()
    n = int(known.sum())
    if not n:
        yield "frobenius_squared.mean", None, "1/pixel L2²", 0, {}
        return
    mean = float(squared[known].mean())
    spread = float(error[known].square().sum().sqrt() / n)
    yield "frobenius_squared.mean", mean, "1/pixel L2²", n, {}
    yield "frobenius_squared.standard_error", spread, "1/pixel L2²", n, {"probes": parts[0].probes}
    if kappa is not None and not options.unnormalised:
        with torch.no_grad():
            dim = fn(image).shape[1]
        trace = float(fisher_trace(squared[known], dim, kappa).mean())
        yield "fisher_trace.mean", trace, "nats/pixel L2²", n, {"concentration": kappa}


def _extreme_numbers(
    fn: Callable[[Tensor], Tensor], options: Any, images: Tensor, indices: Tensor, label: str
) -> Iterator[Number]:
    """The diagnostic (4.6) at the first few images."""
    few = images[: options.extreme_images]
    generator = torch.Generator().manual_seed(options.seed)
    with commands.progress(len(few), f"{label} extreme values") as advance:
        for i, image in enumerate(few.split(1)):
            found = extreme_values(
                fn, image, options.extremes, batch_size=options.batch_size, generator=generator
            )
            fit = found.fits[0]
            more = {
                "image": int(indices[i]),
                "radius": options.extremes,
                "p_value": fit.p_value,
                "interval": fit.interval,
                "reason": fit.reason,
            }
            name = f"extreme_value_diagnostic.{int(indices[i])}"
            yield f"{name}.location", fit.location, "1/pixel L2", fit.blocks, more
            yield f"{name}.largest_seen", fit.maximum, "1/pixel L2", fit.blocks, {}
            advance(1)


def _check(options: Any) -> None:
    """Refuse options that do not fit, before anything is loaded."""
    for name in ("batch_size", "max_iterations", "concentration", "extremes"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")
    if options.frobenius and options.frobenius < 2:
        raise ValueError(f"--frobenius takes at least 2 probes, got {options.frobenius}")
    if options.table:
        commands.check_table(options.table)


def build_parser() -> commands.Parser:
    """The command's options."""
    parser = commands.Parser(prog="python -m lipcomp.jacobian", description=__doc__, epilog=EXAMPLE)
    commands.add_encoder_arguments(parser)
    commands.add_data_arguments(parser, default="mnist5k")
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--layer", default="latent", help="backbone, projection, prediction or latent (default)"
    )
    what.add_argument("--unnormalised", action="store_true", help="the embedding h instead of h / |h|")
    what.add_argument("--k", type=int, default=1, help="how many singular values (default 1)")
    what.add_argument("--frobenius", type=int, metavar="PROBES", help="the Frobenius norm, by so many probes")
    what.add_argument(
        "--concentration", type=float, help="kappa of the Fisher trace (default: the checkpoint's)"
    )
    what.add_argument(
        "--extremes", type=float, metavar="RADIUS", help="the extreme value diagnostic in a ball"
    )
    what.add_argument("--extreme-images", type=int, default=5, help="at so many images (default 5)")
    how = parser.add_argument_group("how")
    how.add_argument("--rtol", type=float, default=1e-4, help="relative tolerance (default 1e-4)")
    how.add_argument("--max-iterations", type=int, help="Lanczos steps at most (default: the dimension, 200)")
    how.add_argument("--method", default="auto", choices=("auto", "lanczos", "rows"), help="default auto")
    how.add_argument("--precision", default="float32", choices=("float32", "float64"), help="default float32")
    commands.add_run_arguments(parser)
    parser.add_argument("--table", type=Path, help="per-image values to this .csv or .parquet file")
    return parser


if __name__ == "__main__":
    sys.exit(commands.run(main))
