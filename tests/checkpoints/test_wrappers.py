"""Wrappers anywhere in a key, several networks in a file, numbers beside the weights."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lipcomp.checkpoints import load_encoder, save_checkpoint
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._heads import build_head
from lipcomp.checkpoints._names import without_wrappers
from lipcomp.checkpoints._native import Metadata
from lipcomp.checkpoints._own import load_own
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.encoders._resnet import ResNet


def inserted(state, part, depth):
    def name(key):
        parts = key.split(".")
        return ".".join([*parts[:depth], part, *parts[depth:]])

    return {name(key): value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}},
        lambda state: {"best_acc1": torch.tensor(70.0), "epoch": 3, "state_dict": state},
        lambda state: {"model": inserted(state, "_orig_mod", 1)},
        lambda state: {
            "model": inserted(inserted(state, "_checkpoint_wrapped_module", 1), "_fsdp_wrapped_module", 0)
        },
        lambda state: {"state_dict": {f"model.net.{k}": v for k, v in state.items()}, "acc": torch.zeros(1)},
        lambda state: {"ema": {"module": {f"0.{k}": v + 1 for k, v in state.items()}}, "net": state},
    ],
    ids=["ddp", "averaged", "loose", "compiled", "fsdp", "lightning", "shadow"],
)
@pytest.mark.parametrize("arch", [None, "resnet18"])
def test_wrappers_and_loose_numbers_hide_nothing(wrap, arch, tmp_path, resnet18):
    torch.save(wrap(resnet18.state_dict()), tmp_path / "wrapped.pth")
    encoder = load_encoder(tmp_path / "wrapped.pth", arch=arch, image_size=64).encoder
    assert all(
        torch.equal(value, resnet18.state_dict()[name])
        for name, value in encoder.backbone.state_dict().items()
    )


def test_formats_and_heads_survive_a_wrapper(tmp_path, shaken, resnet18):
    head = shaken(nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 8)))
    state = {f"encoder_q.{key}": value for key, value in resnet18.state_dict().items()}
    state |= {f"encoder_q.fc.{key}": value for key, value in head.state_dict().items()}
    torch.save({"state_dict": inserted(state, "_orig_mod", 1)}, tmp_path / "moco.pth")
    checkpoint = load_encoder(tmp_path / "moco.pth")
    assert checkpoint.format == "moco"
    assert checkpoint.encoder.layers() == ("backbone", "projection", "latent")
    assert (
        "latent: the output of the projector, relu between its layers as moco has it"
        in checkpoint.report.notes
    )


def test_names_that_would_fall_together_are_kept():
    assert without_wrappers(["a.module.b", "a.b", "module.c"]) == {
        "a.module.b": "a.module.b",
        "a.b": "a.b",
        "c": "module.c",
    }


@pytest.fixture
def resnet9():
    return ResNet(9, "cifar", 1 / 16)


def two(resnet18, first, second):
    state = resnet18.state_dict()
    return {f"{first}{k}": v for k, v in state.items()} | {f"{second}{k}": v + 1 for k, v in state.items()}


@pytest.mark.parametrize("order", [1, -1])
def test_which_network_was_taken_does_not_hang_on_the_order_of_keys(order, tmp_path, resnet9):
    state = dict([*two(resnet9, "student.", "teacher.").items()][::order])
    torch.save(state, tmp_path / "both.pth")
    checkpoint = load_encoder(tmp_path / "both.pth", branch="online")
    assert torch.equal(checkpoint.encoder.backbone.conv1.weight, resnet9.conv1.weight)
    assert checkpoint.subject()["weights"] == "student"
    other = load_encoder(tmp_path / "both.pth", branch="teacher")
    assert torch.equal(other.encoder.backbone.conv1.weight, resnet9.conv1.weight + 1)
    default = load_encoder(tmp_path / "both.pth")
    assert default.report.notes[0].startswith("took teacher (momentum); the file also holds student")


@pytest.mark.parametrize(
    ("trained", "beside"), [("current_model_state", "averaging_state"), ("ema_state_dict", "meta")]
)
def test_an_average_at_the_usual_place_is_known_as_one(trained, beside, tmp_path, resnet9):
    """Lightning's WeightAveraging and MMEngine's EMAHook; MMEngine's average was called the trained network."""
    state = {f"backbone.{key}": value for key, value in resnet9.state_dict().items()}
    state |= {"head.weight": torch.zeros(5, 32)}
    plus = {f"module.{key}": value + 1 for key, value in state.items()}
    torch.save({"state_dict": state, trained: plus, beside: {}}, tmp_path / "average.pth")
    for branch, more in ((None, 0), ("momentum", 0), ("online", 1), (trained, 1)):
        checkpoint = load_encoder(tmp_path / "average.pth", branch=branch)
        assert torch.equal(checkpoint.encoder.backbone.conv1.weight, resnet9.conv1.weight + more)
        assert checkpoint.branch == ("online" if more else "momentum")
        assert checkpoint.report.notes[0].startswith("took ")


