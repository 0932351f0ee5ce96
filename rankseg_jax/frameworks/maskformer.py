"""MaskFormer (Cheng et al., NeurIPS 2021) with RankSeg: Swin or ResNet, feature pyramid, DETR's decoder."""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from rankseg_jax.decoders.fpn import FeaturePyramid
from rankseg_jax.decoders.query_decoder import DetrDecoder, QueryOutput
from rankseg_jax.frameworks.mask2former import build_backbone


class MaskFormer(nn.Module):
    """Images -> QueryOutput, masks at stride 4; its auxiliary predictions are those of all layers but the last.

    Attributes:
      backbone: a module [B, H, W, 3] -> {stride: feature} for strides 4, 8, 16 and 32.
      pixel_decoder: a FeaturePyramid.
      decoder: a DetrDecoder.
    """

    backbone: nn.Module
    pixel_decoder: FeaturePyramid
    decoder: DetrDecoder

    @nn.compact
    def __call__(self, images, *, train: bool, **choice) -> QueryOutput:
        """Normalised images [B, H, W, 3]; `choice`: what `DetrDecoder` takes by name."""
        features = self.backbone(images, train=train)  # {stride: [B, h, w, C]}
        maps, pixels = self.pixel_decoder(features, train=train)
        return self.decoder(features[32], maps, pixels, train=train, **choice)


def build(config, num_classes: int) -> MaskFormer:
    """The model that `config` (configs/common.py) describes, for K categories.

    Raises:
      ValueError: as `mask2former.build_backbone`.
    """
    options, dtype = config.model, jnp.dtype(config.model.dtype)
    return MaskFormer(
        build_backbone(options),
        FeaturePyramid(options.channels, dtype),
        DetrDecoder(
            num_classes,
            options.num_queries,
            options.channels,
            options.decoder_layers,
            options.decoder_heads,
            8 * options.channels,
            options.cosine,
            config.rankseg and FrozenConfigDict(config.rankseg),
            dtype,
            options.dropout,
        ),
    )
