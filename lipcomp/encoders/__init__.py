"""Encoders: pixels in [0, 1] -> mean direction (and concentration)."""

from lipcomp.encoders.backbones import BACKBONES, register_backbone
from lipcomp.encoders.encoder import Encoder, EncoderSpec, Layer, build_encoder
from lipcomp.encoders.heads import ConcentrationHead, LatentDecoder, MLPHead, mean_direction
from lipcomp.encoders.preact import PreActResNet, WideResNet
from lipcomp.encoders.resnet import ResNet
from lipcomp.encoders.small import SmallCNN
from lipcomp.encoders.wrapped import Tap, WrappedEncoder, wrap
