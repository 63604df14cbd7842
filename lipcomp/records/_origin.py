"""The provenance of a number: code, machine, command and time."""

import functools
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SECRET = re.compile(r"(token|passw|secret|api-?_?key|credential|auth)", re.IGNORECASE)


def provenance(
    device: "torch.device | str | None" = None,
    precision: str = "float32",
    seed: int | None = None,
    threads: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Versions, commit, device and its name, precision, threads, command and UTC time.

    Parameters
    ----------
    device
        Where it was computed; None: torch's default device.
    precision
        Of the computation, such as ``"float32"``.
    seed
        Of the random draws, if there is one.
    threads
        CPU threads; None: those that torch uses now.
    more
        Further entries; None leaves one out.
    """
    import torch

    device = torch.get_default_device() if device is None else torch.device(device)
    base = {
        **_versions(),
        "device": str(device),
        "device_name": _device_name(str(device)),
        "precision": precision,
        "threads": torch.get_num_threads() if threads is None else threads,
        "seed": seed,
        "command": command_line(sys.argv),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }
    return {name: value for name, value in base.items() if value is not None}


def command_line(arguments: list[str]) -> str:
    """A command as it would be typed, without its secrets and without the folder it lies in."""
    shown = []
    hide = False
    for argument in arguments[1:]:
        name, equals, _ = argument.partition("=")
        secret = name.startswith("-") and _SECRET.search(name) is not None
        if hide and not argument.startswith("-"):
            argument = "HIDDEN"
        elif secret and equals:
            argument = f"{name}=HIDDEN"
        hide = secret and not equals
        shown.append(re.sub(r"(\w+://)[^/@\s]+@", r"\1HIDDEN@", argument))
    program = Path(arguments[0]) if arguments and arguments[0] else Path("python")
    if program.suffix != ".py":
        return shlex.join([program.name, *shown])
    file = program.resolve()
    roots = [root for root in map(Path.resolve, map(Path, sys.path)) if root in file.parents]
    # what -m found it in, or a script's own folder
    root = max(roots, key=lambda each: len(each.parts), default=file.parent)
    module = file.relative_to(root).with_suffix("").parts
    if len(module) > 1:
        return shlex.join(["python", "-m", ".".join(module).removesuffix(".__main__"), *shown])
    return shlex.join(["python", program.name, *shown])


@functools.cache
def _device_name(device: str) -> str:
    import torch

    kind = torch.device(device).type
    if kind == "cpu":
        return _processor()
    module = torch.get_device_module(kind)
    name = getattr(module, "get_device_name", None)
    return str(name(device)) if name else kind


def _processor() -> str:
    """The CPU's model."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


@functools.cache
def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"lipcomp": _version("lipcomp") or "uninstalled", "commit": _commit()}
    import torch

    found["torch"] = str(torch.__version__)
    for package in ("torchvision", "numpy", "scipy"):
        found[package] = _version(package)
    return found | {"python": platform.python_version(), "os": platform.platform()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the clone this module runs from, with "+" if the clone has changes; None elsewhere."""
    clone = Path(__file__).resolve().parents[2]
    if not (clone / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(clone)]
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
