"""DeepLabV3 (Chen et al., 2017) with RankSeg: dilated ResNet, ASPP, pixel classifier."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from rankseg_jax import backbones
from rankseg_jax.decoders.aspp import ASPP
from rankseg_jax.decoders.auxiliary import auxiliary_embeddings
from rankseg_jax.decoders.pixel_classifier import PixelClassifier
from rankseg_jax.outputs import PixelOutput
from rankseg_jax.selector import Choice


class DeepLabV3(nn.Module):
    """Images → PixelOutput at the backbone's output stride.

    The multi-label head sees the backbone's features.

    Attributes:
      num_classes: K.
      backbone: a module [B, H, W, 3] → {stride: features}, with strides 16 and 32.
      channels: D, width of the ASPP and of the pixel embeddings.
      dilations: of the ASPP.
      dropout: in training, the probability that a channel of the embeddings is dropped.
      auxiliary: whether a small head on stride 16 gives `auxiliary_logits`, for a further loss.
      rankseg: the keys of `config.rankseg`, see configs/common.py; None is the baseline.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int
    backbone: nn.Module
    channels: int = 512
    dilations: tuple[int, ...] = (1, 12, 24, 36)
    dropout: float = 0.1
    auxiliary: bool = True
    rankseg: FrozenConfigDict | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, choice: Choice = Choice()) -> PixelOutput:
        """Takes normalized images [B · views, H, W, 3]; see `selector.Choice`."""
        drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)
        features = self.backbone(images, train=train)  # {stride: [B, h, w, D]}
        pixels = ASPP(self.channels, self.dilations, dtype=self.dtype, name='decoder')(
            features[32], train=train
        )  # [B, h, w, D]
        auxiliary = None
        if self.auxiliary:  # [B, h, w, 256]
            auxiliary = drop(auxiliary_embeddings(features, train=train, dtype=self.dtype))
        return PixelClassifier(self.num_classes, self.rankseg, self.dtype, name='classifier')(
            drop(pixels), features, auxiliary, train=train, choice=choice
        )


def build(config: ConfigDict, num_classes: int) -> DeepLabV3:
    """The model that `config` (configs/common.py) describes, for K categories.

    Raises:
      ValueError: as `backbones.from_config`; the backbone must be able to dilate its convolutions.
    """
    output_stride = config.model.output_stride
    rate = 96 // output_stride  # 12 at stride 8, 6 at stride 16: the same span of the image
    return DeepLabV3(
        num_classes=num_classes,
        backbone=backbones.from_config(config, output_stride=output_stride),
        channels=config.model.channels,
        dilations=(1, rate, 2 * rate, 3 * rate),
        dropout=config.model.dropout,
        auxiliary=config.model.auxiliary_weight > 0,
        rankseg=config.rankseg and FrozenConfigDict(config.rankseg),
        dtype=jnp.dtype(config.model.dtype),
    )
