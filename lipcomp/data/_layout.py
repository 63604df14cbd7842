"""The layout of a folder: splits, classes by name, and the images of each. An ambiguous layout is an error.

``root/<split>/<class>/...``, ``root/<class>/...``, ``root/<split>/*``, ``root/*``, each with or without a table of
labels (:mod:`lipcomp.data._labels`). Names of splits are those of torchvision and Hugging Face:

==========  ===========================================================
split       folders, in any case
==========  ===========================================================
train       train, training
test        test, testing; where there is none, those of val
val         val, valid, validation, dev
==========  ===========================================================

**The training split's class names define the indices**, in the order of ``sorted`` as torchvision numbers them; other
splits are matched to them by name. Empty class folders are not classes. What cannot be told apart (images beside class
folders, splits inside classes, two folders for one split) is refused.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lipcomp.data._labels import Row, Table, find_metadata, in_order, match_rows, read_table, shorten
from lipcomp.data._listing import UNPACK, has_images, list_images, normal, packed_files, visible_folders

FOLDERS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev"),
}
SPLITS = ("train", "test", "val", "pretrain")
_CANONICAL = {name: split for split, names in FOLDERS.items() for name in names}


@dataclass
class Found:
    """The images of one split, the class name of each (None: no labels), all class names, and what was left out."""

    files: list[Path]
    names: list[str] | None
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def find_split(
    root: Path,
    split: str,
    *,
    labels: Path | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    holdout: float | None = None,
    seed: int = 0,
) -> Found:
    """Find the images of a split and their classes; the arguments are those of :func:`lipcomp.data.load_set`."""
    table = read_table(labels, label_column) if labels is not None else None
    places = split_folders(root)
    if table is None and label_column is not None and not any(map(find_metadata, (root, *places.values()))):
        raise ValueError(
            f"label_column={label_column!r} is a column of a table, and {str(root)!r} has no metadata.csv or "
            f"metadata.jsonl; name the table with labels=, or leave label_column out"
        )
    told = sorted(places)
    if table is None and not places:
        metadata = _read_metadata(root, root, label_column)
        if metadata is not None and any(row.split for row in metadata.rows or metadata.splits):
            table = metadata
    splits = table is not None and any(row.split for row in table.rows or table.splits)
    if table is not None and splits:
        told = sorted({str(row.split) for row in table.rows or table.splits})
    if holdout is not None and told not in ([], ["train"]):
        raise ValueError(
            f"data {str(root)!r} has splits already ({', '.join(told)}); leave holdout={holdout} away"
        )
    if table is not None and splits:
        found, train = _of_table_with_splits(root, split, table)
    elif not places or holdout is not None:
        found, train = _whole(root, places.get("train", root), split, table, label_column, holdout, seed)
    else:
        place = _chosen(root, places, split)
        found = _labelled(root, place, table, label_column)
        if not found.files:  # the place has images, so that a table lacks them
            raise ValueError(f"no row of the table of labels names an image of {str(place)!r}; check labels=")
        train = _class_names(root, places["train"], table, label_column) if "train" in places else None
        if place != places.get("train") and train and found.names is None:
            raise ValueError(
                f"{str(place)!r} holds images without class folders, but the train split has classes; put them into "
                f"class folders, give a table (labels=)"
                + (", take split='val'" if "val" in places and split == "test" else "")
                + f", or name {str(place)!r} itself as the data where no labels are needed"
            )
    if found.names is not None:
        own = in_order(set(found.names))
        found.classes = tuple(classes) if classes is not None else train or own
        check_distinct(found.classes)
        if alike := [name for name, n in Counter(map(str.casefold, found.classes)).items() if n > 1]:
            written = [name for name in found.classes if name.casefold() == alike[0]]
            found.notes.append(f"classes that differ only in capitals: {', '.join(written)}")
        _check_names(root, own, found.classes, "classes given" if classes is not None else "train split")
    return found


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of a root's splits that hold images, by "train", "test" and "val".

    Raises
    ------
    ValueError
        If two folders stand for one split, or a split's name may just as well be a class.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"data folder {str(root)!r} does not exist; give the folder that holds the images"
        )
    inside = [folder for folder in visible_folders(root) if has_images(folder)]
    found: dict[str, Path] = {}
    for folder in inside:
        split = canonical(folder.name)
        if split in found:
            raise ValueError(
                f"{str(root)!r} has two folders for the {split} split, {found[split].name!r} and {folder.name!r}; "
                f"rename one, or give one of them as the data"
            )
        if split:
            found[split] = folder
    others = [folder.name for folder in inside if folder not in found.values()]
    flat = [folder.name for folder in found.values() if not any(map(has_images, visible_folders(folder)))]
    if others and flat:
        raise ValueError(
            f"{str(root)!r} has folders {shorten(flat)} and {shorten(others)}, all with images: is {flat[0]!r} a split "
            f"or a class? Move the class folders into {str(root / 'train')!r} and {str(root / 'test')!r}, or the "
            f"others elsewhere"
        )
    return found


def canonical(name: str) -> str | None:
    """Any name of a split as "train", "test" or "val"; None for other names."""
    return _CANONICAL.get(name.lower())


def choose_split(there: Container[str], split: str) -> str | None:
    """Which of the splits that are there is meant: the validation split where there is no test split."""
    wanted = {"train": ("train",), "pretrain": ("train",), "test": ("test", "val"), "val": ("val",)}[split]
    return next((name for name in wanted if name in there), None)


def _chosen(root: Path, places: dict[str, Path], split: str) -> Path:
    name = choose_split(places, split)
    if name is not None:
        return places[name]
    folders = ", ".join(FOLDERS["train" if split == "pretrain" else split])
    there = ", ".join(str(folder.name) for folder in places.values())
    raise FileNotFoundError(
        f"data folder {str(root)!r} has no {split} split (a folder {folders}), only: {there}; add it, or give a folder "
        f"of it as the data" + (", or hold images out with holdout=0.2" if "train" in places else "")
    )


def _whole(
    root: Path,
    place: Path,
    split: str,
    table: Table | None,
    label_column: str | None,
    holdout: float | None,
    seed: int,
) -> tuple[Found, tuple[str, ...] | None]:
    """A folder without splits: all of it, or a part that is held out or not."""
    found = _labelled(root, place, table, label_column)
    if not found.files:
        raise FileNotFoundError(
            f"data folder {str(place)!r} holds no image, neither loose nor in class folders"
            + "".join(f" ({note})" for note in found.notes)
            + (f", but {packed[0]}: {UNPACK}" if (packed := packed_files(place)) else "; check the path")
        )
    if holdout is None:
        if split == "train":
            raise ValueError(
                f"data folder {str(root)!r} has no train split, and a probe is never scored on the images it was "
                f"fitted on: make folders {str(root / 'train')!r} and {str(root / 'test')!r} of class folders, give a "
                f"table with a column 'split' (labels=), or hold images out with holdout=0.2. "
                f'Where no probe is fitted, split="test" measures all of it'
            )
        return found, None
    if not 0 < holdout < 1:
        raise ValueError(f"holdout must be a fraction between 0 and 1, got {holdout}")
    names = found.names or [""] * len(found.files)
    held = _held_out(names, holdout, seed)
    kept = [i for i in range(len(names)) if (i in held) == (split in ("test", "val"))]
    train = None if found.names is None else in_order({n for i, n in enumerate(names) if i not in held})
    found.files = [found.files[i] for i in kept]
    found.names = None if found.names is None else [names[i] for i in kept]
    return found, train


def _held_out(names: Sequence[str], fraction: float, seed: int) -> set[int]:
    """Which images are held out: the fraction of each class, drawn by the seed, in the order of the files."""
    generator = torch.Generator().manual_seed(seed)
    held: set[int] = set()
    for name in sorted(set(names)):
        members = [i for i, own in enumerate(names) if own == name]
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        held |= {members[i] for i in torch.randperm(len(members), generator=generator)[:count].tolist()}
    return held


def _read_metadata(root: Path, place: Path, label_column: str | None) -> Table | None:
    """The metadata of a place or of its root; without labels it only counts if a column of them is named."""
    metadata = find_metadata(place) or find_metadata(root)
    return read_table(metadata, label_column, required=label_column is not None) if metadata else None


def _labelled(root: Path, place: Path, table: Table | None, label_column: str | None) -> Found:
    """The images below a place, labelled by a table, by metadata beside them, or by their class folders."""
    if table is not None:
        return _by_table(root, place, table, table.rows)
    read = _read_metadata(root, place, label_column)
    if read is None or not read.rows:
        return _by_folders(place)
    found = _by_table(root, place, read, read.rows)
    folders = [normal(file.parts[len(place.parts)]) for file in found.files]
    if set(folders) & {row.label for row in read.rows}:  # folders and table speak of the same classes
        for file, folder, name in zip(found.files, folders, found.names or (), strict=True):
            if folder != name:
                raise ValueError(
                    f"{file.name!r} lies in the class folder {folder!r}, but {str(read.path)!r} labels it {name!r}; "
                    f"pass the table as labels= if it is right, or remove it"
                )
    return found


def _by_table(root: Path, place: Path, table: Table, rows: Sequence[Row]) -> Found:
    own = table.path.is_relative_to(place)
    listing = list_images(place if own else root)
    splits = {} if own or place == root else split_folders(root)
    words = {canonical(word) for word in re.split(r"[\W_]+", table.path.stem)}
    named = [folder for split, folder in splits.items() if split in words]  # train.csv is that of train
    beside = named or splits.values() or [place]  # a row may fit one of them
    bases = [table.path.parent], beside, [root], [root.absolute().parent]
    matched = match_rows(table, rows, listing.files, bases)
    inside = [file for file in listing.files if file.is_relative_to(place)]
    files = [file for file in inside if file in matched]
    left = [file.name for file in inside if file not in matched]
    notes = [f"{len(left)} images have no row in {table.path.name}: {shorten(left)}"] if left else []
    return Found(files, [matched[file] for file in files], notes=notes + _told(listing.skipped))


def _of_table_with_splits(root: Path, split: str, table: Table) -> tuple[Found, tuple[str, ...] | None]:
    rows: dict[str, list[Row]] = {}
    for row in table.rows or table.splits:
        name = canonical(row.split or "")
        if name is None:
            raise ValueError(
                f"{str(table.path)!r} gives {row.file!r} the split {row.split!r}, which must be one of "
                f"{', '.join(_CANONICAL)}"
            )
        rows.setdefault(name, []).append(row)
    chosen = choose_split(rows, split)
    if chosen is None:
        raise ValueError(f"{str(table.path)!r} has no row of the {split} split, only of: {', '.join(rows)}")
    found = _by_table(root, root, table, rows[chosen])
    found.notes = [note for note in found.notes if "no row" not in note]
    train = in_order({row.label for row in rows["train"]}) if "train" in rows else None
    if table.splits:  # classes are those of the folders
        whole = _by_folders(root)
        name_of = dict(zip(whole.files, whole.names or (), strict=False))
        found.names = [name_of[file] for file in found.files] if name_of else None
        if train is not None:
            files = _by_table(root, root, table, rows["train"]).files
            train = in_order({name_of[file] for file in files}) if name_of else None
    return found, train


def _by_folders(place: Path) -> Found:
    own = list_images(place, below=False)
    files: list[Path] = []
    names: list[str] = []
    skipped, classes, empty = Counter(own.skipped), list[str](), list[str]()
    for folder in visible_folders(place):
        listing = list_images(folder)
        skipped += listing.skipped
        if listing.skipped and not listing.files:
            raise ValueError(
                f"class folder {str(folder)!r} holds only images that cannot be decoded "
                f"({'; '.join(_told(listing.skipped))}); convert them (to PNG, JPEG), or remove the folder"
            )
        for path in listing.tables:
            rows = read_table(path, required=False).rows
            if any(row.label != normal(folder.name) for row in rows):
                raise ValueError(
                    f"{str(path)!r} labels images in the class folder {folder.name!r}, so that they have two classes; "
                    f"put its rows into one table beside the class folders, or remove it"
                )
        files += listing.files
        names += [normal(folder.name)] * len(listing.files)
        (classes if listing.files else empty).append(normal(folder.name))
    if files and own.files:
        raise ValueError(
            f"{len(own.files)} images lie beside the class folders of {str(place)!r} "
            f"({shorten([file.name for file in own.files])}), so that their class is not known; move them into class "
            f"folders or elsewhere"
        )
    check_distinct(classes)
    _check_depth(place, files)
    notes = [f"folders without images are no classes: {shorten(empty)}"] if empty and files else []
    return Found(files or own.files, names if files else None, notes=notes + _told(skipped))


def _check_depth(place: Path, files: Sequence[Path]) -> None:
    """Refuse splits inside classes, and class folders that lie one folder deeper than they were looked for."""
    depth = len(place.parts)
    inner = {file.parts[depth + 1] for file in files if len(file.parts) > depth + 2}
    outer = {file.parts[depth] for file in files}
    splits = sorted(name for name in inner if canonical(name))
    loose = any(len(file.parts) == depth + 2 for file in files)
    if len(outer) == 1 and inner and not loose and (splits or len(inner) > 1):
        deeper = place / outer.pop()
        raise ValueError(
            f"the folders of {str(place)!r} lie one folder deeper: give {str(deeper)!r}, or move them up"
        )
    if splits:
        raise ValueError(
            f"folders {shorten(splits)} lie inside the class folders of {str(place)!r}; put the splits outside, "
            f"split/class, or give a table with a column 'split' (labels=)"
        )


def _class_names(
    root: Path, place: Path, table: Table | None, label_column: str | None
) -> tuple[str, ...] | None:
    """The class names of the training split, without listing its images where they have class folders."""
    read = table or _read_metadata(root, place, label_column)
    if read is not None and read.rows:
        found = _by_table(root, place, read, read.rows)
        if found.names:
            return in_order(set(found.names))
    return in_order_of_folders(place)


def in_order_of_folders(place: Path) -> tuple[str, ...] | None:
    """Names of the class folders that hold images, or None if there are none."""
    names = tuple(sorted(normal(folder.name) for folder in visible_folders(place) if has_images(folder)))
    check_distinct(names)
    return names or None


def check_distinct(classes: Sequence[str]) -> None:
    """Refuse a class that is there twice: with accents, spaces or zeros written differently, or in a list."""
    seen: dict[str, str] = {}
    for name in classes:
        if (other := seen.get(_as_seen(name))) is not None:
            both = "" if other == name else f" and {other!r}, one name or number written in two ways"
            raise ValueError(f"there are two classes {name!r}{both}; rename or join them")
        seen[_as_seen(name)] = name


def _as_seen(name: str) -> str:
    """A name as people read it: without zero-width letters, spaces of one kind, whole numbers without zeros around."""
    kinds = [(letter, unicodedata.category(letter)) for letter in name]
    shown = "".join(" " if kind == "Zs" else letter for letter, kind in kinds if kind != "Cf")
    shown = re.sub(" +", " ", shown).strip(" ")
    number = re.fullmatch(r"\+?(-?)0*(\d+)(\.0*)?", shown)
    return f"{number[1]}{number[2]}" if number else shown


def _check_names(root: Path, own: Sequence[str], classes: Sequence[str], whose: str) -> None:
    strange = [name for name in own if name not in classes]
    if strange:
        folded = {name.casefold(): name for name in classes}
        near = difflib.get_close_matches(strange[0].casefold(), folded, 1)
        hint = f" (is {strange[0]!r} their {folded[near[0]]!r}?)" if near else ""
        if len(own) == 1 and not near:
            hint = " (images in one folder have no labels: a table gives them, labels=)"
        raise ValueError(
            f"{len(strange)} classes of {str(root)!r} are not among the {len(classes)} of the {whose}: "
            f"{shorten(strange)}{hint}. Classes are matched by name: rename or remove them"
        )


def _told(skipped: Counter[str]) -> list[str]:
    if not skipped:
        return []
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(skipped.items()))
    return [f"formats that are not read: {kinds}"]
