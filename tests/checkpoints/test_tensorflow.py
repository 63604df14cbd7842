"""TensorFlow checkpoints: a writer of the published format, the official variable names, a network computed by hand.

The same reader was compared once with checkpoints that TensorFlow 2.21 itself wrote (names, values and outputs).
"""

import ast
import random
import struct

import pytest
import torch
import torchvision
from google_crc32c import value as crc32c
from torch import nn
from torch.nn import functional

from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._tensorflow_bundle import Bundle, unmask

# A writer, from the description of LevelDB's tables and of tensor_bundle.proto.


def mask(crc):
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def block(entries):
    body, restarts, previous = bytearray(), [], b""
    for count, (key, value) in enumerate(entries):
        shared = 0
        if count % 16 == 0:
            restarts.append(len(body))
        else:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    body += b"".join(struct.pack("<I", place) for place in restarts) + struct.pack("<I", len(restarts))
    return bytes(body) + b"\0" + struct.pack("<I", mask(crc32c(bytes(body) + b"\0")))


def write_bundle(prefix, variables, shards=1, checksums=True, per_block=40):
    """Write variables (float32 or int64 tensors) as TensorFlow does."""
    data, entries = [bytearray() for _ in range(shards)], {b"": field(1, shards) + field(3, field(1, 1))}
    for number, (name, value) in enumerate(sorted(variables.items())):
        raw, shard = value.contiguous().numpy().tobytes(), number % shards
        shape = b"".join(field(2, field(1, size)) for size in value.shape)
        entry = field(1, {torch.float32: 1, torch.int64: 9}[value.dtype]) + field(2, shape)
        entry += field(3, shard) + field(4, len(data[shard])) + field(5, len(raw))
        if checksums:
            entry += varint(6 << 3 | 5) + struct.pack("<I", mask(crc32c(raw)))
        entries[name.encode()] = entry
        data[shard] += raw
    table, index = bytearray(), []
    items = sorted(entries.items())
    for start in range(0, len(items), per_block):
        part = items[start : start + per_block]
        written = block(part)
        index.append((part[-1][0], varint(len(table)) + varint(len(written) - 5)))
        table += written
    meta, handles = block([]), []
    for written in (meta, block(index)):
        handles.append(varint(len(table)) + varint(len(written) - 5))
        table += written
    footer = b"".join(handles)
    table += footer + bytes(40 - len(footer)) + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.with_name(prefix.name + ".index").write_bytes(table)
    for number, raw in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{shards:05d}").write_bytes(raw)


# The network of the official code, computed from the variables by hand.

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def conv(variables, name, x, stride):
    kernel = variables[name].permute(3, 2, 0, 1)
    return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)


def norm(variables, name, x):
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = variables[f"{name}/gamma"] / (variables[f"{name}/moving_variance"] + 1e-5).sqrt()
    shift = variables.get(f"{name}/beta", torch.zeros_like(scale)) - variables[f"{name}/moving_mean"] * scale
    return x * scale.view(shape) + shift.view(shape)


def resnet18(variables, x):
    """The paper's ResNet-18 with the CIFAR stem, from block_groups and the rest."""
    x = conv(variables, "initial_conv_relu_max_pool/0/conv2d/kernel", x, 1)
    x = norm(variables, "initial_conv_relu_max_pool/2/bn", x).relu()
    for group in range(4):
        for layer in range(2):
            place, stride = f"block_groups/{group}/layers/{layer}", 2 if group and not layer else 1
            shortcut = x
            if layer == 0:
                shortcut = conv(variables, f"{place}/shortcut_layers/0/conv2d/kernel", x, stride)
                shortcut = norm(variables, f"{place}/shortcut_layers/1/bn", shortcut)
            y = conv(variables, f"{place}/conv2d_bn_layers/0/conv2d/kernel", x, stride)
            y = norm(variables, f"{place}/conv2d_bn_layers/1/bn", y).relu()
            y = conv(variables, f"{place}/conv2d_bn_layers/2/conv2d/kernel", y, 1)
            x = (norm(variables, f"{place}/conv2d_bn_layers/3/bn", y) + shortcut).relu()
    return x.mean((2, 3))


def under(variables, prefix):
    return {
        name.removeprefix(prefix).removesuffix(VALUE): v
        for name, v in variables.items()
        if name.startswith(prefix)
    }


def draw(name, shape, generator):
    value = torch.randn(shape, generator=generator)
    if name.endswith(("moving_variance", "gamma")):
        return 0.5 + value.abs()
    return value / max(1, value[..., 0].numel()) ** 0.5 if len(shape) > 1 else 0.1 * value


@pytest.fixture
def official(reference, generator):
    """Values for the official C-BYOL ResNet-18's variables."""
    variables = {}
    for line in (reference / "tf_keys_resnet18_cbyol.txt").read_text().splitlines():
        name, shape = line.split(" ", 1)
        if name.startswith("model/"):
            variables[name] = draw(name.removesuffix(VALUE), ast.literal_eval(shape), generator)
    return variables | {f"save_counter{VALUE}": torch.tensor(1)}


