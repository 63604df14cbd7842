"""Whatever text or JSON a parser meets, it gives a value of its kind or the one error that it promises."""

import argparse
import dataclasses
import json
import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from analyses.paired_study.design import Design, read_design
from analyses.paired_study.study import read_plan
from lipcomp.checkpoints._dialects import DIALECTS, prefixes_of, translate
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._native import Metadata, _parse, load_checkpoint, save_checkpoint
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.measure import _options as options
from train.recipe import Recipe, change
from train.recipes import find_recipe, mnist_byol

FEW = settings(max_examples=60)
MANY = settings(max_examples=300)
DIGITS = st.text(alphabet="0123456789.,xX-+eEinfa N_", max_size=12)
TEXTS = st.one_of(DIGITS, st.text(max_size=12))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


# Options of the commands.


def parsed(parser, text):
    """The value, or None where the parser refuses as argparse wants it."""
    try:
        return parser(text)
    except (argparse.ArgumentTypeError, ValueError):  # argparse makes either a usage error
        return None


@MANY
@given(TEXTS)
@example("inf")
@example("1.5")
@example("nan")
@example("1_0")
@example("1\x1f")
def test_options_are_values_in_range_or_usage_errors(text):
    found = parsed(options.numbers, text)
    assert found is None or all(isinstance(number, float) for number in found)
    found = parsed(options.severities, text)
    if found is not None:
        assert set(found) <= {1, 2, 3, 4, 5}
        assert list(found) == [float(word.strip()) for word in text.split(",") if word.strip()]
    found = parsed(options.words, text)
    assert found is None or all(word and word == word.strip() and "," not in word for word in found)
    for kind in (int, float):
        found = parsed(options.positive(kind), text)
        assert found is None or 0 < found < math.inf
    sizes = parsed(options._sizes, text)
    assert sizes is None or (1 <= len(sizes) <= 3 and all(isinstance(n, int) and n >= 1 for n in sizes))
    side = parsed(options._side, text)
    assert side is None or sizes in ((side,), side)


@FEW
@given(
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=4),
    st.lists(st.integers(1, 9999), min_size=1, max_size=3),
)
def test_what_is_written_is_read_again(values, sizes):
    assert options.numbers(",".join(map(repr, values))) == tuple(values)
    for mark in ",x":
        assert options._sizes(mark.join(map(str, sizes))) == tuple(sizes)


# Recipes.


FIELDS = [f.name for f in dataclasses.fields(Recipe)]
PATHS = st.one_of(
    st.sampled_from(FIELDS),
    st.sampled_from(["objective.beta", "objective.kappa_e", "encoder.projector", "encoder.image_shape"]),
    st.text(max_size=8),
    st.builds("{}.{}".format, st.sampled_from(FIELDS), st.text(max_size=5)),
)
ODD = st.sampled_from(["None", "True", "()", "(1, 'a')", "{[]: 1}", "-1", "1e400"])


RECIPES = st.sampled_from([mnist_byol(), find_recipe("mnist_c_simclr")])


@MANY
@given(RECIPES, PATHS, TEXTS | JSON.map(repr) | ODD)
@example(mnist_byol(), "epochs", "None")
@example(mnist_byol(), "images", "'a'")
@example(mnist_byol(), "images", "[]")
@example(mnist_byol(), "target_decay", "{[]: 1}")
@example(mnist_byol(), "encoder.image_shape", "('a', None)")
def test_a_change_of_a_recipe_is_a_recipe_or_a_value_error(recipe, path, text):
    try:
        found = change(recipe, {path: text})
    except ValueError:
        return
    assert isinstance(found, Recipe)
    changed = [f for f in FIELDS if getattr(found, f) != getattr(recipe, f)]
    assert changed in ([], [path.partition(".")[0]])


