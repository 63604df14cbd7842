"""No file takes more than 5 s, nor more memory than twice its size and 300 MiB; small files build no large network."""

import json
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing._internal.two_tensor import TwoTensor

from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._lean import Budget, build_lean, lean
from lipcomp.checkpoints._report import KeyReport

# Loads every path in a process of its own; prints seconds and MiB beyond the start of each.
CHILD = """
import json, sys, time
from lipcomp.checkpoints import load_encoder
import timm
try:
    import transformers.models.auto.modeling_auto
except ImportError:
    pass

def memory(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))

for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")
    before, started = memory("VmRSS"), time.process_time()
    try:
        load_encoder(path)
        outcome = "loaded"
    except ValueError as error:
        outcome = str(error)
    print(json.dumps([path, time.process_time() - started, memory("VmHWM") - before, outcome]), flush=True)
"""
TORCH = b"\x80\x02"  # a pickle of torch.save begins so


def archive(path, data):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", data)
        file.writestr("a/version", "3")


def number(value):
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def claim(size):
    """A pickle of one tensor with these sizes."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
    axes = b"(" + b"".join(map(number, size)) + b"t"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x00"
        + axes
        + axes
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    return TORCH + b"}X\x01\x00\x00\x00w" + tensor + b"s."


def twice(n, kind, start=0):
    """A stack of n tuples or frozen sets, each of the one before it twice (sets: beside another such set)."""
    get = lambda place: b"j" + struct.pack("<I", place)  # noqa: E731
    put = lambda place: b"r" + struct.pack("<I", place)  # noqa: E731
    if kind == "tuple":
        return (
            b")" + put(start) + b"".join(get(start + i) * 2 + b"\x86" + put(start + i + 1) for i in range(n))
        )
    data = b"(K\x01\x91" + put(start) + b"(K\x02\x91" + put(start + 1)
    for i in range(start, start + 2 * n, 2):
        both = b"(" + get(i) + get(i + 1)
        data += both + b"\x91" + put(i + 2) + both + b"N\x91" + put(i + 3)
    return data


def write_endless(root):
    """Less than two MiB each, and years of hashing, comparing or printing; and two long lists."""
    start, last = TORCH + b"}X\x01\x00\x00\x00x(", b"j" + struct.pack("<I", 60)
    tuples = start + twice(60, "tuple") + b"ts"
    archive(root / "key.pth", tuples + last + b"K\x01s.")
    archive(root / "member.pth", b"\x80\x04" + tuples[2:] + b"\x8f(" + last + b"\x90.")
    archive(root / "ordered.pth", tuples + b"ccollections\nOrderedDict\n](](" + last + b"K\x01ee\x85R.")
    archive(root / "storage.pth", tuples + last + b"Q.")
    archive(
        root / "named.pth",
        tuples + b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + last + b"X\x03\x00\x00\x00cpuK\x01tQ.",
    )
    sets = b"\x80\x04" + start[2:] + twice(60, "set") + twice(60, "set", 1000) + b"ts("
    archive(
        root / "equal.pth", sets + b"j" + struct.pack("<I", 120) + b"Nj" + struct.pack("<I", 1120) + b"Nu."
    )
    numbers = b"".join(number(i * ((1 << 61) - 1)) + b"N" for i in range(1, 100_000))  # all have the hash 0
    archive(root / "numbers.pth", TORCH + b"}(" + numbers + b"u.")
    entry, n = b"PK\1\2" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a", 1_000_000
    end = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, n, n, n * len(entry), 30)
    end += (
        b"PK\6\7"
        + struct.pack("<IQI", 0, 30 + n * len(entry), 1)
        + b"PK\5\6"
        + bytes(4)
        + b"\xff" * 12
        + bytes(2)
    )
    (root / "directory.pth").write_bytes(b"PK\3\4" + bytes(26) + entry * n + b"PK\6\6" + end)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({str(i): empty for i in range(500_000)}).encode()
    (root / "header.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def folder(path, config, state):
    path.mkdir()
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


def write_native(path, spec):
    """A native file of a few hundred bytes whose metadata claim a network."""
    header = {"format": 1, "encoder": spec, "objective": {}}
    save_file({"a": torch.zeros(1)}, path, metadata={"lipcomp": json.dumps(header)})


def write(root):
    """Small files that ask for much."""
    archive(root / "sizes.pth", claim([(1 << 2000) - 1] * 500))
    archive(root / "axes.pth", claim([1] * 60_000))
    archive(root / "sets.pth", TORCH + b"(" + b"\x8f" * (20 << 20) + b"t.")
    archive(root / "lists.pth", TORCH + b"(" + b"]" * (20 << 20) + b"t.")
    archive(root / "tuples.pth", TORCH + b")" + b"\x85" * (2 << 20) + b".")
    spec = {"backbone": "resnet200_2x", "image_shape": [3, 224, 224], "projector": [1_000_000, 1_000_000]}
    write_native(root / "native.safetensors", spec)
    write_native(root / "deep.safetensors", {**spec, "image_shape": [60_000, 224, 224], "projector": None})
    little = {"cls_token": torch.zeros(1, 1, 64)}
    folder(
        root / "wide",
        {"architecture": "vit_giant_patch14_dinov2", "model_args": {"embed_dim": 98304}},
        little,
    )
    folder(
        root / "layers", {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 1_000_000}}, little
    )
    folder(root / "named", {"architecture": "eva_giant_patch14_560"}, little)
    table = {"input_size": [3, 4096, 4096], "mean": [0.5] * 3, "std": [0.5] * 3}
    folder(
        root / "table",
        {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": table, "model_args": {"patch_size": 1}},
        little,
    )
    folder(
        root / "wrn", {"lipcomp": {"architecture": "wrn_1000000_1"}, "architecture": "wrn_1000000_1"}, little
    )
    config = {
        "model_type": "deit",
        "hidden_size": 1 << 16,
        "num_attention_heads": 1,
        "intermediate_size": 1 << 20,
    }
    folder(root / "transformers", config, little)
    folder(root / "many", {"model_type": "deit", "num_hidden_layers": 1_000_000}, little)


@pytest.mark.slow
def test_a_small_file_takes_little(tmp_path):
    write(tmp_path)
    write_endless(tmp_path)
    paths = sorted(map(str, tmp_path.iterdir()))
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, *paths],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    told = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("[")]
    assert [entry[0] for entry in told] == paths
    for path, seconds, mebibytes, outcome in told:
        name = path.removeprefix(str(tmp_path))
        assert outcome != "loaded", name
        assert seconds < 5, (name, seconds)
        assert mebibytes < 2 * 20 + 300, (name, mebibytes, outcome)
        assert "\n" not in outcome, name


def test_a_network_larger_than_the_file_is_not_built():
    with pytest.raises(CheckpointError, match=r"far more than the checkpoint holds"), lean(Budget(1000, 10)):
        torch.nn.Linear(100, 100)
    with pytest.raises(CheckpointError, match="far more"), lean(Budget(1 << 30, 10)):
        torch.nn.Sequential(*(torch.nn.ReLU() for _ in range(20)))
    with lean(Budget()):
        network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    assert network[0].weight.is_meta
    assert not network[1].running_mean.is_meta


class Tabled(torch.nn.Module):
    """Computes a table where its parameters are, as timm's swinv2_cr; ``late`` moves it there."""

    def __init__(self, late):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))
        device = self.scale.device
        table = torch.arange(3.0).to(device) if late else torch.arange(3.0, device=device)
        self.register_buffer("table", table, persistent=False)


