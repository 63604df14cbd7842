"""Preprocessing equals the pipelines of timm, torchvision and transformers, whatever a picture's size and shape."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from lipcomp.checkpoints._preprocessing import from_timm
from lipcomp.checkpoints._processors import PROCESSORS, from_transformers
from lipcomp.data._preprocessing import Preprocessing

# Twenty of timm's, with every interpolation, crop mode and crop percentage that its configurations hold.
TIMM = [
    "resnet50.a1_in1k",
    "resnet50.tv_in1k",
    "resnet18.fb_swsl_ig1b_ft_in1k",
    "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_clip_224.openai",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch16_siglip_224.webli",
    "convnext_tiny.fb_in1k",
    "convnext_tiny.in12k_ft_in1k_384",
    "efficientnet_b0.ra_in1k",
    "tf_efficientnet_b3.ns_jft_in1k",
    "tf_efficientnetv2_s.in21k_ft_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "deit3_small_patch16_224.fb_in1k",
    "mobilenetv3_large_100.ra_in1k",
    "regnety_016.tv2_in1k",
    "inception_v3.tf_in1k",
    "mixer_b16_224.goog_in21k_ft_in1k",
    "nfnet_l0.ra2_in1k",
    "resnetv2_50x1_bit.goog_in21k_ft_in1k",
]
TORCHVISION = [
    "resnet50:IMAGENET1K_V1",
    "resnet50:IMAGENET1K_V2",
    "efficientnet_b0:IMAGENET1K_V1",
    "efficientnet_b3:IMAGENET1K_V1",
    "efficientnet_v2_s:IMAGENET1K_V1",
    "vit_b_16:IMAGENET1K_SWAG_E2E_V1",
    "swin_t:IMAGENET1K_V1",
    "swin_v2_t:IMAGENET1K_V1",
    "convnext_tiny:IMAGENET1K_V1",
    "inception_v3:IMAGENET1K_V1",
    "maxvit_t:IMAGENET1K_V1",
]
SIZES = [(500, 375), (375, 501), (90, 61), (224, 224)]


def pictures(mode="RGB"):
    """Smooth photographs with noise, of several sizes (width, height)."""
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height), 3)
        noisy = np.asarray(small, float) + rng.normal(0, 12, (height, width, 3))
        yield Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def of_timm(config):
    """The description of what timm's configuration says (timm.data.transforms_factory, in lipcomp's words)."""
    height, width = config.input_size[1:]
    pct, mode = config.crop_pct, config.crop_mode
    scaled = math.floor(height / pct), math.floor(width / pct)
    border = tuple(round(255 * m) for m in config.mean) if mode == "border" else None
    return Preprocessing(
        scaled[0] if mode == "center" else scaled,
        (height, width),
        config.interpolation,
        squash=mode == "squash",
        border=border,
    )


@pytest.mark.parametrize("name", TIMM)
def test_timms_own_evaluation(name):
    timm = pytest.importorskip("timm")
    from timm.data import create_transform

    config = timm.get_pretrained_cfg(name)
    for crop_mode in {config.crop_mode, "border"} if name == TIMM[0] else {config.crop_mode}:
        config.crop_mode = crop_mode
        theirs = create_transform(
            config.input_size,
            interpolation=config.interpolation,
            mean=(0.0,) * 3 if crop_mode != "border" else config.mean,
            std=(1.0,) * 3,
            crop_pct=config.crop_pct,
            crop_mode=crop_mode,
        )
        shift = torch.tensor(config.mean if crop_mode == "border" else (0.0,) * 3).view(3, 1, 1)
        for picture in pictures():
            assert (of_timm(config)(picture) - theirs(picture) - shift).abs().max() <= 1e-6, crop_mode


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_own_evaluation(name):
    import torchvision.models as models

    arch, weights = name.split(":")
    theirs = models.get_model_weights(arch)[weights].transforms()
    theirs.mean, theirs.std = [0.0] * 3, [1.0] * 3
    ours = Preprocessing(
        theirs.resize_size[0], (theirs.crop_size[0],) * 2, theirs.interpolation.value, theirs.antialias
    )
    for picture in pictures():
        assert (ours(picture) - theirs(picture)).abs().max() <= 1e-6


SIDES = {"height": 96, "width": 64}
WRITTEN = [  # processors as they are made, and as they write themselves
    ("ViT", {"size": SIDES, "resample": 3}),
    ("ViT", {"size": SIDES, "resample": 1}),
    ("ViT", {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}),
    ("ViT", {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}),
    ("ViT", {"do_normalize": False, "resample": 0}),
    ("ViT", {"do_normalize": False, "do_rescale": False}),
    ("DeiT", {"do_center_crop": False}),
    ("Bit", {"size": {"shortest_edge": 256}}),  # DINOv2's
    ("CLIP", {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}),
    ("CLIP", {"crop_size": {"height": 300, "width": 300}}),  # larger than the picture
    ("Siglip", {"size": {"height": 384, "width": 384}}),
    ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.95}),
    ("PoolFormer", {"size": {"height": 80, "width": 80}, "crop_pct": 0.7}),
    ("PoolFormer", {"size": {"height": 80, "width": 90}}),
    ("Levit", {"size": {"height": 230, "width": 250}}),
    ("EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("EfficientNet", {"rescale_offset": True, "include_top": False}),
    ("EfficientNet", {"include_top": False, "do_center_crop": True}),
    ("EfficientNet", {"do_normalize": False, "rescale_offset": True}),
    *((name, {}) for name in PROCESSORS),
]
LEFT_OUT = [  # configurations of older versions: numbers for sizes, and the class's own values for what is not there
    *((name, {"size": 144}) for name in PROCESSORS),
    *((name, {"do_center_crop": None, "crop_size": 100}) for name in ("ViT", "Beit", "CLIP", "DeiT")),
    ("Beit", {"size": 200, "do_center_crop": True, "crop_size": 100}),
    ("ViT", {"size": [80, 120], "image_mean": 0.4}),
    ("CLIP", {"do_center_crop": False, "size": {"height": 120, "width": 100}}),
    *((name, {"resample": 0, "size": {"shortest_edge": 33}}) for name in ("CLIP", "MobileNetV2", "ConvNext")),
    ("ConvNext", {"do_resize": False, "size": {"shortest_edge": 33}}),
]


def loaded(name, options):
    """transformers' processor of a configuration, and our reading of it."""
    transformers = pytest.importorskip("transformers")
    config = {"image_processor_type": f"{name}ImageProcessor", **options}
    theirs = getattr(transformers, f"{name}ImageProcessor").from_dict(dict(config))
    return theirs, from_transformers(config, "")


