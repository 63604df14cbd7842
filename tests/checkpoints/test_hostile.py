"""Damaged and hostile files: one clear error and nothing else. No payload runs, nothing crashes, nothing hangs.

The whole corpus is loaded in a process of its own, which an audit hook watches: it ends at the first attempt to
start a program, to open a connection or to look a class up for a pickle.
"""

import argparse
import builtins
import json
import os
import pickle
import random
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lipcomp.checkpoints import load_encoder, save_checkpoint
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._native import Metadata
from lipcomp.checkpoints._torch_files import read_torch
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.encoders._resnet import ResNet

MUTANTS = 60  # of each sound file
# What a child process does: load every file of a folder, a line of JSON each.
CHILD = """
import json, signal, sys, time
from pathlib import Path
from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._native import Checkpoint

FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")

import timm  # everything that is imported when needed, before the watch begins

def watch(event, arguments):
    if event in FORBIDDEN:
        print(json.dumps(["FORBIDDEN", event, str(arguments)[:200]]), flush=True)
        raise SystemExit(3)

def alarm(*given):
    raise TimeoutError("hangs")

signal.signal(signal.SIGALRM, alarm)
sys.addaudithook(watch)
for path in sorted(Path(sys.argv[1]).iterdir()):
    signal.setitimer(signal.ITIMER_REAL, 20)
    try:
        outcome = ["loaded", type(load_encoder(path)).__name__]
    except ValueError as error:
        outcome = ["refused", str(error)]
    except BaseException as error:
        outcome = ["CRASHED", repr(error)]
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps([path.name, *outcome]), flush=True)
"""


class Payload:
    """Pickles into a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def tiny():
    """A ResNet-9 with four channels, 20 kB of weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet(9, "cifar", 1 / 16, 3).state_dict()


def write_sound_files(folder):
    """One sound file of every container, small."""
    torch.save(tiny(), folder / "bare.pth")
    torch.save(
        {"state_dict": {f"module.encoder_q.{k}": v for k, v in tiny().items()}}, folder / "moco.pth.tar"
    )
    torch.save({"model": tiny()}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(tiny(), folder / "bare.safetensors")
    spec = EncoderSpec("small_cnn", (1, 28, 28), projector=(8, 4))
    save_checkpoint(folder / "native.safetensors", build_encoder(spec), metadata=Metadata())


def write_mutants(sound, folder, draw, count):
    """Truncations, bit flips, zeroed and repeated stretches of every sound file."""
    for path in sorted(sound.iterdir()):
        data = path.read_bytes()
        # The first kilobyte and the last hold the structure, the middle the numbers.
        places = [
            draw.choice(
                [draw.randrange(len(data)), draw.randrange(1024), len(data) - 1 - draw.randrange(1024)]
            )
            for _ in range(count)
        ]
        for number, place in enumerate(places):
            changed = bytearray(data)
            match number % 5:
                case 0:
                    changed = changed[:place]
                case 1 | 2:
                    changed[place] ^= 1 << draw.randrange(8)
                case 3:
                    changed[place : place + 16] = bytes(min(16, len(data) - place))
                case 4:
                    changed[place:place] = changed[place : place + draw.randrange(1, 64)]
            (folder / f"mutant-{number:02d}-{path.name}").write_bytes(changed)


def payloads(mark):
    """Calls that would leave a mark, by the names that such files use."""
    touch = f"import pathlib; pathlib.Path({str(mark)!r}).write_text('ran')"
    return {
        "system": Payload(os.system, f"touch {mark}"),
        "exec": Payload(builtins.exec, touch),
        "eval": Payload(builtins.eval, f"open({str(mark)!r}, 'w')"),
        "popen": Payload(subprocess.Popen, ["touch", str(mark)]),
        "write": Payload(Path.write_text, Path(mark), "ran"),
        "open": Payload(builtins.open, str(mark), "w"),
        "getattr": Payload(builtins.getattr, "text", "upper"),
        "runpy": Payload(runpy._run_code, touch, {}),
        "import": Payload(builtins.__import__, "antigravity"),
        "copy": Payload(shutil.copyfile, __file__, str(mark)),
        "torch": Payload(torch.hub.load, "a/b", "c"),
    }


def write_payloads(folder, mark):
    """Each payload as a plain pickle of every protocol, in a torch archive, in a legacy file, and by hand."""
    for name, payload in payloads(mark).items():
        for protocol in range(6):
            (folder / f"pickle{protocol}-{name}.pth").write_bytes(
                pickle.dumps({"state_dict": payload}, protocol)
            )
        torch.save({**tiny(), "extra": payload}, folder / f"zip-{name}.pth")
        torch.save(
            {**tiny(), "extra": payload}, folder / f"legacy-{name}.pth", _use_new_zipfile_serialization=False
        )
        (folder / f"swapped-{name}.safetensors").write_bytes(pickle.dumps(payload))
    texts = {
        "inst": b"(S'touch %b'\nios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\nX\x05\x00\x00\x00touchoR.",
        "stack-global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R.",
        "build": b"\x80\x02cbuiltins\nexec\n}b.",
        "harmless-prefix": b"\x80\x02clightning.os\nsystem\nX\x05\x00\x00\x00touch\x85R.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"\x80\x02X\x02\x00\x00\x00osQ.",
    }
    for name, text in texts.items():
        (folder / f"text-{name}.pth").write_bytes(text)
        with zipfile.ZipFile(folder / f"textzip-{name}.pth", "w") as archive:
            archive.writestr("a/data.pkl", text)


def write_others(folder):
    """Empty, foreign and overblown files."""
    (folder / "empty.pth").write_bytes(b"")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "page.pth").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (folder / "lfs.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / "noise.pth").write_bytes(random.Random(1).randbytes(4096))
    (folder / "header.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    (folder / "negative.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    with zipfile.ZipFile(folder / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 26))
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "not a checkpoint")
    deep: dict = {}
    shared = deep
    for _ in range(30):  # a tree that is small in the file and endless to walk
        shared = {str(number): shared for number in range(8)}
    torch.save({"model": shared}, folder / "lace.pth")
    with torch.device("meta"):
        claim = {key: value.shape for key, value in ResNet(200, "imagenet", 16, 3).state_dict().items()}
    torch.save({key: torch.zeros(()).expand(shape) for key, shape in claim.items()}, folder / "expanded.pth")
    torch.save(
        {key: torch.zeros([1] * len(shape)) for key, shape in claim.items()}
        | {
            "conv1.weight": torch.zeros(1024, 3, 7, 7),
            "layer1.0.conv1.weight": torch.zeros(1024, 1024, 1, 1)[:, :1],
        },
        folder / "claim.pth",
    )