def test_a_network_that_a_format_does_not_know_is_named(tmp_path, resnet18):
    state = two(resnet18, "backbone.", "target_backbone.") | {"projector.0.weight": torch.ones(4, 512)}
    torch.save(state, tmp_path / "own.pth")
    note = 'the file also holds target_backbone, which format="plain" and branch= choose'
    assert note in load_encoder(tmp_path / "own.pth").report.notes
    other = load_encoder(tmp_path / "own.pth", format="plain", branch="target_backbone").encoder
    assert torch.equal(other.backbone.conv1.weight, resnet18.conv1.weight + 1)


def test_a_teacher_is_one_wherever_the_word_stands(tmp_path, resnet18):
    torch.save(two(resnet18, "student.backbone.", "net.teacher.module.backbone."), tmp_path / "both.pth")
    note = load_encoder(tmp_path / "both.pth").report.notes[0]
    assert note.startswith("took net.teacher.backbone (momentum); the file also holds student.backbone")


@pytest.mark.parametrize("outer", ["", "model."])
def test_a_network_around_a_copy_of_itself_is_seen(outer, tmp_path, shaken):
    """Read off the index, the copy was taken without a word."""
    state = {f"{outer}{k}": v for k, v in torchvision.models.squeezenet1_1().state_dict().items()}
    both = {key: value + 1 for key, value in state.items()}
    both |= {f"{outer}old.{key.removeprefix(outer)}": value for key, value in state.items()}
    torch.save(both, tmp_path / "net.pth")
    names = ("model", "model.old") if outer else ("the top", "old")
    with pytest.raises(
        CheckpointError, match=f"ambiguous: .* the networks {names[0]} or {names[1]}; pass branch="
    ):
        load_encoder(tmp_path / "net.pth")
    found = load_encoder(tmp_path / "net.pth", branch=names[0]).encoder.state_dict()
    assert found["backbone.features.0.weight"].equal(both[f"{outer}features.0.weight"])


def test_two_networks_of_equal_right_are_ambiguous(tmp_path, resnet18):
    torch.save(two(resnet18, "left.", "right."), tmp_path / "both.pth")
    with pytest.raises(
        CheckpointError, match=r"ambiguous: .* holds the networks left or right; pass branch="
    ):
        load_encoder(tmp_path / "both.pth")
    found = load_encoder(tmp_path / "both.pth", branch="right")
    assert torch.equal(found.encoder.backbone.conv1.weight, resnet18.conv1.weight + 1)
    torch.save(two(resnet18, "", "module."), tmp_path / "nested.pth")
    with pytest.raises(CheckpointError, match=r"the networks the top or module; pass branch="):
        load_encoder(tmp_path / "nested.pth", arch="resnet18")
    for branch, shift in (("the top", 0), ("module", 1)):
        found = load_encoder(tmp_path / "nested.pth", arch="resnet18", branch=branch)
        assert torch.equal(found.encoder.backbone.conv1.weight, resnet18.conv1.weight + shift)
    for mean, message in (
        ((0.5, 0.5), r"nested.pth': mean needs 1 or 3"),
        ((124.0,), "divide mean and std by 255"),
    ):
        with pytest.raises(ValueError, match=message):
            load_encoder(tmp_path / "nested.pth", arch="resnet18", branch="module", mean=mean, std=(0.2,))


