"""Tables of labels."""

from corpus_building import Checks, Exact, Folder, Refused, case

TWO = ("train/cat/0.png", "train/cat/1.png", "train/dog/0.png", "test/cat/0.png", "test/dog/0.png")
TEST = {"test/cat/0.png": "cat", "test/dog/0.png": "dog"}


@case
def metadata_in_each_split(f: Folder) -> Checks:
    f.put("train/0.png", "train/1.png", "test/0.png")
    f.table("train/metadata.csv", [("file_name", "label"), ("0.png", "dog"), ("1.png", "cat")])
    f.table("test/metadata.csv", [("file_name", "label"), ("0.png", "dog")])
    yield Exact({"test/0.png": "dog"}, classes=("cat", "dog"))
    yield Exact({"train/0.png": "dog", "train/1.png": "cat"}, "train")


@case
def metadata_of_json(f: Folder) -> Checks:
    f.put("train/0.png", "train/1.png", "test/0.png")
    f.lines("train/metadata.jsonl", [{"file_name": "0.png", "label": 10}, {"file_name": "1.png", "label": 9}])
    f.lines("test/metadata.jsonl", [{"file_name": "0.png", "label": 9}])
    yield Exact({"test/0.png": "9"}, classes=("9", "10"))


@case
def metadata_at_the_root(f: Folder) -> Checks:
    f.put("train/0.png", "train/1.png", "test/0.png")
    rows = [("file_name", "label"), ("train/0.png", "b"), ("train/1.png", "a"), ("test/0.png", "b")]
    f.table("metadata.csv", rows)
    yield Exact({"test/0.png": "b"}, classes=("a", "b"))


@case
def metadata_without_labels(f: Folder) -> Checks:
    f.put(*TWO)
    f.table("test/metadata.csv", [("file_name", "caption"), ("cat/0.png", "a cat")])
    yield Exact(TEST)


@case
def metadata_against_the_class_folder(f: Folder) -> Checks:
    f.put(*TWO)
    rows = [("file_name", "label"), ("cat/0.png", "dog"), ("dog/0.png", "dog")]
    path = f.table("test/metadata.csv", rows)
    yield Refused("lies in the class folder 'cat'")
    yield Exact(
        {"test/cat/0.png": "dog", "test/dog/0.png": "dog"}, options={"labels": path}, classes=("cat", "dog")
    )


@case
def metadata_of_images_in_a_folder(f: Folder) -> Checks:
    f.put("images/0.png", "images/1.png")
    f.table("metadata.csv", [("file_name", "label"), ("images/0.png", "x"), ("images/1.png", "y")])
    yield Exact({"images/0.png": "x", "images/1.png": "y"})


@case
def tiny_imagenet_as_published(f: Folder) -> Checks:
    f.put(
        "train/n2/images/n2_0.png", "train/n1/images/n1_0.png", "val/images/val_0.png", "val/images/val_1.png"
    )
    f.put("test/images/test_0.png")
    f.make("val/val_annotations.txt", "val_0.png\tn2\t0\t32\t44\t62\nval_1.png\tn1\t3\t3\t9\t9\n")
    yield Exact({"val/images/val_0.png": "n2", "val/images/val_1.png": "n1"}, "val", classes=("n1", "n2"))
    yield Refused("images in one folder have no labels")


@case
def table_with_splits(f: Folder) -> Checks:
    f.put("images/0.png", "images/1.png", "images/2.png", "images/3.png")
    head = ("image_id", "category", "split")
    rows = [("0", "b", "train"), ("1", "a", "training"), ("2", "b", "validation"), ("3", "b", "test")]
    path = f.table("labels.csv", [head, *rows])
    yield Exact({"images/3.png": "b"}, options={"labels": path}, classes=("a", "b"))
    yield Exact({"images/2.png": "b"}, "val", options={"labels": path}, classes=("a", "b"))
    yield Exact({"images/0.png": "b", "images/1.png": "a"}, "train", options={"labels": path})


@case
def table_with_an_unknown_split(f: Folder) -> Checks:
    f.put("0.png")
    path = f.table("labels.csv", [("file", "label", "split"), ("0.png", "a", "third")])
    yield Refused("the split 'third'", options={"labels": path})


