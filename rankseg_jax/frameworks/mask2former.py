"""Mask2Former (Cheng et al., 2022) with RankSeg: Swin or ResNet, deformable pixel decoder, masked-attention queries."""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from rankseg_jax import backbones
from rankseg_jax.backbones import resnet, swin
from rankseg_jax.decoders.pixel_decoder import PixelDecoder
from rankseg_jax.decoders.query_decoder import QueryDecoder, QueryOutput


class Mask2Former(nn.Module):
    """Images -> QueryOutput, masks at stride 4.

    Attributes:
      backbone: a module [B, H, W, 3] -> {stride: feature} for strides 4, 8, 16 and 32.
      pixel_decoder: a PixelDecoder.
      decoder: a QueryDecoder.
    """

    backbone: nn.Module
    pixel_decoder: PixelDecoder
    decoder: QueryDecoder

    @nn.compact
    def __call__(self, images, *, train: bool, **choice) -> QueryOutput:
        """Normalised images [B, H, W, 3]; `choice`: what `QueryDecoder` takes by name."""
        features = self.backbone(images, train=train)  # {stride: [B, h, w, C]}
        maps, pixels = self.pixel_decoder(features, train=train)
        return self.decoder(maps, pixels, train=train, **choice)


def build(config, num_classes: int) -> Mask2Former:
    """The model that `config` (configs/common.py) describes, for K categories.

    Raises:
      ValueError: as `build_backbone`.
    """
    options, dtype = config.model, jnp.dtype(config.model.dtype)
    return Mask2Former(
        build_backbone(options),
        PixelDecoder(
            options.channels,
            options.pixel_layers,
            options.decoder_heads,
            4 * options.channels,
            dtype,
        ),
        QueryDecoder(
            num_classes,
            options.num_queries,
            options.channels,
            options.decoder_layers,
            options.decoder_heads,
            8 * options.channels,
            options.cosine,
            config.rankseg and FrozenConfigDict(config.rankseg),
            dtype,
        ),
    )


def build_backbone(options) -> nn.Module:
    """The Swin or ResNet that `options`, `config.model`, names for queries of `options.channels`.

    Raises:
      ValueError: unknown backbone, or a width that group norms or heads do not divide.
    """
    if options.channels % 32 or options.channels % options.decoder_heads:
        raise ValueError(
            f'config.model.channels = {options.channels} must be a multiple of 32 and of '
            f'config.model.decoder_heads = {options.decoder_heads}'
        )
    dtype = jnp.dtype(options.dtype)
    if options.backbone.startswith('swin'):
        return backbones.build(
            options.backbone, dtype, family=swin, drop_path=options.drop_path, remat=options.remat
        )
    return backbones.build(options.backbone, dtype, family=resnet, frozen_norm=options.frozen_norm)
