"""UPerNet (Xiao et al., 2018) with RankSeg: pyramid pooling, feature pyramid, pixel classifier."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from rankseg_jax import backbones
from rankseg_jax.decoders.auxiliary import auxiliary_embeddings
from rankseg_jax.decoders.pixel_classifier import PixelClassifier
from rankseg_jax.decoders.uper import UPerHead
from rankseg_jax.outputs import PixelOutput
from rankseg_jax.selector import Choice


class UPerNet(nn.Module):
    """Images → PixelOutput at stride 4.

    Attributes:
      num_classes: K.
      backbone: a module [B, H, W, 3] → {stride: features} for strides 4, 8, 16 and 32.
      channels: D, width of the decoder and of the pixel embeddings.
      dropout: in training, the probability that a channel of the embeddings is dropped.
      auxiliary: whether a small head on stride 16 gives `auxiliary_logits`, for a further loss.
      rankseg: the keys of `config.rankseg`, see configs/common.py; None is the baseline.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int
    backbone: nn.Module
    channels: int = 512
    dropout: float = 0.1
    auxiliary: bool = True
    rankseg: FrozenConfigDict | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, choice: Choice = Choice()) -> PixelOutput:
        """Takes normalized images [B · views, H, W, 3]; see `selector.Choice`."""
        drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)
        features = self.backbone(images, train=train)  # {stride: [B, h, w, D]}
        pixels, pyramid = UPerHead(self.channels, dtype=self.dtype, name='decoder')(
            features, train=train
        )
        # What the multi-label head sees.
        seen = pyramid if self.rankseg is None or self.rankseg.pyramid else features
        auxiliary = None
        if self.auxiliary:  # [B, h16, w16, 256]
            auxiliary = drop(auxiliary_embeddings(features, train=train, dtype=self.dtype))
        return PixelClassifier(self.num_classes, self.rankseg, self.dtype, name='classifier')(
            drop(pixels), seen, auxiliary, train=train, choice=choice
        )


def build(config: ConfigDict, num_classes: int) -> UPerNet:
    """The model that `config` (configs/common.py) describes, for K categories.

    Raises:
      ValueError: as `backbones.from_config`.
    """
    return UPerNet(
        num_classes=num_classes,
        backbone=backbones.from_config(config),
        channels=config.model.channels,
        dropout=config.model.dropout,
        auxiliary=config.model.auxiliary_weight > 0,
        rankseg=config.rankseg and FrozenConfigDict(config.rankseg),
        dtype=jnp.dtype(config.model.dtype),
    )
