"""MaskFormer (Cheng et al., NeurIPS 2021) with RankSeg: feature pyramid, DETR's decoder."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from rankseg_jax import backbones
from rankseg_jax.decoders.fpn import FeaturePyramid, TransformerEncoder
from rankseg_jax.decoders.pixel_decoder import check_channels
from rankseg_jax.decoders.query_decoder import DetrDecoder
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.selector import Choice


class MaskFormer(nn.Module):
    """Images → QueryOutput, masks at stride 4.

    The auxiliary predictions are those of all layers but the last.

    Attributes:
      backbone: a module [B, H, W, 3] → {stride: features} for strides 4, 8, 16 and 32.
      pixel_decoder: a FeaturePyramid.
      decoder: a DetrDecoder.
      encoder: a TransformerEncoder; pixel decoder and queries then see its output in place of the
        backbone's features of stride 32. None: no encoder.
    """

    backbone: nn.Module
    pixel_decoder: FeaturePyramid
    decoder: DetrDecoder
    encoder: TransformerEncoder | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, choice: Choice = Choice()) -> QueryOutput:
        """Takes normalized images [B · views, H, W, 3]; see `selector.Choice`."""
        features = self.backbone(images, train=train)  # {stride: [B, h, w, D]}
        if self.encoder is not None:
            features = features | {32: self.encoder(features[32], train=train)}
        maps, pixels = self.pixel_decoder(features, train=train)
        return self.decoder(features[32], maps, pixels, train=train, choice=choice)


def build(config: ConfigDict, num_classes: int) -> MaskFormer:
    """The model that `config` (configs/common.py) describes, for K categories.

    Raises:
      ValueError: as `backbones.from_config` and `check_channels`.
    """
    options, dtype = config.model, jnp.dtype(config.model.dtype)
    check_channels(options)
    encoder = None
    if options.encoder_layers:
        encoder = TransformerEncoder(
            channels=options.channels,
            num_layers=options.encoder_layers,
            num_heads=options.decoder_heads,
            mlp_dim=8 * options.channels,
            dropout=options.dropout,
            dtype=dtype,
        )
    return MaskFormer(
        backbone=backbones.from_config(config),
        pixel_decoder=FeaturePyramid(options.channels, dtype),
        decoder=DetrDecoder(
            num_classes=num_classes,
            num_queries=options.num_queries,
            channels=options.channels,
            num_layers=options.decoder_layers,
            num_heads=options.decoder_heads,
            mlp_dim=8 * options.channels,
            cosine=options.cosine,
            rankseg=config.rankseg and FrozenConfigDict(config.rankseg),
            dtype=dtype,
            dropout=options.dropout,
        ),
        encoder=encoder,
    )
