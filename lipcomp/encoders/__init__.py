"""Encoders: pixels in [0, 1] -> mean direction (and concentration)."""

from lipcomp.encoders._backbones import BACKBONES, register_backbone
from lipcomp.encoders._encoder import Encoder, EncoderSpec, Layer, build_encoder
from lipcomp.encoders._heads import ConcentrationHead, LatentDecoder, MLPHead, mean_direction
from lipcomp.encoders._preact import PreActResNet, WideResNet
from lipcomp.encoders._resnet import ResNet
from lipcomp.encoders._small import SmallCNN
from lipcomp.encoders._wrapped import Tap, WrappedEncoder, wrap
