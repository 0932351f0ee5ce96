"""Mask2Former (Cheng et al., 2022) with RankSeg: deformable attention, masked-attention queries."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from rankseg_jax import backbones
from rankseg_jax.decoders.pixel_decoder import PixelDecoder, check_channels
from rankseg_jax.decoders.query_decoder import QueryDecoder
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.selector import Choice


class Mask2Former(nn.Module):
    """Images → QueryOutput, masks at stride 4.

    Attributes:
      backbone: a module [B, H, W, 3] → {stride: features} for strides 4, 8, 16 and 32.
      pixel_decoder: a PixelDecoder.
      decoder: a QueryDecoder.
    """

    backbone: nn.Module
    pixel_decoder: PixelDecoder
    decoder: QueryDecoder

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, choice: Choice = Choice()) -> QueryOutput:
        """Takes normalized images [B · views, H, W, 3]; see `selector.Choice`."""
        features = self.backbone(images, train=train)  # {stride: [B, h, w, D]}
        maps, pixels = self.pixel_decoder(features, train=train)
        return self.decoder(maps, pixels, train=train, choice=choice)


def build(config: ConfigDict, num_classes: int) -> Mask2Former:
    """The model that `config` (configs/common.py) describes, for K categories.

    Raises:
      ValueError: as `backbones.from_config` and `check_channels`.
    """
    options, dtype = config.model, jnp.dtype(config.model.dtype)
    check_channels(options)
    return Mask2Former(
        backbone=backbones.from_config(config),
        pixel_decoder=PixelDecoder(
            channels=options.channels,
            num_layers=options.pixel_layers,
            num_heads=options.decoder_heads,
            mlp_dim=4 * options.channels,
            dtype=dtype,
        ),
        decoder=QueryDecoder(
            num_classes=num_classes,
            num_queries=options.num_queries,
            channels=options.channels,
            num_layers=options.decoder_layers,
            num_heads=options.decoder_heads,
            mlp_dim=8 * options.channels,
            cosine=options.cosine,
            rankseg=config.rankseg and FrozenConfigDict(config.rankseg),
            dtype=dtype,
        ),
    )
