"""ResNet (He et al., 2016; v1.5: a bottleneck strides in its 3 x 3 convolution)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rankseg_jax.layers import ConvNorm


class ResNet(nn.Module):
    """Residual network whose stages of 1, 2, 4 and 8 times `width` end at strides 4, 8, 16 and 32.

    Attributes:
      stage_sizes: blocks of each of the four stages.
      bottleneck: whether blocks are bottlenecks, which end in 4 times the stage's width.
      width: channels of the first stage, before bottlenecks multiply them.
      stem: 'imagenet' (7 × 7 convolution and max pooling, each of stride 2), 'deep' (v1c: three
        3 × 3 convolutions instead of the 7 × 7 one) or 'small' (two 3 × 3 convolutions of stride 2,
        cheap on small images).
      output_stride: 8, 16 or 32. Later stages keep this stride and dilate their convolutions
        instead, as in DeepLab; the first block of such a stage still has the dilation of the stage
        before.
      frozen_norm: whether batch norms are frozen, see `ConvNorm`.
    """

    stage_sizes: Sequence[int]
    bottleneck: bool = False
    width: int = 64
    stem: str = 'imagenet'
    output_stride: int = 32
    frozen_norm: bool = False
    dtype: Any = jnp.float32
    strides = (4, 8, 16, 32)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        """Images [B, H, W, 3] → {s: features [B, ceil(H / s), ceil(W / s), D]}, s in `strides`.

        A dilated stage keeps its key s, but its map has the size of the output stride.

        Raises:
          ValueError: unknown `stem` or `output_stride`.
        """
        if self.output_stride not in (8, 16, 32):
            raise ValueError(
                f'config.model.output_stride = {self.output_stride} must be 8, 16 or 32'
            )

        def conv(name, x, features, *, kernel, stride=1, **options):
            return ConvNorm(
                features,
                kernel,
                stride,
                frozen=self.frozen_norm,
                dtype=self.dtype,
                name=name,
                **options,
            )(x, train=train)

        def block(name, x, *, width, stride, dilation):
            # The last scale starts at zero, so that every block starts as its shortcut.
            last = {'activation': None, 'scale_init': nn.initializers.zeros}
            if self.bottleneck:
                y = conv(f'{name}_conv1', x, width, kernel=1)
                y = conv(f'{name}_conv2', y, width, kernel=3, stride=stride, dilation=dilation)
                y = conv(f'{name}_conv3', y, 4 * width, kernel=1, **last)
            else:
                y = conv(f'{name}_conv1', x, width, kernel=3, stride=stride, dilation=dilation)
                y = conv(f'{name}_conv2', y, width, kernel=3, dilation=dilation, **last)
            if x.shape != y.shape:
                x = conv(
                    f'{name}_shortcut', x, y.shape[-1], kernel=1, stride=stride, activation=None
                )
            return nn.relu(x + y)

        x = stem_map(images, self.stem, self.width, conv=conv)  # [B, H/4, W/4, D]
        features = {}
        for i, size in enumerate(self.stage_sizes):
            nominal = self.strides[i]  # without dilation
            dilation = max(nominal // self.output_stride, 1)
            for j in range(size):
                stride = 2 if 0 < i and j == 0 and dilation == 1 else 1
                x = block(
                    f'stage{i + 1}_block{j + 1}',
                    x,
                    width=self.width * 2**i,
                    stride=stride,
                    dilation=max(dilation // 2, 1) if j == 0 else dilation,
                )
            features[nominal] = x  # [B, H/stride, W/stride, D]
        return features


def stem_map(
    images: jax.Array, kind: str, width: int, *, conv: Callable[..., jax.Array]
) -> jax.Array:
    """Images [B, H, W, 3] → [B, ceil(H / 4), ceil(W / 4), width], by a stem of `ResNet`.

    `conv(name, x, features, kernel=…, stride=…)` applies a layer.
    """
    if kind == 'small':
        x = conv('stem1', images, width // 2, kernel=3, stride=2)  # [B, H/2, W/2, D/2]
        return conv('stem2', x, width, kernel=3, stride=2)
    if kind == 'imagenet':
        x = conv('stem', images, width, kernel=7, stride=2)  # [B, H/2, W/2, D]
    elif kind == 'deep':
        x = conv('stem1', images, width // 2, kernel=3, stride=2)  # [B, H/2, W/2, D/2]
        x = conv('stem2', x, width // 2, kernel=3)
        x = conv('stem3', x, width, kernel=3)  # [B, H/2, W/2, D]
    else:
        raise ValueError(f"ResNet.stem = {kind!r} must be 'imagenet', 'deep' or 'small'")
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


VARIANTS = {
    'resnet18': partial(ResNet, (2, 2, 2, 2)),
    'resnet34': partial(ResNet, (3, 4, 6, 3)),
    'resnet50': partial(ResNet, (3, 4, 6, 3), bottleneck=True),
    'resnet101': partial(ResNet, (3, 4, 23, 3), bottleneck=True),
    'resnet50_v1c': partial(ResNet, (3, 4, 6, 3), bottleneck=True, stem='deep'),
    'resnet101_v1c': partial(ResNet, (3, 4, 23, 3), bottleneck=True, stem='deep'),
    'slim': partial(ResNet, (1, 1, 1, 1), width=16, stem='small'),
    'narrow': partial(ResNet, (2, 2, 2, 2), width=32, stem='small'),
}
