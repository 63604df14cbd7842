"""Every family's layout, made from torch's modules and the published key names: the output is the source's.

The names come from the families' own code and releases (MoCo, SimSiam, SwAV, DINO, Barlow Twins, VICReg, VISSL,
solo-learn, lightly, MMSelfSup, sthalles' BYOL and SimCLR, Separius' SimCLRv2, byol-convert, RobustBench).
"""

import argparse
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._formats import FORMATS


def mlp(*widths, norm=True, bias=False, last_norm=False, last_affine=True, activation=nn.ReLU):
    layers = []
    for number, (a, b) in enumerate(pairwise(widths)):
        last = number == len(widths) - 2
        layers.append(nn.Linear(a, b, bias=bias))
        if (norm and not last) or (last and last_norm):
            layers.append(nn.BatchNorm1d(b, affine=not last or last_affine))
        if not last:
            layers.append(activation())
    return nn.Sequential(*layers)


def under(prefix, module):
    """A module's state dict with every key behind a prefix."""
    return {prefix + key: value.clone() for key, value in module.state_dict().items()}


def sequential(resnet):
    return nn.Sequential(*list(resnet.children())[:-1])


def moco(resnet, shaken):
    head = shaken(mlp(512, 64, 16, norm=False, bias=True))
    state = under("module.encoder_q.", resnet) | under("module.encoder_q.fc.", head)
    state |= {
        "module." + key.replace("encoder_q", "encoder_k", 1)[7:]: value + 1 for key, value in state.items()
    }
    state |= {"module.queue": torch.zeros(16, 64), "module.queue_ptr": torch.zeros(1)}
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {}}}, head, None


def moco_v3(resnet, shaken):
    head = shaken(mlp(512, 64, 16, last_norm=True, last_affine=False), 1)
    predictor = shaken(mlp(16, 64, 16, last_norm=True, last_affine=False), 2)
    state = under("module.base_encoder.", resnet) | under("module.base_encoder.fc.", head)
    state |= under("module.momentum_encoder.", resnet) | under("module.predictor.", predictor)
    return {"state_dict": state, "scaler": {"scale": 1.0}}, head, predictor


def simsiam(resnet, shaken):
    head = shaken(mlp(512, 32, 32, 16, last_norm=True, last_affine=False), 1)
    predictor = shaken(
        nn.Sequential(nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 16)), 2
    )
    state = (
        under("module.encoder.", resnet)
        | under("module.encoder.fc.", head)
        | under("module.predictor.", predictor)
    )
    return {"state_dict": state}, head, predictor


def vissl(resnet, shaken):
    head = shaken(mlp(512, 64, 16, norm=False, bias=True))
    heads = {f"{i}.clf.0.{key}": getattr(head[2 * i], key) for i in (0, 1) for key in ("weight", "bias")}
    model = {
        "trunk": under("_feature_blocks.", resnet),
        "heads": {key: value.detach() for key, value in heads.items()},
    }
    return {"phase_idx": 3, "classy_state_dict": {"base_model": {"model": model, "meta": {}}}}, head, None


def swav(resnet, shaken):
    head = shaken(mlp(512, 64, 16, bias=True))
    state = under("module.", resnet) | under("module.projection_head.", head)
    return state | {"module.prototypes.weight": torch.zeros(30, 16)}, head, None


def dino(resnet, shaken):
    head = shaken(mlp(512, 64, 64, 16, norm=False, bias=True, activation=nn.GELU))
    last = {"head.last_layer.weight_g": torch.ones(9, 1), "head.last_layer.weight_v": torch.ones(9, 16)}
    teacher = under("backbone.", resnet) | under("head.mlp.", head) | last
    student = {f"module.{key}": value * 2 for key, value in teacher.items()}
    return (
        {"student": student, "teacher": teacher, "epoch": 1, "args": argparse.Namespace(arch="resnet18")},
        head,
        None,
    )