@pytest.mark.parametrize(
    ("prefix", "beside", "shape"),
    [
        ("backbone.", "classifier.0.weight", (8, 32, 3, 3)),  # torchvision's FCN
        ("backbone.", "decode_head.conv_seg.weight", (8, 32, 1, 1)),  # MMSegmentation
        ("backbone.", "neck.fpn_convs.0.conv.weight", (8, 8, 3, 3)),  # MMDetection
        ("backbone.0.body.", "input_proj.weight", (8, 32, 1, 1)),  # DETR, dilated as DC5
        ("backbone.body.", "rpn.head.conv.weight", None),  # torchvision's detectors are all alike
        ("backbone.body.", "head.classification_head.conv.0.weight", None),
        ("backbone.", "neck.mlp2.0.weight", None),  # DenseCL's projector
        ("backbone.", "momentum_backbone.conv1.weight", None),
    ],
)
def test_strides_beside_a_head_over_maps_are_not_guessed(prefix, beside, shape, tmp_path):
    weights = ResNet(9, "imagenet", 1 / 16, 3).state_dict()
    state = {f"{prefix}{key}": value for key, value in weights.items()}
    torch.save({**state, beside: torch.zeros(shape or (8, 32, 1, 1))}, tmp_path / "a.pth")
    if shape is None:
        assert load_encoder(tmp_path / "a.pth").encoder.architecture == "resnet9_0.0625x"
        return
    with pytest.raises(CheckpointError, match=f"ambiguous.*{beside}.*pass arch='resnet9_0.0625x'"):
        load_encoder(tmp_path / "a.pth")
    assert load_encoder(tmp_path / "a.pth", arch="resnet9_0.0625x").encoder.architecture == "resnet9_0.0625x"


def test_a_dilated_mobilenet_is_not_taken_for_the_usual_one(tmp_path):
    """segmentation_models_pytorch's DeepLab, whose MobileNet was read without its dilations."""
    network = torchvision.models.mobilenet_v2().features.state_dict()
    state = {f"encoder.features.{key}": value for key, value in network.items()}
    torch.save({**state, "decoder.aspp.convs.0.0.weight": torch.zeros(8, 8, 3, 3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"ambiguous.*decoder\..*pass arch='torchvision/mobilenet_v2'"):
        load_encoder(tmp_path / "a.pth")


@pytest.mark.parametrize("order", [1, -1])
def test_a_factory_says_which_of_several_places_it_took(order, tmp_path, shaken):
    network = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 8)))
    state = network.state_dict()
    both = {f"student.{k}": v for k, v in state.items()} | {f"teacher.{k}": v + 1 for k, v in state.items()}
    torch.save(dict([*both.items()][::order]), tmp_path / "both.pth")
    report = load_own(network, tmp_path / "both.pth", branch="student", image_size=(8,)).report
    assert set(report.used) == {key for key in both if key.startswith("student.")}
    report = load_own(network, tmp_path / "both.pth", image_size=(8,)).report
    assert report.notes[0].startswith("took teacher (momentum); the file also holds student")
    plain = {f"a.{k}": v for k, v in state.items()} | {f"b.{k}": v + 1 for k, v in state.items()}
    torch.save(plain, tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"ambiguous: .* a or b; pass branch="):
        load_own(network, tmp_path / "plain.pth")


@pytest.mark.parametrize("order", [1, -1])
def test_lightlys_dino_evaluates_its_teacher(order, tmp_path, resnet9, shaken):
    """In lightly's benchmark the teacher is called backbone, and the student student_backbone."""
    state = two(resnet9, "student_backbone.", "backbone.")
    head = shaken(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8)))
    for name in ("student_projection_head", "projection_head"):
        state |= {f"{name}.layers.{key}": value for key, value in head.state_dict().items()}
        state[f"{name}.last_layer.weight_v"] = torch.ones(3, 8)
    torch.save({"state_dict": dict([*state.items()][::order])}, tmp_path / "dino.ckpt")
    for branch, shift in ((None, 1), ("momentum", 1), ("online", 0)):
        checkpoint = load_encoder(tmp_path / "dino.ckpt", branch=branch)
        assert torch.equal(checkpoint.encoder.backbone.conv1.weight, resnet9.conv1.weight + shift), branch
    assert (
        "took the momentum network; the file also holds the online one: branch='online'"
        in load_encoder(tmp_path / "dino.ckpt").report.notes
    )


def test_i_jepas_branches(tmp_path, shaken):
    timm = pytest.importorskip("timm")
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=128,
        depth=2,
        num_heads=2,
        num_classes=0,
        global_pool="avg",
        class_token=False,
        fc_norm=False,
    )
    state = shaken(network).state_dict()
    wrapped = {f"module.{key}": value for key, value in state.items()}
    other = {key: value + 1 for key, value in wrapped.items()}
    torch.save({"encoder": wrapped, "target_encoder": other, "epoch": 3}, tmp_path / "jepa.pth")
    given = {"mean": (0.5,), "std": (0.5,)}
    for branch, shift in ((None, 1), ("momentum", 1), ("online", 0), ("encoder", 0)):
        encoder = load_encoder(tmp_path / "jepa.pth", branch=branch, **given).encoder
        assert torch.equal(encoder.backbone.norm.weight, state["norm.weight"] + shift), branch


