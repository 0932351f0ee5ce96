"""ResNet (He et al., 2016; v1.5: a bottleneck strides in its 3 x 3 convolution)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from rankseg_jax.layers import ConvNorm


class ResNet(nn.Module):
    """Residual network whose stages of 1, 2, 4 and 8 times `width` end at strides 4, 8, 16 and 32.

    `stem` is 'imagenet' (7 x 7 convolution and max pooling, each of stride 2), 'deep' (v1c: three 3 x 3 convolutions instead of
    the one of 7 x 7) or 'small' (two 3 x 3 convolutions of stride 2, cheap on small images). Stages beyond `output_stride`
    (8, 16 or 32) keep that stride and dilate their convolutions instead, as DeepLab's; the first block of such a stage still has
    the dilation of the stage before. Normalisation, and what `frozen_norm` freezes of it, is explained at `ConvNorm`.
    """

    stage_sizes: Sequence[int]
    bottleneck: bool = False
    width: int = 64
    stem: str = 'imagenet'
    output_stride: int = 32
    frozen_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, *, train: bool):
        """Images [B, H, W, 3] -> {s: features [B, ceil(H / s), ceil(W / s), C]} for s = 4, 8, 16 and 32.

        Dilated stages keep the name s, but have the output stride's size.
        """

        def conv(name, x, features, kernel, stride=1, **options):
            return ConvNorm(
                features,
                kernel,
                stride,
                frozen=self.frozen_norm,
                dtype=self.dtype,
                name=name,
                **options,
            )(x, train=train)

        def block(name, x, width, stride, dilation):
            """The last scale starts at zero, so that every block starts as its shortcut."""
            last = {'relu': False, 'scale_init': nn.initializers.zeros}
            if self.bottleneck:
                y = conv(f'{name}_conv1', x, width, 1)
                y = conv(f'{name}_conv2', y, width, 3, stride, dilation=dilation)
                y = conv(f'{name}_conv3', y, 4 * width, 1, **last)
            else:
                y = conv(f'{name}_conv1', x, width, 3, stride, dilation=dilation)
                y = conv(f'{name}_conv2', y, width, 3, dilation=dilation, **last)
            if x.shape != y.shape:
                x = conv(f'{name}_shortcut', x, y.shape[-1], 1, stride, relu=False)
            return nn.relu(x + y)

        if self.stem == 'imagenet':
            x = conv('stem', images, self.width, 7, 2)  # [B, H/2, W/2, C]
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # [B, H/4, W/4, C]
        elif self.stem == 'deep':
            x = conv('stem1', images, self.width // 2, 3, 2)  # [B, H/2, W/2, C/2]
            x = conv('stem2', x, self.width // 2, 3)
            x = conv('stem3', x, self.width, 3)  # [B, H/2, W/2, C]
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # [B, H/4, W/4, C]
        elif self.stem == 'small':
            x = conv('stem1', images, self.width // 2, 3, 2)  # [B, H/2, W/2, C/2]
            x = conv('stem2', x, self.width, 3, 2)  # [B, H/4, W/4, C]
        else:
            raise ValueError(f"ResNet.stem is {self.stem!r}; use 'imagenet', 'deep' or 'small'.")
        if self.output_stride not in (8, 16, 32):
            raise ValueError(
                f'config.model.output_stride = {self.output_stride} must be 8, 16 or 32'
            )

        features = {}
        for i, size in enumerate(self.stage_sizes):
            nominal = 4 * 2**i
            dilation = max(nominal // self.output_stride, 1)
            for j in range(size):
                stride = 2 if 0 < i and j == 0 and dilation == 1 else 1
                inner = max(dilation // 2, 1) if j == 0 else dilation
                x = block(f'stage{i + 1}_block{j + 1}', x, self.width * 2**i, stride, inner)
            features[nominal] = x  # [B, H/stride, W/stride, C]
        return features


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