def barlow_twins(resnet, shaken):
    head = shaken(mlp(512, 64, 64, 16))
    state = under("module.backbone.", resnet) | under("module.projector.", head)
    return {"model": state | {"module.bn.running_mean": torch.zeros(16)}, "optimizer": {}}, head, None


def vicreg(resnet, shaken):
    head = shaken(mlp(512, 64, 64, 16, bias=True))
    return {"model": under("module.backbone.", resnet) | under("module.projector.", head)}, head, None


def solo_learn(resnet, shaken):
    head, predictor = shaken(mlp(512, 64, 16, bias=True), 1), shaken(mlp(16, 64, 16, bias=True), 2)
    state = under("momentum_backbone.", torchvision.models.resnet18(weights=None)) | under(
        "backbone.", resnet
    )
    state |= under("projector.", head) | under("momentum_projector.", mlp(512, 64, 16, bias=True))
    state |= under("predictor.", predictor) | under("classifier.", nn.Linear(512, 10))
    return (
        {"state_dict": state, "pytorch-lightning_version": "2.1", "hyper_parameters": {"lr": 0.1}},
        head,
        predictor,
    )


def solo_learn_dino(resnet, shaken):
    """It was read as DINO's own file, whose one backbone is the student."""
    head = shaken(nn.Sequential(nn.Linear(512, 64), nn.GELU(), nn.Linear(64, 16)), 1)
    state = under("momentum_backbone.", resnet) | under("momentum_head.mlp.", head)
    state |= under("backbone.", torchvision.models.resnet18()) | {"head.last_layer.weight": torch.ones(4, 16)}
    state |= {
        key.removeprefix("momentum_"): value + 1 for key, value in under("momentum_head.mlp.", head).items()
    }
    return {"state_dict": state | under("classifier.", nn.Linear(512, 10))}, head, None


def solo_learn_old(resnet, shaken):
    head = shaken(mlp(512, 64, 16, bias=True), 1)
    state = under("encoder.", resnet) | under("projector.", head) | under("classifier.", nn.Linear(512, 10))
    return {"state_dict": state, "global_step": 3}, head, None


def lightly(resnet, shaken):
    head = shaken(mlp(512, 64, 16, last_norm=True), 1)
    predictor = shaken(mlp(16, 64, 16), 2)
    state = under("backbone.", resnet) | under("projection_head.layers.", head)
    state |= under("prediction_head.layers.", predictor) | under(
        "teacher_backbone.", torchvision.models.resnet18()
    )
    return {"state_dict": state | under("online_classifier.linear.", nn.Linear(512, 10))}, head, predictor


def lightly_tutorial(resnet, shaken):
    head = shaken(mlp(512, 64, 16, bias=True), 1)
    state = under("backbone.", sequential(resnet)) | under("projection_head.layers.", head)
    return (
        {"state_dict": state | under("backbone_momentum.", sequential(torchvision.models.resnet18()))},
        head,
        None,
    )


def lightly_train(resnet, shaken):
    state = under("embedding_model.wrapped_model._features.", resnet)
    return (
        {
            "state_dict": state,
            "lightly_train": {
                "normalize_args": {"mean": [0.485, 0.456, 0.406], "std": (0.229, 0.224, 0.225)}
            },
        },
        None,
        None,
    )


def mmselfsup(resnet, shaken):
    head = shaken(mlp(512, 64, 16, norm=False, bias=True))
    return (
        {"state_dict": under("backbone.", resnet) | under("neck.mlp.", head), "meta": {"epoch": 1}},
        head,
        None,
    )


def byol_pytorch(resnet, shaken):
    head = shaken(mlp(512, 64, 16, bias=True))
    online = under("encoder.", sequential(resnet)) | under("projetion.net.", head)
    target = {key: value + 1 for key, value in online.items()}
    return {"online_network_state_dict": online, "target_network_state_dict": target}, head, None


