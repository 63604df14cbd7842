"""The fate of every key of a checkpoint: used, ignored (and why) or missing."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from lipcomp.checkpoints._errors import printable


@dataclass(frozen=True)
class KeyReport:
    """Every key of a file in one of two groups, and what the network wanted but did not get."""

    # key in the file -> name in our encoder (``backbone.layer1.0.conv1.weight``)
    used: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)  # key in the file -> why it was left out
    # names in our encoder that the file does not have and that no output depends on (a batch norm's counter of
    # batches); anything else that is missing is an error, not a line here
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what had to be assumed, since the file does not say it

    def summary(self) -> str:
        """The report in a few lines: counts, and ignored keys by reason."""
        lines = [
            f"{len(self.used)} keys used, {len(self.ignored)} ignored, {len(self.missing)} missing",
            *(
                f"  ignored, {reason}: {len(keys)} ({_few(keys)})"
                for reason, keys in self.by_reason().items()
            ),
        ]
        if self.missing:
            lines.append(f"  missing, harmless: {_few(self.missing)}")
        return _lines([*lines, *(f"  note: {note}" for note in self.notes)])

    def full(self) -> str:
        """The report with a line for every key."""
        lines = [f"used     {source} -> {target}" for source, target in self.used.items()]
        lines += [f"ignored  {source} ({reason})" for source, reason in self.ignored.items()]
        lines += [f"missing  {name}" for name in self.missing]
        return _lines([*lines, *(f"note     {note}" for note in self.notes)])

    def by_reason(self) -> dict[str, list[str]]:
        """The ignored keys, gathered by why."""
        groups: dict[str, list[str]] = defaultdict(list)
        for source, reason in self.ignored.items():
            groups[reason].append(source)
        return dict(groups)


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(map(printable, lines))


def _few(keys: Iterable[str], shown: int = 3) -> str:
    keys = list(keys)
    return ", ".join(keys[:shown]) + (f", ... {keys[-1]}" if len(keys) > shown else "")