@FEW
@given(st.floats(1e-6, 1e6), st.integers(2, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_change_that_fits_is_made(rate, batch, decay):
    recipe = mnist_byol()
    for path, value in (("learning_rate", rate), ("batch_size", batch), ("target_decay", decay)):
        recipe = change(recipe, {path: repr(value)})
    assert recipe == dataclasses.replace(
        mnist_byol(), learning_rate=rate, batch_size=batch, target_decay=decay
    )


# Names of weights.


PIECES = (
    "encoder layer layers 0 1 attention query key q_proj in_proj_weight attn weight bias embeddings cls_token "
    "layernorm mlp fc1 lambda1"
)
NAMES = st.lists(st.sampled_from(PIECES.split()), max_size=6).map(".".join)


@MANY
@given(
    st.sampled_from(DIALECTS),
    st.lists(NAMES | st.text(max_size=10), unique=True, max_size=8),
    st.sampled_from(["", "module.", "a.b."]),
)
def test_a_dialect_loses_no_weight(dialect, names, prefix):
    """Every tensor behind the prefix is under one name, alone or joined; no other tensor is touched."""
    state = {prefix + name: torch.full((2, 2), float(i)) for i, name in enumerate(names)}
    state |= {prefix + sign: torch.zeros(1) for sign in (dialect.sign, dialect.stem) if sign}
    state["elsewhere"] = torch.zeros(1)
    assert (dialect, prefix) in prefixes_of(state)
    try:
        found = translate(state, dialect, prefix)
    except CheckpointError as error:
        assert "without its key and value" in str(error)  # noqa: PT017
        return
    assert found.weights.keys() == found.keys.keys()
    taken = [key for keys in found.keys.values() for key in keys]
    renamed = {key for key in state if key.startswith(prefix)}
    assert len(taken) == len(set(taken))
    assert set(taken) <= renamed
    assert sum(len(keys) for keys in found.keys.values()) == len(taken)


# Headers of checkpoints.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("parsers") / "model.safetensors"
    encoder = build_encoder(EncoderSpec("small_cnn", (1, 8, 8), projector=(8, 4)), seed=0)
    save_checkpoint(
        path, encoder, metadata=Metadata(objective={"name": "CSimCLR", "kappa_e": 1024.0}, seed=3)
    )
    return path.read_bytes()


@FEW
@given(st.data())
def test_a_header_with_changed_bytes_is_a_checkpoint_or_a_checkpoint_error(checkpoint, tmp_path, data):
    header = 8 + struct.unpack("<Q", checkpoint[:8])[0]
    damaged = bytearray(checkpoint)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, header)))
    (tmp_path / "model.safetensors").write_bytes(bytes(damaged[:cut]))
    try:
        found = load_checkpoint(tmp_path / "model.safetensors")
    except CheckpointError as error:
        assert "model.safetensors" in str(error)  # noqa: PT017
        return
    assert found.encoder(torch.zeros(1, *found.image_shape)).shape[0] == 1
    assert found.subject()["sha256"] == found.sha256


@MANY
@given(
    st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Metadata)]), JSON, max_size=4),
    JSON,
    JSON,
)
@example({"objective": 5}, {"backbone": "small_cnn", "image_shape": [1, 8, 8]}, 1)
@example({"objective": {"kappa_e": "much"}}, {"backbone": "small_cnn", "image_shape": [1, 8, 8]}, 1)
@example({"metrics": []}, {"backbone": "small_cnn", "image_shape": [1, 8, 8]}, 1)
def test_a_header_of_any_json_is_metadata_or_a_checkpoint_error(fields, encoder, version):
    header = json.dumps({"format": version, "encoder": encoder, **fields})
    try:
        spec, metadata = _parse(header, Path("here"))
    except CheckpointError:
        return
    assert isinstance(spec, EncoderSpec)
    for name in ("objective", "recipe", "data", "code_version", "metrics"):
        assert isinstance(getattr(metadata, name), dict), name


# A study's plan and design.


@MANY
@given(
    JSON
    | st.fixed_dictionaries(
        {
            "design": JSON
            | st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Design)]), JSON)
        }
    )
)
@example([1, 2])
@example(3)
@example({"design": "strong"})
@example({"design": {"primary": 3}})
@example({"design": {"level": "high"}})
def test_a_plan_of_any_json_is_a_design_or_a_value_error_that_names_the_file(tmp_path, written):
    (tmp_path / "study.json").write_text(json.dumps(written))
    try:
        design = read_design(read_plan(tmp_path))
    except ValueError as error:
        assert "study.json" in str(error)  # noqa: PT017
        return
    assert isinstance(design, Design)
    assert isinstance(design.primary, tuple)
    assert design.sigma.low < design.sigma.high