def simclr_pytorch(resnet, shaken):
    head = shaken(mlp(512, 64, 16, norm=False, bias=True))
    return {"state_dict": under("backbone.", resnet) | under("backbone.fc.", head)}, head, None


def compiled(resnet, shaken):
    return under("module._orig_mod.", resnet), None, None


def bare(resnet, shaken):
    return under("", resnet) | under("fc.", nn.Linear(512, 1000)), None, None


def anybody(resnet, shaken):
    """A framework that nobody knows, the trained network beside its average."""
    state = under("learner.net.", resnet) | under("learner.ema.net.", torchvision.models.resnet18())
    return {"weights": state | under("learner.probe.", nn.Linear(512, 10)), "step": 7}, None, None


def moco_unwrapped(resnet, shaken):
    tree, head, _ = moco(resnet, shaken)
    return {key.removeprefix("module."): value for key, value in tree["state_dict"].items()}, head, None


def vissl_old(resnet, shaken):
    return {"model_state_dict": under("base_model._feature_blocks.", resnet)}, None, None


def robustbench(resnet, shaken):
    state = under("model.", resnet) | under("model.fc.", nn.Linear(512, 1000))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (
        {**state, "normalize.mean": mean.view(1, 3, 1, 1), "normalize.std": std.view(1, 3, 1, 1)},
        None,
        None,
    )