@pytest.mark.slow
def test_a_corpus_of_damaged_and_hostile_files(tmp_path):
    sound, corpus, mark = tmp_path / "sound", tmp_path / "corpus", tmp_path / "mark"
    sound.mkdir()
    corpus.mkdir()
    write_sound_files(sound)
    write_mutants(sound, corpus, random.Random(0), MUTANTS)
    write_payloads(corpus, mark)
    write_others(corpus)
    native = (sound / "native.safetensors").read_bytes()
    for field in (b"metrics", b"objective"):  # of another type; no type checker runs in the child
        empty = b'\\"' + field + b'\\": {}'
        assert empty in native
        changed = native.replace(empty, empty.replace(b"{}", b"[]"))
        (corpus / f"{field.decode()}.safetensors").write_bytes(changed)
    files = {path.name for path in corpus.iterdir()}
    mutants = {name for name in files if name.startswith("mutant")}
    assert len(mutants) == MUTANTS * len([*sound.iterdir()])
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(corpus)], capture_output=True, text=True, timeout=600, check=False
    )
    assert child.returncode == 0, child.stdout[-500:] + child.stderr[-2000:]
    outcomes = {name: (kind, told) for name, kind, told in map(json.loads, child.stdout.splitlines())}
    assert outcomes.keys() == files
    assert not mark.exists()
    assert not {name: told for name, (kind, told) in outcomes.items() if kind == "CRASHED"}
    for name, (kind, told) in outcomes.items():
        if kind == "refused":
            assert name in told or "checkpoint" in told or "weights" in told, (name, told)
            assert "\n" not in told, (name, told)
        else:  # a flipped bit among the numbers is another number
            assert name.startswith("mutant"), name
    kinds = [kind for name, (kind, _) in outcomes.items() if name in mutants]
    assert kinds.count("refused") > len(kinds) / 3
    print(
        f"{len(files)} files, {len(mutants)} mutants: {kinds.count('refused')} refused, {kinds.count('loaded')} loaded"
    )


def test_the_sound_files_load(tmp_path):
    write_sound_files(tmp_path)
    for path in tmp_path.iterdir():
        assert load_encoder(path).encoder.layers()[0] == "backbone"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("system", r"asks for posix\.system, which is code and not weights"),
        ("exec", r"asks for \w+\.exec, which is code"),
    ],
)
def test_a_refusal_names_the_code_and_the_remedy(tmp_path, name, message):
    torch.save({**tiny(), "extra": payloads(tmp_path / "mark")[name]}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=message) as refused:
        load_encoder(tmp_path / "evil.pth")
    assert "torch.save(model.state_dict(), ...)" in str(refused.value)
    assert "no option changes that" in str(refused.value)