def check(theirs, ours, tolerance):
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in ours.normalisation)
    for picture in pictures():
        expected = theirs(picture, return_tensors="pt")["pixel_values"][0] * std + mean
        found = ours.pipeline(picture)
        if "any shape" in ours.origin:
            top, left = ((own - side) // 2 for own, side in zip(expected.shape[1:], ours.size, strict=True))
            expected = expected[:, top : top + ours.size[0], left : left + ours.size[1]]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= tolerance


@pytest.mark.parametrize(("name", "options"), WRITTEN)
def test_what_a_processor_writes(name, options):
    """Its own numbers to rounding; DINOv3's, which rounds later, to one level of 255."""
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, f"{name}ImageProcessor")(**options)
    ours = from_transformers(json.loads(theirs.to_json_string()), "")
    check(theirs, ours, 1.001 / 255 if "DINOv3" in name else 1e-6)


@pytest.mark.parametrize(("name", "options"), LEFT_OUT)
def test_what_is_left_out_is_the_classs_own(name, options):
    theirs, ours = loaded(name, options)
    check(theirs, ours, 1.001 / 255 if "DINOv3" in name else 1e-6)


def test_a_processor_of_images_of_any_shape_says_so():
    _, told = loaded("Siglip", {"size": 120})
    assert told.size == (120, 120)
    assert "of which the centre is taken" in told.origin


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "MobileViTImageProcessor"}, "type 'MobileViT', whose steps"),
        (
            {"image_processor_type": "ViTImageProcessorFast", "do_flip_channel_order": True},
            "do_flip_channel_order",
        ),
        ({"image_processor_type": "PerceiverImageProcessor"}, "type 'Perceiver', whose steps"),
        ({"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 9}}, "whose steps"),
        ({"feature_extractor_type": "VideoMAEFeatureExtractor"}, "'VideoMAE'"),
        ({"image_processor_type": ["ViT"], "size": 5}, "whose steps"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "asks for do_pad"),
        ({"image_processor_type": "ViTImageProcessor", "rescale_offset": True}, "asks for rescale_offset"),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 224}},
            "neither shortest_edge",
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 2, "longest_edge": 3}},
            "neither",
        ),
        ({"image_processor_type": "ViTImageProcessor", "do_center_crop": True}, "no crop_size"),
        ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 1.5}, "crop_pct 1.5"),
        *(
            (
                {"image_processor_type": f"{name}ImageProcessor", "do_center_crop": True, "crop_size": 9},
                "do_center",
            )
            for name in ("ConvNext", "Segformer")
        ),
        ({"image_processor_type": "DINOv3ViTImageProcessor", "resample": 3}, "resizes by bicubic without"),
        (
            {"size": 224, "image_mean": [0.5], "image_std": [0.5], "resample": 2},
            "names no image_processor_type",
        ),
        ({"image_mean": [0.5] * 3}, "names no image_processor_type"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [0.0] * 3}, "std= positive"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 9**9, "width": 3}},
            "between 1 and",
        ),
    ],
)
def test_a_step_that_is_not_known_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        from_transformers(config, "")