LAYOUTS = {
    "plain (a prefix of anybody's)": anybody,
    "moco (not distributed)": moco_unwrapped,
    "vissl (old)": vissl_old,
    "robustbench": robustbench,
    "moco": moco,
    "moco-v3": moco_v3,
    "simsiam": simsiam,
    "vissl": vissl,
    "swav": swav,
    "dino": dino,
    "barlow-twins": barlow_twins,
    "vicreg": vicreg,
    "solo-learn": solo_learn,
    "solo-learn (DINO)": solo_learn_dino,
    "solo-learn (old)": solo_learn_old,
    "lightly": lightly,
    "lightly (tutorial)": lightly_tutorial,
    "lightly-train": lightly_train,
    "mmselfsup": mmselfsup,
    "byol-pytorch": byol_pytorch,
    "simclr-pytorch": simclr_pytorch,
    "plain": bare,
    "plain (compiled, distributed)": compiled,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_output_is_the_sources(name, tmp_path, resnet18, shaken, images, normalised, close):
    tree, head, predictor = LAYOUTS[name](resnet18, shaken)
    torch.save(tree, tmp_path / "theirs.pth")
    checkpoint = load_encoder(tmp_path / "theirs.pth", image_size=64)
    assert checkpoint.format == name.split(" (")[0]
    assert checkpoint.encoder.architecture == "resnet18"
    assert checkpoint.image_shape == (3, 64, 64)
    with torch.no_grad():
        expected = resnet18(normalised(images))
        close(checkpoint.encoder.features(images), expected)
        layers = ["backbone"]
        for layer, part in (("projection", head), ("prediction", predictor)):
            if part is not None:
                expected = part(expected)
                close(checkpoint.encoder.embedding(images, layer), expected)
                layers.append(layer)
        close(checkpoint.encoder.embedding(images), expected)
    assert checkpoint.encoder.layers() == (*layers, "latent")

    # Every key of the file is used or ignored, once; every part has got all of its own.
    report, parts = checkpoint.report, [("backbone", resnet18), ("projector", head), ("predictor", predictor)]
    assert not report.used.keys() & report.ignored.keys()
    assert len(report.used.keys() | report.ignored.keys()) == leaves(tree)
    wanted = {f"{part}.{key}" for part, module in parts if module is not None for key in module.state_dict()}
    assert set(report.used.values()) == wanted
    assert not report.missing


def leaves(tree):
    if isinstance(tree, torch.Tensor):
        return 1
    return sum(map(leaves, tree.values())) if isinstance(tree, dict) else 0


def test_lightly_train_says_its_normalisation(tmp_path, resnet18, shaken):
    tree, _, _ = lightly_train(resnet18, shaken)
    tree["lightly_train"]["normalize_args"] = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    torch.save(tree, tmp_path / "last.ckpt")
    ready = load_encoder(tmp_path / "last.ckpt").preprocessing
    assert (ready.mean, ready.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert ready.origin == "normalize_args of LightlyTrain"


def test_the_other_branch_on_request(tmp_path, resnet18, shaken, images, normalised, close):
    tree, _, _ = moco(resnet18, shaken)
    torch.save(tree, tmp_path / "moco.pth")
    momentum = load_encoder(tmp_path / "moco.pth", branch="momentum", image_size=64).encoder
    assert torch.equal(momentum.backbone.conv1.weight, resnet18.conv1.weight + 1)
    tree, _, _ = dino(resnet18, shaken)
    torch.save(tree, tmp_path / "dino.pth")
    for branch, factor in ((None, 1), ("momentum", 1), ("online", 2)):
        found = load_encoder(tmp_path / "dino.pth", branch=branch).encoder
        assert torch.equal(found.backbone.conv1.weight, resnet18.conv1.weight * factor), branch
    torch.save(bare(resnet18, shaken)[0], tmp_path / "bare.pth")
    with pytest.raises(
        CheckpointError,
        match=r"branch 'momentum' is not in checkpoint .* which holds one network, at the top; leave",
    ):
        load_encoder(tmp_path / "bare.pth", branch="momentum")


def test_the_backbone_alone_on_request(tmp_path, resnet18, shaken, images, normalised, close):
    torch.save(simsiam(resnet18, shaken)[0], tmp_path / "simsiam.pth")
    checkpoint = load_encoder(tmp_path / "simsiam.pth", head="none", image_size=64)
    assert checkpoint.encoder.layers() == ("backbone", "latent")
    close(checkpoint.encoder.embedding(images), resnet18(normalised(images)))


def test_a_wrong_architecture_is_refused_with_the_first_shapes(tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "r18.pth")
    with pytest.raises(CheckpointError) as refused:
        load_encoder(tmp_path / "r18.pth", arch="resnet50")
    assert "layer1.0.conv1.weight is (64, 64, 3, 3) in the file, (64, 64, 1, 1) in resnet50" in str(
        refused.value
    )
    assert "more" in str(refused.value)
    with pytest.raises(CheckpointError, match=r"layer1\.2\.conv1\.weight is not in the file, resnet34 has"):
        load_encoder(tmp_path / "r18.pth", arch="resnet34")
    with pytest.raises(CheckpointError, match="did you mean"):
        load_encoder(tmp_path / "r18.pth", arch="resnet181")
    with pytest.raises(CheckpointError, match="is of no known library"):
        load_encoder(tmp_path / "r18.pth", arch="timm/hf_hub:someone/something")


def test_a_format_can_be_forced_and_is_refused_where_it_is_not(tmp_path, resnet18, shaken):
    torch.save(bare(resnet18, shaken)[0], tmp_path / "bare.pth")
    assert load_encoder(tmp_path / "bare.pth", format="torchvision").format == "plain"
    with pytest.raises(CheckpointError, match="is not of format 'moco'"):
        load_encoder(tmp_path / "bare.pth", format="moco")
    with pytest.raises(CheckpointError, match="did you mean 'simsiam'"):
        load_encoder(tmp_path / "bare.pth", format="simsiams")
    simclr = load_encoder(tmp_path / "bare.pth", format="simclr-converted")
    assert simclr.preprocessing.mean == (0.0,) * 3
    assert simclr.preprocessing.std == (1.0,) * 3


def test_the_same_row_is_not_found_twice():
    names = [row.name for row in FORMATS]
    assert len(set(names)) == len(names)
    assert FORMATS[-1].name == "plain"