@case
def table_with_semicolons_and_a_mark(f: Folder) -> Checks:
    f.put("0.png", "1.png")
    rows = [("filename", "class"), ("0.png", "b, c"), ("./1.png", "a")]
    path = f.table("labels.csv", rows, delimiter=";", encoding="utf-8-sig")
    yield Exact({"0.png": "b, c", "1.png": "a"}, options={"labels": path})


@case
def table_with_tabs(f: Folder) -> Checks:
    f.put("0.png", "1.png")
    path = f.table("labels.tsv", [("path", "target"), ("0.png", 10), ("1.png", 2)], delimiter="\t")
    yield Exact({"0.png": "10", "1.png": "2"}, options={"labels": path}, classes=("2", "10"))


@case
def table_from_windows(f: Folder) -> Checks:
    f.put("a/0.png", "b/0.png")
    path = f.make("labels.csv", "file,label\r\na\\0.png,x\r\nb\\0.png,y\r\n\r\n")
    yield Exact({"a/0.png": "x", "b/0.png": "y"}, options={"labels": path})


@case
def table_of_whole_paths(f: Folder) -> Checks:
    f.put("a/0.png", "b/0.png")
    place = f.root.absolute()
    path = f.table(
        "labels.csv", [("path", "label"), (place / "a/0.png", "x"), (f"{place.name}/b/0.png", "y")]
    )
    yield Exact({"a/0.png": "x", "b/0.png": "y"}, options={"labels": path})


@case
def table_with_splits_and_a_holdout(f: Folder) -> Checks:
    f.put("0.png", "1.png")
    path = f.table(
        "labels.csv", [("file", "label", "split"), ("0.png", "a", "train"), ("1.png", "a", "test")]
    )
    yield Refused("has splits already", options={"labels": path, "holdout": 0.5})


@case
def table_of_a_missing_file(f: Folder) -> Checks:
    f.put("0.png")
    path = f.table("labels.csv", [("file", "label"), ("0.png", "a"), ("1.png", "b")])
    yield Refused(r"1 of 2 rows .* name no image of the folder: 1\.png", options={"labels": path})
    f.put("0.png")
    (f.root / "1.tga").write_bytes(b"x")
    path = f.table("labels.csv", [("file", "label"), ("0.png", "a"), ("1.tga", "b")])
    yield Refused(
        r"no image of the folder: 1\.tga; files with the ending \.tga are not read", options={"labels": path}
    )


@case
def table_that_is_not_there(f: Folder) -> Checks:
    f.put("0.png")
    yield Refused("does not exist", options={"labels": str(f.root / "labels.csv")})


@case
def table_with_two_labels_of_one_image(f: Folder) -> Checks:
    f.put("0.png")
    path = f.table("labels.csv", [("file", "label"), ("0.png", "a"), ("0.png", "b")])
    yield Refused("two labels, 'a' and 'b'", options={"labels": path})


@case
def table_with_an_empty_label(f: Folder) -> Checks:
    f.put("0.png", "1.png")
    path = f.table("labels.csv", [("file", "label"), ("0.png", "a"), ("1.png", "")])
    yield Refused("no label", options={"labels": path})


@case
def table_with_two_columns_of_labels(f: Folder) -> Checks:
    f.put("0.png", "1.png")
    path = f.table("labels.csv", [("file", "class", "label"), ("0.png", "cat", 0), ("1.png", "dog", 1)])
    yield Refused("several columns of labels", options={"labels": path})
    yield Exact({"0.png": "cat", "1.png": "dog"}, options={"labels": path, "label_column": "class"})
    yield Refused("no column 'kind'", options={"labels": path, "label_column": "kind"})


@case
def table_without_labels(f: Folder) -> Checks:
    f.put("0.png")
    path = f.table("labels.csv", [("file", "caption"), ("0.png", "a cat")])
    yield Refused("no column of labels", options={"labels": path})


@case
def table_with_fewer_rows(f: Folder) -> Checks:
    f.put("0.png", "1.png", "2.png")
    path = f.table("labels.csv", [("file", "label"), ("0.png", "a"), ("2.png", "b")])
    yield Exact({"0.png": "a", "2.png": "b"}, options={"labels": path}, note="1 images have no row")


@case
def table_with_lists(f: Folder) -> Checks:
    f.put("0.png")
    path = f.lines("labels.jsonl", [{"file": "0.png", "label": ["a", "b"]}])
    yield Refused("one class per image", options={"labels": path})