@pytest.mark.parametrize("late", [True, False])
def test_a_table_computed_beside_the_weights_has_numbers(late):
    network = build_lean(lambda: Tabled(late), Budget())
    assert network.table.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text('{"a": 1}'), "is a JSON file, not weights: give the folder"),
        (lambda path: path.write_bytes(b"GGUF" + bytes(60)), "is a GGUF file"),
        (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path), "TorchScript archive"),
        (
            lambda path: torch.export.save(
                torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),)), path
            ),
            "torch.export",
        ),
        (lambda path: torch.save({"w": torch.zeros(2, 2).to_sparse()}, path), "sparse tensors"),
        (lambda path: torch.save({"w": torch.zeros(2, 2).to(torch.float8_e5m2)}, path), "float8"),
        (
            lambda path: torch.save({"w": torch.zeros(2, 2, device="meta")}, path),
            "meta device, which have no values",
        ),
        (
            lambda path: torch.save({"w": torch.zeros(2, 2, dtype=torch.complex64).conj().imag}, path),
            "as its negative or conjugate; save",
        ),
        (lambda path: torch.save(torch.zeros(2), path), "holds a whole tensor, not"),
        (lambda path: torch.save({"w": torch.zeros(1).expand(3)}, path), "or of an expanded tensor"),
        (lambda path: np.savez_compressed(path.open("wb"), a=np.ones((9, 9))), r"NumPy's arrays \(\.npz\)"),
        (lambda path: path.write_bytes(bytes(257) + b"ustar" + bytes(300)), "is a tar archive; unpack it"),
        (lambda path: torch.save({b"a": torch.ones(2, 2)}, path), "no tensors by name"),
        (lambda path: torch.save({"a": torch.ones(9)}, path), r"none of its tensors \(a\) has more than one"),
        (lambda path: torch.save({"_flat_param": torch.ones(9)}, path), "that FSDP has made flat: save"),
        (
            lambda path: torch.save({"w": TwoTensor(torch.ones(2, 2), torch.ones(2, 2))}, path),
            "one rank's parts; save the full state dict",
        ),
        (lambda path: path.write_bytes(b"\x81\xa6params\x80"), "is of another kind; files of torch.save"),
        (lambda path: path.write_bytes(b"00" * 40), "is of another kind; files of torch.save"),
    ],
    ids=[
        "json",
        "gguf",
        "torchscript",
        "export",
        "sparse",
        "float8",
        "meta",
        "negated",
        "tensor",
        "expanded",
        "npz",
        "tar",
        "bytes",
        "vectors",
        "flat",
        "subclass",
        "msgpack",
        "numbers",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_messages_say_what_a_file_is(write, message, tmp_path):
    write(tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.onnx", b"\x08\x0a"), ("flax_model.msgpack", b"\x82"), ("openvino_model.xml", b"<?xml")],
)
def test_files_of_others_are_named_by_their_names(name, start, tmp_path):
    """OpenVINO's was a web page, flax's one that "uses the pickle instruction EXT1"."""
    (tmp_path / name).write_bytes(start + bytes(99))
    with pytest.raises(
        CheckpointError, match=r", which is not read; give the weights of the PyTorch network"
    ):
        load_encoder(tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_any_protocol_is_read(protocol, tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "net.pth", pickle_protocol=protocol)
    encoder = load_encoder(tmp_path / "net.pth").encoder
    assert torch.equal(encoder.backbone.conv1.weight, resnet18.conv1.weight)


def test_a_files_own_words_are_printed_as_text(tmp_path):
    """An escape sequence in a name coloured the terminal, a line break began a line that looked like ours."""
    save_file({"a\n\x1b[31m": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"it has a\\n\\x1b\[31m\. Name"):
        load_encoder(tmp_path / "a.safetensors")
    report = KeyReport({}, {"b\x1b]0;\x07": "classifier"}, (), ("c\rd",))
    for text in (report.summary(), report.full()):
        assert "b\\x1b]0;\\x07" in text
        assert all(line.isprintable() for line in text.split("\n"))


def test_a_bad_checksum_is_refused(tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "net.pth")
    data = bytearray((tmp_path / "net.pth").read_bytes())
    place = data.find(struct.pack("<f", float(resnet18.conv1.weight.flatten()[0])))
    data[place] ^= 1  # the lowest bit of a weight
    (tmp_path / "net.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="is not what was written"):
        load_encoder(tmp_path / "net.pth")


def test_a_header_of_too_many_tensors_is_refused_before_they_are_read(tmp_path):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"layer{i}.weight": empty for i in range(50_001)}).encode()
    (tmp_path / "many.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="holds 50001 tensors, more than a vision encoder has"):
        load_encoder(tmp_path / "many.safetensors")