def test_the_online_network_of_byol_is_the_usual_one(tmp_path, resnet18):
    """As byol-pytorch names it; its target has the name of I-JEPA's, which is evaluated."""
    state = resnet18.state_dict()
    both = {f"online_encoder.net.{key}": value for key, value in state.items()}
    both |= {
        f"net.{key}": value for key, value in state.items()
    }  # the same module: ambiguous with itself before
    both |= {f"target_encoder.net.{key}": value + 1 for key, value in state.items()}
    torch.save(both, tmp_path / "byol.pt")
    for branch, shift in ((None, 0), ("net", 0), ("online_encoder.net", 0), ("momentum", 1)):
        encoder = load_encoder(tmp_path / "byol.pt", branch=branch).encoder
        assert torch.equal(encoder.backbone.conv1.weight, state["conv1.weight"] + shift), branch


def test_networks_that_differ_in_one_weight_stay_ambiguous(tmp_path, resnet9):
    state = two(resnet9, "a.", "b.")
    same = {key: state[f"a.{key[2:]}"] if key.startswith("b.") else value for key, value in state.items()}
    torch.save(same, tmp_path / "twice.pth")
    assert any("also holds b" in note for note in load_encoder(tmp_path / "twice.pth").report.notes)
    torch.save({**same, "b.bn1.bias": same["b.bn1.bias"] + 1}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"ambiguous: .* a or b; pass branch="):
        load_encoder(tmp_path / "two.pth")


def test_composers_files_and_their_averages(tmp_path, resnet9):
    """As mosaicml 0.32 writes them: every file was refused for a version number, and averages were not seen."""
    state = resnet9.state_dict()
    trained = {f"module.{key}": value for key, value in state.items()}
    average = {f"module.{key}": value + 1 for key, value in state.items()}
    moved = {key: value for key, value in average.items() if "running" in key or "batches" in key}
    ema = {"named_parameters_dict": {k: v for k, v in average.items() if k not in moved}}
    ema["named_buffers_dict"] = moved
    tree = {"model": trained, "algorithms": [("EMA", {"ema_model": ema})], "metadata": [torch.__version__]}
    torch.save({"state": tree, "rng": []}, tmp_path / "composer.pt")
    for branch, shift in ((None, 0), ("momentum", 1)):
        checkpoint = load_encoder(tmp_path / "composer.pt", branch=branch)
        assert torch.equal(checkpoint.encoder.backbone.conv1.weight, state["conv1.weight"] + shift)
        assert torch.equal(checkpoint.encoder.backbone.bn1.running_var, state["bn1.running_var"] + shift)
        assert "also holds state." in checkpoint.report.notes[0]


def test_options_on_our_own_checkpoints_are_refused(tmp_path):
    spec = EncoderSpec("small_cnn", (1, 28, 28), projector=(8, 4))
    save_checkpoint(tmp_path / "native.safetensors", build_encoder(spec), metadata=Metadata())
    for option in (
        {"branch": "online"},
        {"mean": (0.5,)},
        {"head": "none"},
        {"arch": "resnet18"},
        {"image_size": 32},
    ):
        with pytest.raises(
            CheckpointError, match=r"is lipcomp's own and says this itself; leave [a-z_]+= out"
        ):
            load_encoder(tmp_path / "native.safetensors", **option)


def test_a_head_that_begins_late_is_ambiguous(tmp_path, shaken, resnet18):
    head = shaken(nn.Sequential(nn.ReLU(), nn.Linear(512, 8)))
    state = {f"encoder_q.{key}": value for key, value in resnet18.state_dict().items()}
    state |= {f"encoder_q.fc.{key}": value for key, value in head.state_dict().items()}
    torch.save(state, tmp_path / "late.pth")
    with pytest.raises(
        CheckpointError, match=r"ambiguous: the projection head begins at number 1.*head=.none"
    ):
        load_encoder(tmp_path / "late.pth")
    checkpoint = load_encoder(tmp_path / "late.pth", head="none")
    assert 'latent: the backbone\'s features, as asked (head="none")' in checkpoint.report.notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"2.weight": torch.ones(8, 64, dtype=torch.int8)}, r"2\.weight holds int8 codes"),
        ({"2.weight": torch.full((8, 64), float("nan"))}, r"2\.weight holds NaN"),
        (
            {"1.bias": torch.ones(64), "1.running_mean": torch.zeros(64), "1.running_var": torch.ones(64)},
            "no weight",
        ),
    ],
)
def test_numbers_of_a_head_are_looked_at_too(change, message, tmp_path, resnet18):
    head = {f"projector.{name}": v for name, v in {"0.weight": torch.ones(64, 512), **change}.items()}
    torch.save({f"backbone.{k}": v for k, v in resnet18.state_dict().items()} | head, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tmp_path / "bad.pth")