@case
def table_of_test_with_another_class(f: Folder) -> Checks:
    f.put("train/0.png", "test/0.png")
    f.table("train/metadata.csv", [("file_name", "label"), ("0.png", "a")])
    f.table("test/metadata.csv", [("file_name", "label"), ("0.png", "b")])
    yield Refused("not among the 1 of the train split: b")


@case
def table_for_the_test_split_alone(f: Folder) -> Checks:
    f.put("train/cat/0.png", "train/dog/0.png", "val/0.png", "val/1.png")
    path = f.table("val.csv", [("file", "label"), ("val/0.png", "dog"), ("val/1.png", "cat")])
    yield Exact({"val/0.png": "dog", "val/1.png": "cat"}, options={"labels": path}, classes=("cat", "dog"))


@case
def damaged_tables(f: Folder) -> Checks:
    f.put("0.png")
    for name, content, reason in (
        ("ragged.csv", "file,label\n0.png,a,b\n", "3 cells, its head 2"),
        ("twice.csv", "file,label,label\n0.png,a,b\n", "two columns with the same name"),
        ("quote.csv", 'file,label\n"0.png,a\n', "damaged"),
        ("latin.csv", "file,label\n0.png,caf\u00e9\n".encode("latin-1"), "not UTF-8"),
        ("empty.csv", "", "no row"),
        ("half.jsonl", '{"file": "0.png", "lab', "not valid JSON"),
        ("list.jsonl", "[1, 2]", "one JSON object"),
        ("deep.jsonl", "[" * 99999, "not valid JSON"),
        ("latin.jsonl", '{"file": "0.png", "label": "caf\u00e9"}'.encode("latin-1"), "not UTF-8"),
        ("labels.parquet", "PAR1", r"is none of \.csv"),
        ("keys.jsonl", '{"file": "0.png", "label": "a", "label": "b"}', "a key stands there twice"),
        ("letter.jsonl", '{"file": "0.png", "label": "\\ud800"}', "half of a letter"),
    ):
        yield Refused(reason, options={"labels": f.make(name, content)})


@case
def columns_that_name_two_images(f: Folder) -> Checks:
    """The first usual name decided, in silence; a number is no file, though it may be another image's stem."""
    f.put("1.png", "2.png")
    head = ("id", "image", "file_name", "label")
    path = f.table("labels.csv", [head, ("1", "1.png", "2.png", "x"), ("2", "2.png", "1.png", "y")])
    yield Refused("names two images, '2.png' and '1.png'; rename or remove", options={"labels": path})
    path = f.table("ids.csv", [head, ("1", "http://a/9.png", "2.png", "x"), ("2", "", "1.png", "y")])
    yield Exact({"1.png": "y", "2.png": "x"}, options={"labels": path})


@case
def columns_without_a_name(f: Folder) -> Checks:
    """The index that pandas writes and a comma at the end of each line."""
    f.put("0.png")
    yield Exact({"0.png": "x"}, options={"labels": str(f.make("a.csv", ",file,label,\n0,0.png,x,\n"))})


@case
def bare_names_that_fit_twice(f: Folder) -> Checks:
    f.put("a/0.png", "b/0.png")
    path = f.table("labels.csv", [("file", "label"), ("0", "x")])
    yield Refused("fit several images", options={"labels": path})


@case
def cells_that_hold_line_ends(f: Folder) -> Checks:
    """A line end within quotes, and the separators that only str.splitlines takes for one."""
    f.put("0.png", "1.png", "2.png")
    names = "a\nb", "a\u2028b", "a\x85b"
    rows = [(f"{i}.png", name) for i, name in enumerate(names)]
    images: dict[str, str | None] = dict(rows)
    yield Exact(images, options={"labels": f.table("labels.csv", [("file", "label"), *rows])})
    raw = "\n".join(f'{{"file": "{i}.png", "label": "x\u2028{i}"}}' for i in range(3))
    path = str(f.make("labels.jsonl", raw))
    yield Exact({f"{i}.png": f"x\u2028{i}" for i in range(3)}, options={"labels": path})


@case
def two_files_of_metadata(f: Folder) -> Checks:
    f.put("0.png", "1.png")
    f.table("metadata.csv", [("file_name", "label"), ("0.png", "x"), ("1.png", "y")])
    f.lines("metadata.jsonl", [{"file_name": "0.png", "label": "y"}])
    yield Refused(r"has metadata\.csv and metadata\.jsonl; remove one")
    yield Exact({"0.png": "x", "1.png": "y"}, options={"labels": str(f.root / "metadata.csv")})