def test_the_papers_checkpoint(tmp_path, official, generator, normalised):
    write_bundle(tmp_path / "ckpt-3", official, shards=2, checksums=False)
    checkpoint = load_encoder(tmp_path / "ckpt-3")
    assert (checkpoint.format, checkpoint.image_shape) == ("tensorflow", (3, 32, 32))
    images = torch.rand(2, 3, 32, 32, generator=generator)
    mean, std = checkpoint.preprocessing.mean, checkpoint.preprocessing.std
    hidden = resnet18(under(official, "model/_resnet/"), normalised(images, mean, std))
    layers = {"backbone": hidden}
    for layer, part, last in (("projection", "_projection_head", 1), ("prediction", "_projector", 2)):
        head = under(official, f"model/{part}/linear_layers/")
        hidden = (
            norm(head, "0/bn_relu/bn", hidden @ head["0/dense/kernel"]).relu() @ head[f"{last}/dense/kernel"]
        )
        layers[layer] = hidden
    for layer, expected in layers.items():
        ours = checkpoint.encoder.embedding(images, layer)
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    told = checkpoint.report.used.keys() | checkpoint.report.ignored.keys()
    assert told == official.keys()
    assert f"model/_projector/linear_layers/3/dense/kernel{VALUE}" in checkpoint.report.ignored


def test_the_momentum_branch(tmp_path, official):
    write_bundle(tmp_path / "ckpt", official, checksums=False)
    found = load_encoder(tmp_path / "ckpt", branch="momentum").encoder
    kernel = official[f"model/_target_resnet/initial_conv_relu_max_pool/0/conv2d/kernel{VALUE}"]
    assert torch.equal(found.backbone.conv1.weight, kernel.permute(3, 2, 0, 1))
    assert found.layers() == ("backbone", "projection", "prediction", "latent")


def test_resnet_50_with_the_pool_padded_at_the_end(tmp_path, reference, shaken, images, normalised):
    """The names of the table in torchvision's network, whose max-pool is then padded as TensorFlow's."""
    network = torchvision.models.resnet50(weights=None)
    network.fc = nn.Identity()
    shaken(network)
    theirs = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    variables = {}
    for name, value in network.state_dict().items():
        *place, what = name.split(".")
        if what == "num_batches_tracked":
            continue
        if len(place) == 1:
            where = "initial_conv_relu_max_pool/" + ("0" if place[0] == "conv1" else "2")
        else:
            group, block, part, *number = place
            if part == "downsample":
                where = f"projection_layers/{number[0]}"
            else:
                where = f"conv_relu_dropblock_layers/{3 * (int(part[-1]) - 1) + part.startswith('bn')}"
            where = f"block_groups/{int(group[-1]) - 1}/layers/{block}/{where}"
        kind = "conv2d/kernel" if value.ndim == 4 else f"bn/{theirs[what]}"
        value = value.permute(2, 3, 1, 0) if value.ndim == 4 else value
        variables[f"model/_resnet/{where}/{kind}{VALUE}"] = value
    listed = (reference / "tf_keys_resnet50_cbyol.txt").read_text().splitlines()
    assert variables.keys() == {name.strip() for name in listed if name.startswith("model/_resnet/")}

    write_bundle(tmp_path / "ckpt", variables, checksums=False)
    encoder = load_encoder(tmp_path / "ckpt", image_size=64).encoder
    assert encoder.architecture == "resnet50_tf"
    seen = normalised(images)
    torchvisions = network(seen)
    network.maxpool = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -torch.inf), nn.MaxPool2d(3, 2))
    expected = network(seen)
    torch.testing.assert_close(
        encoder.features(images), expected, rtol=0, atol=1e-6 * float(expected.abs().max())
    )
    assert (torchvisions - expected).norm() / expected.norm() > 1e-2