def test_of_two_numbers_without_weights_one_is_no_activation(shaken):
    """DINO's head with dropout: the GELU was applied twice."""
    head = shaken(nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Dropout(), nn.Linear(5, 4)))
    features = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(build_head(head.state_dict(), 6, "head", "gelu")(features), head(features))


def test_what_an_optimiser_keeps_is_no_network(tmp_path):
    state, path = ResNet(9, "cifar", 1 / 16).state_dict(), tmp_path / "run.pth"
    moments = {name: torch.randn_like(value.float()) for name, value in state.items()}
    kept = {f"model.{k}": v for k, v in state.items()} | {f"exp_avg.{k}": v for k, v in moments.items()}
    for tree in ({"model": state, "exp_avg": moments, "grads": moments}, kept):
        torch.save(tree, path)
        found = load_encoder(path)
        assert torch.equal(found.encoder.backbone.conv1.weight, state["conv1.weight"])
        assert not any("also holds" in note for note in found.report.notes)
    for tree in ({"exp_avg": moments}, {"state": {0: {"sum": torch.ones(3, 3)}}, "param_groups": []}):
        torch.save(tree, path)
        with pytest.raises(CheckpointError, match="holds the state of an optimiser and no weights"):
            load_encoder(path)


def test_changes_by_lora_are_not_left_out(tmp_path):
    beside = {"layer1.0.conv1.lora_A.default.weight": torch.ones(4, 64)}
    torch.save({"model": ResNet(9, "cifar", 1 / 16).state_dict(), "adapter": beside}, tmp_path / "lora.pth")
    with pytest.raises(CheckpointError, match=r"by LoRA .*merge_and_unload"):
        load_encoder(tmp_path / "lora.pth")


def test_lists_hold_networks_and_averages(tmp_path):
    """They were left out without a word, or said to be pickled modules."""
    networks = [ResNet(9, "cifar", 1 / 16).state_dict() for _ in range(2)]
    average = {"decay": 0.9, "shadow_params": [value * 2 for value in networks[0].values()]}
    path = tmp_path / "lists.pth"
    numbered = dict(enumerate(networks))
    for tree, label in (
        ({"folds": networks}, "folds.1"),
        (networks, "1"),
        (numbered, "1"),  # of which typed code said that it is damaged
        (("a", networks[1], 3), None),
    ):
        torch.save(tree, path)
        if label:
            with pytest.raises(CheckpointError, match=rf"ambiguous: .* or {label}; pass branch="):
                load_encoder(path)
        found = load_encoder(path, branch=label)
        assert torch.equal(found.encoder.backbone.conv1.weight, networks[1]["conv1.weight"])
    torch.save({"model": networks[0], "ema": average}, path)
    report = load_encoder(path).report
    assert any("average without names (ema.shadow_params.0" in note for note in report.notes)
    assert "ema.shadow_params.0" in report.ignored
    torch.save(average, path)
    with pytest.raises(CheckpointError, match="copy it into the network"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to(torch.complex64), "holds complex numbers"),
        (lambda value: torch.full_like(value, float("nan")), "holds NaN or infinite"),
        (lambda value: (value * 10).to(torch.int8), "holds int8 codes"),
        (lambda value: value.to(torch.float8_e4m3fn), "float8"),
    ],
)
def test_numbers_that_are_no_weights_are_refused(change, message, tmp_path, resnet18):
    state = {k: v.clone() for k, v in resnet18.state_dict().items()}
    state["layer1.0.conv1.weight"] = change(state["layer1.0.conv1.weight"])
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tmp_path / "bad.pth")
    if not state["layer1.0.conv1.weight"].is_complex():
        save_file(state, tmp_path / "bad.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_encoder(tmp_path / "bad.safetensors")
    state = resnet18.state_dict()
    torch.save(
        {**state, "bn1.running_mean": state["bn1.running_mean"].to(torch.int8)}, tmp_path / "codes.pth"
    )
    with pytest.raises(CheckpointError, match=r"bn1\.running_mean holds int8 codes"):
        load_encoder(tmp_path / "codes.pth")
    state["bn1.running_var"] = -state["bn1.running_var"]
    torch.save(state, tmp_path / "negative.pth")
    with pytest.raises(CheckpointError, match=r"bn1\.running_var holds negative variances"):
        load_encoder(tmp_path / "negative.pth")