@case
def metadata_of_a_format_that_is_not_read(f: Folder) -> Checks:
    f.put(*TWO)
    f.make("test/metadata.parquet", "PAR1")
    yield Refused("save it as one of these")


@case
def table_of_paths_that_go_up(f: Folder) -> Checks:
    f.put("a/0.png", "b/0.png")
    path = f.table("tables/labels.csv", [("path", "label"), ("../a/0.png", "x"), ("../b/./0.png", "y")])
    yield Exact({"a/0.png": "x", "b/0.png": "y"}, options={"labels": path})


@case
def table_with_spaces_before_quotes(f: Folder) -> Checks:
    f.put("0.png", "1.png")
    path = str(f.make("labels.csv", '"file", "label"\n"0.png", "x, y"\n"1.png", "z"\n'))
    yield Exact({"0.png": "x, y", "1.png": "z"}, options={"labels": path})


@case
def table_with_one_number_in_two_ways(f: Folder) -> Checks:
    f.put("0.png", "1.png", "2.png")
    path = f.table("labels.csv", [("file", "label"), ("0.png", "1"), ("1.png", "1.0"), ("2.png", "2")])
    yield Refused("'1.0' and '1', one name or number written in two ways", options={"labels": path})


@case
def metadata_with_the_column_that_is_named(f: Folder) -> Checks:
    f.put("train/0.png", "train/1.png", "test/0.png", "test/1.png")
    for split in ("train", "test"):
        rows = [("file_name", "label", "category"), ("0.png", "x", 1), ("1.png", "x", 2)]
        f.table(f"{split}/metadata.csv", rows)
    yield Refused("several columns of labels .*label_column=")
    named = {"label_column": "category"}
    yield Exact({"test/0.png": "1", "test/1.png": "2"}, options=named, classes=("1", "2"))
    yield Refused("no column 'breed', only: file_name", options={"label_column": "breed"})


@case
def column_of_no_table(f: Folder) -> Checks:
    f.put("train/cat/0.png", "test/cat/0.png")
    yield Refused("no metadata.csv", options={"label_column": "breed"})


@case
def metadata_with_splits(f: Folder) -> Checks:
    f.put("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    rows = [(f"{name}/{i}.png", name, ("train", "test")[i]) for name in ("cat", "dog") for i in range(2)]
    f.table("metadata.csv", [("file_name", "label", "split"), *rows])
    yield Exact({"cat/1.png": "cat", "dog/1.png": "dog"}, classes=("cat", "dog"))
    yield Exact({"cat/0.png": "cat", "dog/0.png": "dog"}, "train")
    yield Refused("has splits already", options={"holdout": 0.5})


@case
def names_that_two_splits_have(f: Folder) -> Checks:
    f.put("train/0.png", "train/1.png", "test/0.png", "test/2.png")
    path = f.table("labels.csv", [("file", "label"), ("0.png", "x"), ("1.png", "y")])
    for split in ("train", "test"):
        yield Refused(
            "1 rows .* fit several images: 0.png; give their paths", split, options={"labels": path}
        )
    # each has one of its own
    path = f.table("labels.csv", [("file", "label"), ("1.png", "x"), ("2.png", "x")])
    yield Exact({"test/2.png": "x"}, options={"labels": path})


@case
def metadata_in_class_folders(f: Folder) -> Checks:
    f.put(*TWO)
    f.table("test/cat/metadata.csv", [("file_name", "label"), ("0.png", "x")])
    yield Refused("labels images in the class folder 'cat', so that they have two classes")
    f.table("test/cat/metadata.csv", [("file_name", "caption"), ("0.png", "a cat")])
    yield Exact(TEST)
    f.table("test/cat/metadata.csv", [("file_name", "label"), ("0.png", "cat")])
    yield Exact(TEST)


@case
def one_table_for_each_split(f: Folder) -> Checks:
    f.put("train/0.png", "train/1.png", "test/0.png", "test/1.png")
    tables = {
        split: f.table(f"{split}_labels.csv", [("file", "label"), ("0.png", first), ("1.png", "y")])
        for split, first in (("train", "x"), ("test", "y"))
    }
    for split, first in (("train", "x"), ("test", "y")):
        yield Exact(
            {f"{split}/0.png": first, f"{split}/1.png": "y"}, split, options={"labels": tables[split]}
        )