def test_harmless_settings_of_frameworks_load_without_the_frameworks(tmp_path):
    """Lightning's AttributeDict and omegaconf's DictConfig as such files have them, by modules that do not exist."""
    module = type(sys)("omegaconf.dictconfig")
    module.DictConfig = type("DictConfig", (dict,), {"__module__": "omegaconf.dictconfig"})
    sys.modules |= {"omegaconf": type(sys)("omegaconf"), "omegaconf.dictconfig": module}
    try:
        settings = module.DictConfig(lr=0.1, paths=[Path("/data")])
        settings.flags = {"readonly": True}
        method = module.DictConfig.fromkeys  # named by getattr, as MMEngine's files do
        content = {"state_dict": tiny(), "hyper_parameters": settings, "method": method}
        torch.save(content, tmp_path / "lightning.ckpt")
    finally:
        del sys.modules["omegaconf"], sys.modules["omegaconf.dictconfig"]
    assert load_encoder(tmp_path / "lightning.ckpt").encoder.architecture == "resnet9_0.0625x_cifar"
    assert "omegaconf" not in sys.modules


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"not a dictionary of weights; save model\.state_dict"):
        load_encoder(tmp_path / "module.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match="TorchScript archive, which holds code"):
        load_encoder(tmp_path / "script.pt")


def test_settings_and_classes_that_mean_nothing_are_read(tmp_path):
    state = {key: torch.nn.Buffer(value) for key, value in tiny().items()}
    torch.save(
        {"state_dict": state, "args": argparse.Namespace(lr=0.1, out=Path("runs"))}, tmp_path / "args.pth"
    )
    assert load_encoder(tmp_path / "args.pth").encoder.architecture == "resnet9_0.0625x_cifar"


def rewritten(path, change):
    """A torch archive with its pickle changed."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    torch.save({"a": torch.zeros(7, 11)}, tmp_path / "a.pth")
    rewritten(tmp_path / "a.pth", lambda data: data.replace(b"K\x07K\x0b\x86", b"K\xffK\x0b\x86"))
    with pytest.raises(CheckpointError, match=r"claims a tensor of size \(255, 11\) in a storage of 77"):
        load_encoder(tmp_path / "a.pth")
    torch.save({"a": torch.zeros(7, 11)}, tmp_path / "a.pth")
    rewritten(tmp_path / "a.pth", lambda data: data.replace(b"KM", b"K\xff"))
    with pytest.raises(CheckpointError, match="claims 1020 bytes for storage '0' and has 308"):
        load_encoder(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_both_ways_of_reading_give_the_same_tensors(tmp_path, zipped):
    """The tensors that are built from the description, beside a harmless name, and those that torch.load builds."""
    base = torch.arange(24.0).view(4, 6)
    kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    )
    tensors = {str(kind): torch.ones(3, dtype=kind) for kind in kinds}
    tensors |= {
        "view": base[1:3, ::2].t(),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 2),
        "whole": base,
    }
    tensors["parameter"] = torch.nn.Parameter(base[0])
    for name, more in (("plain", {}), ("beside", {"args": argparse.Namespace(lr=0.1)})):
        torch.save({"model": tensors, **more}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    plain, beside = (read_torch(tmp_path / name)["model"] for name in ("plain", "beside"))
    assert plain.keys() == beside.keys() == tensors.keys()
    for name, value in tensors.items():
        assert beside[name].dtype == value.dtype
        assert torch.equal(beside[name], value)
        assert torch.equal(plain[name], value)


def test_a_file_is_what_its_bytes_say(tmp_path):
    write_sound_files(tmp_path)
    for name, other in (
        ("bare.pth", "a.safetensors"),
        ("legacy.pth", "b.safetensors"),
        ("bare.safetensors", "c.pth"),
    ):
        shutil.copy(tmp_path / name, tmp_path / other)
        assert load_encoder(tmp_path / other).encoder.architecture == "resnet9_0.0625x_cifar"


def test_half_precision_is_widened(tmp_path):
    state = {key: value.half() if value.is_floating_point() else value for key, value in tiny().items()}
    torch.save(state, tmp_path / "half.pth")
    encoder = load_encoder(tmp_path / "half.pth").encoder
    assert encoder.backbone.conv1.weight.dtype == torch.float32
    assert torch.equal(encoder.backbone.conv1.weight, state["conv1.weight"].float())
