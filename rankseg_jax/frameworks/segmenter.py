"""Segmenter (Strudel et al., 2021) with RankSeg: a ViT, a mask transformer or linear decoder."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from rankseg_jax import backbones
from rankseg_jax.decoders.mask_transformer import MaskTransformer
from rankseg_jax.decoders.pixel_classifier import PixelClassifier
from rankseg_jax.outputs import PixelOutput
from rankseg_jax.selector import Choice


class Segmenter(nn.Module):
    """Images → PixelOutput at the stride of the backbone's patches.

    Attributes:
      backbone: a `backbones.vit.ViT`.
      decoder: a MaskTransformer, or a PixelClassifier as the linear decoder.
    """

    backbone: nn.Module
    decoder: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, choice: Choice = Choice()) -> PixelOutput:
        """Takes normalized images [B · views, H, W, 3]; see `selector.Choice`."""
        # {patch: [B, h, w, D]}, and with late classes 'classes': [B, K, D]
        features = dict(self.backbone(images, train=train))
        classes = features.pop('classes', None)
        (patches,) = features.values()
        if isinstance(self.decoder, PixelClassifier):
            return self.decoder(patches, features, train=train, choice=choice)
        return self.decoder(patches, classes, train=train, choice=choice)


def build(config: ConfigDict, num_classes: int) -> Segmenter:
    """The model that `config` (configs/common.py) describes, for K categories.

    Raises:
      ValueError: as `backbones.from_config`; unknown decoder, a width that its heads do not divide,
        or class embeddings of the backbone for a decoder of another width.
    """
    options, dtype = config.model, jnp.dtype(config.model.dtype)
    rankseg = config.rankseg and FrozenConfigDict(config.rankseg)
    late_classes = {'num_classes': num_classes} if options.late_classes else {}
    backbone = backbones.from_config(config, strides=None, **late_classes)
    if options.decoder == 'linear' and not options.late_classes:
        return Segmenter(backbone, PixelClassifier(num_classes, rankseg, dtype))
    if options.decoder != 'mask_transformer':
        raise ValueError(
            f"config.model.decoder = {options.decoder!r} must be 'mask_transformer', "
            "or 'linear' without late_classes"
        )
    if options.channels % options.decoder_heads:
        raise ValueError(
            f'config.model.channels = {options.channels} must be a multiple of '
            f'config.model.decoder_heads = {options.decoder_heads}'
        )
    if options.late_classes and backbone.width != options.channels:
        raise ValueError(
            f'config.model.late_classes needs config.model.channels = {backbone.width}, '
            f'the width of {options.backbone}, not {options.channels}'
        )
    decoder = MaskTransformer(
        num_classes=num_classes,
        channels=options.channels,
        num_layers=options.decoder_layers,
        num_heads=options.decoder_heads,
        mlp_dim=4 * options.channels,
        dropout=options.dropout,
        rankseg=rankseg,
        dtype=dtype,
    )
    return Segmenter(backbone, decoder)
