"""Segmenter (Strudel et al., 2021) with RankSeg: vision transformer, mask transformer or linear decoder."""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from rankseg_jax import backbones
from rankseg_jax.backbones import vit
from rankseg_jax.decoders.mask_transformer import MaskTransformer
from rankseg_jax.decoders.pixel_classifier import PixelClassifier, PixelOutput


class Segmenter(nn.Module):
    """Images -> PixelOutput at the stride of the backbone's patches.

    Attributes:
      backbone: a `backbones.vit.ViT`.
      decoder: a MaskTransformer, or a PixelClassifier for the linear one.
    """

    backbone: nn.Module
    decoder: nn.Module

    @nn.compact
    def __call__(self, images, *, train: bool, **choice) -> PixelOutput:
        """Normalised images [B, H, W, 3]; `choice`: what `PixelClassifier` takes by name."""
        features = dict(
            self.backbone(images, train=train)
        )  # {patch: [B, h, w, C]}, and perhaps 'classes' [B, K, C]
        classes = features.pop('classes', None)
        (patches,) = features.values()
        if isinstance(self.decoder, PixelClassifier):
            return self.decoder(patches, features, train=train, **choice)
        return self.decoder(patches, classes, train=train, **choice)


def build(config, num_classes: int) -> Segmenter:
    """The model that `config` (configs/common.py) describes, for K categories.

    Raises:
      ValueError: unknown backbone or decoder, or class embeddings of the backbone for a decoder of another width.
    """
    options, dtype = config.model, jnp.dtype(config.model.dtype)
    rankseg = config.rankseg and FrozenConfigDict(config.rankseg)
    backbone = backbones.build(
        options.backbone,
        dtype,
        family=vit,
        image_size=tuple(config.augment.crop_size),
        drop_path=options.drop_path,
        num_classes=num_classes if options.late_classes else 0,
    )
    if options.decoder == 'linear' and not options.late_classes:
        return Segmenter(backbone, PixelClassifier(num_classes, rankseg, dtype))
    if options.decoder != 'mask_transformer':
        raise ValueError(
            f"config.model.decoder = {options.decoder!r} must be 'mask_transformer', or 'linear' without late_classes"
        )
    if options.late_classes and backbone.width != options.channels:
        raise ValueError(
            f'config.model.late_classes needs config.model.channels = {backbone.width}, the width of '
            f'{options.backbone}, not {options.channels}'
        )
    return Segmenter(
        backbone,
        MaskTransformer(
            num_classes,
            options.channels,
            options.decoder_layers,
            options.decoder_heads,
            4 * options.channels,
            options.dropout,
            rankseg,
            dtype,
        ),
    )