def test_simclr_of_tensorflow_1_by_the_order_of_building(tmp_path, official, generator):
    """The same network under TensorFlow 1's running numbers: in each block the shortcut's layers are made first."""
    paper = under(official, "model/_resnet/")
    order = [("initial_conv_relu_max_pool/0", "initial_conv_relu_max_pool/2")]
    for group in range(4):
        for layer in range(2):
            place = f"block_groups/{group}/layers/{layer}"
            if layer == 0:
                order.append((f"{place}/shortcut_layers/0", f"{place}/shortcut_layers/1"))
            order += [(f"{place}/conv2d_bn_layers/{i}", f"{place}/conv2d_bn_layers/{i + 1}") for i in (0, 2)]
    variables = {"global_step": torch.tensor(5)}
    for number, (kernel, bn) in enumerate(order):
        suffix = f"_{number}" if number else ""
        variables[f"base_model/conv2d{suffix}/kernel"] = paper[f"{kernel}/conv2d/kernel"]
        variables[f"base_model/conv2d{suffix}/kernel/Momentum"] = torch.zeros(1)
        for what in ("gamma", "beta", "moving_mean", "moving_variance"):
            variables[f"base_model/batch_normalization{suffix}/{what}"] = paper[f"{bn}/bn/{what}"]
    widths, head = [512, 64, 64, 16], {}
    for j in range(3):
        head[f"nl_{j}/dense/kernel"] = draw("kernel", (widths[j], widths[j + 1]), generator)
        for what in ("gamma", "moving_mean", "moving_variance", *(["beta"] if j < 2 else [])):
            head[f"nl_{j}/batch_normalization/{what}"] = draw(what, (widths[j + 1],), generator)
    variables |= {f"head_contrastive/{name}": value for name, value in head.items()}
    variables["head_supervised/linear_layer/dense/kernel"] = torch.zeros(512, 10)
    write_bundle(tmp_path / "model.ckpt-5", variables, checksums=False)
    checkpoint = load_encoder(tmp_path / "model.ckpt-5", mean=(0.0,), std=(1.0,))
    images = torch.rand(2, 3, 32, 32, generator=generator)
    expected = resnet18(paper, images)
    torch.testing.assert_close(
        checkpoint.encoder.features(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    for j in range(3):
        expected = norm(head, f"nl_{j}/batch_normalization", expected @ head[f"nl_{j}/dense/kernel"])
        expected = expected.relu() if j < 2 else expected
    torch.testing.assert_close(
        checkpoint.encoder.embedding(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    assert checkpoint.report.ignored["base_model/conv2d/kernel/Momentum"] == "optimiser state"


def test_crc32c():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the catalogue of CRCs
    assert unmask(mask(0x12345678)) == 0x12345678


SMALL = {"model/a": torch.arange(6.0).view(2, 3), "model/b": torch.tensor(7), "model/ba": torch.ones(0, 2)}


def test_values_come_back(tmp_path):
    many = {f"model/layer{i}/kernel": torch.full((i + 1,), float(i)) for i in range(300)} | SMALL
    write_bundle(tmp_path / "c", many, shards=3, per_block=7)
    bundle = Bundle(tmp_path / "c")
    assert bundle.entries.keys() == many.keys()
    for name, value in many.items():
        assert torch.equal(bundle.read(name), value)


@pytest.mark.parametrize("given", ["c-3", "c-3.index", "c-3.data-00000-of-00002", "."])
def test_however_it_is_named(tmp_path, given):
    for step in (2, 3):
        write_bundle(tmp_path / f"c-{step}", SMALL, shards=2)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "c-3"\nall_model_checkpoint_paths: "c-2"\n')
    assert Bundle(tmp_path / given).prefix == tmp_path / "c-3"
    assert len(Bundle(tmp_path / given).sha256()) == 64


def damage(path, place, change=1):
    raw = bytearray(path.read_bytes())
    raw[place] ^= change
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: damage(p / "c.data-00000-of-00001", 2), "does not have the checksum"),
        (lambda p: damage(p / "c.index", 3), "a block does not have its checksum"),
        (lambda p: damage(p / "c.index", -3), "the footer is not that of a table"),
        (lambda p: (p / "c.index").write_bytes(b""), "the footer is not that of a table"),
        (lambda p: (p / "c.index").write_bytes((p / "c.index").read_bytes()[20:]), "damaged index"),
        (lambda p: (p / "c.data-00000-of-00001").write_bytes(b"123"), "claims bytes 0 to 24 .* which has 3"),
        (
            lambda p: (p / "c.data-00000-of-00001").unlink(),
            "is not there; put the index and the shards into one folder",
        ),
        (lambda p: (p / "c.index").unlink(), "holds 0 TensorFlow checkpoints"),
    ],
)
def test_damage_is_named(tmp_path, harm, message):
    write_bundle(tmp_path / "c", SMALL)
    harm(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        Bundle(tmp_path).read("model/a")


def test_other_variables_are_named(tmp_path):
    write_bundle(tmp_path / "c", SMALL)
    with pytest.raises(CheckpointError, match=r"holds no ResNet.*model/a"):
        load_encoder(tmp_path / "c")


def test_a_damaged_index_is_one_clear_error(tmp_path):
    write_bundle(tmp_path / "c", SMALL)
    index, draw = tmp_path / "c.index", random.Random(0)
    sound = index.read_bytes()
    for number in range(200):
        place, changed = draw.randrange(len(sound)), bytearray(sound)
        match number % 3:
            case 0:
                changed = changed[:place]
            case 1:
                changed[place] ^= 1 << draw.randrange(8)
            case 2:
                changed[place:place] = draw.randbytes(draw.randrange(1, 16))
        index.write_bytes(changed)
        with pytest.raises(CheckpointError, match="checkpoint"):
            load_encoder(tmp_path / "c")