@pytest.mark.parametrize(
    "told",
    [
        *(
            {"input_size": (3, 160, 96), "crop_pct": 0.9, "interpolation": way}
            for way in ("bilinear", "bicubic")
        ),
        {"input_size": (3, 160, 96), "crop_mode": "squash"},
        {"input_size": (3, 64, 64), "crop_pct": 0, "interpolation": None},
        {"input_size": (3, 64, 64), "crop_pct": 2.0, "interpolation": "lanczos"},
        {"mean": (0.4,) * 3},
        {"std": (0.5,), "input_size": None},
    ],
)
def test_what_timm_makes_of_a_configuration_in_part(told):
    """Its own values for what is left out; a rectangle is covered bilinearly, whatever the configuration says."""
    from timm.data import create_transform, resolve_data_config

    theirs = create_transform(**resolve_data_config({}, pretrained_cfg=told), is_training=False)
    ours = from_timm(told, "")
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in ours.normalisation)
    for picture in pictures():
        assert (ours.pipeline(picture) - (theirs(picture) * std + mean)).abs().max() <= 1e-6


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_without_antialias_it_is_torchs_interpolation_of_tensors(mode):
    from torchvision.transforms.v2 import functional as V

    for picture in pictures():
        pixels = V.resize(V.pil_to_tensor(picture), [64], V.InterpolationMode(mode), antialias=False)
        expected = V.center_crop(pixels, [64, 64]).float() / 255
        assert torch.equal(Preprocessing(64, (64, 64), mode, antialias=False)(picture), expected)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_deep_greys_go_the_way_of_bytes(interpolation, antialias):
    ours = Preprocessing(64, (80, 60), interpolation, antialias)
    for picture in pictures("L"):
        deep = Image.fromarray(np.asarray(picture, np.float32) / 255)
        # bytes are rounded after rows and after columns
        assert (ours(deep) - ours(picture)).abs().max() <= 2 / 255


def test_a_border_of_a_grey_picture_has_the_mean_of_the_colour():
    ours = Preprocessing((8, 8), (8, 8), border=(30, 60, 90))
    for picture in (Image.new("L", (8, 4), 200), Image.fromarray(np.full((4, 8), 200 / 255, np.float32))):
        pixels = ours(picture)[0] * 255
        torch.testing.assert_close(pixels[:2], torch.full((2, 8), 60.0))
        torch.testing.assert_close(pixels[2:6], torch.full((4, 8), 200.0))


def test_a_border_is_laid_around_what_is_not_square():
    pixels = Preprocessing((4, 10), (6, 10), border=(30,))(Image.new("L", (10, 4), 200)) * 255
    assert pixels.shape == (1, 6, 10)
    torch.testing.assert_close(pixels[0, [0, 5]], torch.full((2, 10), 30.0))
    torch.testing.assert_close(pixels[0, 1:5], torch.full((4, 10), 200.0))


@pytest.mark.parametrize(
    ("resize", "options", "picture", "size"),
    [
        (256, {}, (480, 640), (256, 341)),
        (256, {}, (640, 480), (341, 256)),
        ((120, 200), {}, (480, 640), (150, 200)),  # covers both sides
        ((200, 120), {}, (640, 480), (200, 150)),
        ((120, 200), {"border": (0, 0, 0)}, (480, 640), (120, 160)),  # fits into both
        ((120, 200), {"squash": True}, (480, 640), (120, 200)),
        ((8, 8), {"border": (0, 0, 0)}, (480, 1), (8, 1)),
    ],
)
def test_the_size_before_the_crop(resize, options, picture, size):
    assert Preprocessing(resize, (8, 8), **options)._target(*picture) == size


def test_the_default_takes_the_centre_and_refuses_to_enlarge_unless_told():
    assert Preprocessing.default(224, 224).resize == 256
    assert Preprocessing.default(32, 32).resize == 32
    assert Preprocessing.default(224, 448).resize == (256, 512)
    assert Preprocessing.default(448, 224).resize == (512, 256)
    fitting = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    expected = torch.from_numpy(np.array(fitting)).permute(2, 0, 1) / 255
    assert torch.equal(Preprocessing.default(96, 96)(fitting), expected)
    with pytest.raises(ValueError, match=r"96 x 96, smaller than the 128 x 128.*enlarge=True"):
        Preprocessing.default(128, 128)(fitting)
    assert Preprocessing.default(128, 128, enlarge=True)(fitting).shape == (3, 128, 128)


def test_what_a_user_asks_for_overrides_the_recipe_and_is_printed():
    recipe = Preprocessing.default(224, 224)
    assert str(recipe) == (
        "shorter side to 256 (bilinear, antialias), centre crop 224 x 224, pictures of that size untouched, "
        "smaller ones refused"
    )
    squashed = recipe.overridden(resize=(224, 224), interpolation="bicubic")
    assert str(squashed) == "squashed to 224 x 224 (bicubic, antialias), centre crop 224 x 224"
    assert squashed(Image.new("RGB", (10, 500))).shape == (3, 224, 224)
    assert recipe.overridden(crop=(192, 192)).size == (192, 192)
    assert Preprocessing(**squashed.record()) == squashed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "cubic"}, "interpolation must be one of"),
        ({"interpolation": "lanczos", "antialias": False}, "has no form without antialias"),
        ({"resize": 0}, "positive sizes"),
        ({"crop": (224, 0)}, "positive sizes"),
        ({"resize": 224, "squash": True}, r"need resize=\(height, width\)"),
    ],
)
def test_impossible_recipes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**options)
