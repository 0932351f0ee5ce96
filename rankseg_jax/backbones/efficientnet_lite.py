"""EfficientNet-Lite0: inverted bottlenecks without squeeze-excitation, for small devices.

Of EfficientNet (Tan and Le, 2019), in TensorFlow's `tpu/models/official/efficientnet/lite`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from rankseg_jax.layers import ConvNorm


class Stage(NamedTuple):
    """Inverted bottlenecks of one width.

    Attributes:
      depth: number of blocks.
      kernel: side of the depthwise kernels.
      stride: of the first block; 1 of the others.
      expansion: the width inside a block as a multiple of its input's.
      width: channels that the blocks end in.
    """

    depth: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class EfficientNetLite(nn.Module):
    """Images of any size → features of strides 4, 8, 16 and 32.

    Public weights expect pixels in -1..1: `data.mean` and `data.std` of 127.5.

    Attributes:
      stages: after a stem of stride 2. The last stage of each stride gives the features.
      stem_width: channels of the stem.
      output_stride: 8, 16 or 32. Later stages keep this stride and dilate their depthwise
        convolutions instead; the first block of such a stage still has the dilation of the stage
        before.
      drop_path: in training, a branch of block i of n is left out for an image with probability
        drop_path · i / n, where it has a shortcut; 0.2 as published.
      frozen_norm: whether batch norms are frozen, see `ConvNorm`.
    """

    stages: tuple[Stage, ...] = STAGES
    stem_width: int = 32
    output_stride: int = 32
    drop_path: float = 0.0
    frozen_norm: bool = False
    dtype: Any = jnp.float32
    strides = (4, 8, 16, 32)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        """Images [B, H, W, 3] → {s: features [B, ceil(H / s), ceil(W / s), D]}, s in `strides`.

        A dilated stage keeps its key s, but its map has the size of the output stride.

        Raises:
          ValueError: unknown `output_stride`.
        """
        if self.output_stride not in (8, 16, 32):
            raise ValueError(
                f'config.model.output_stride = {self.output_stride} must be 8, 16 or 32'
            )

        def conv(name, x, features, *, kernel=1, activation=nn.relu6, **options):
            return ConvNorm(
                features,
                kernel,
                same=True,
                activation=activation,
                frozen=self.frozen_norm,
                epsilon=1e-3,
                dtype=self.dtype,
                name=name,
                **options,
            )(x, train=train)

        def block(name, x, stage, *, stride, dilation, drop_path):
            y, inner = x, stage.expansion * x.shape[-1]
            if stage.expansion > 1:
                y = conv(f'{name}_expand', y, inner)
            y = conv(
                f'{name}_depthwise',
                y,
                inner,
                kernel=stage.kernel,
                stride=stride,
                dilation=dilation,
                groups=inner,
            )
            y = conv(f'{name}_project', y, stage.width, activation=None)
            if x.shape != y.shape:
                return y
            drop = nn.Dropout(drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)
            return x + drop(y)

        x = conv('stem', images, self.stem_width, kernel=3, stride=2)  # [B, H/2, W/2, D]
        features, nominal, number = {}, 2, 0  # stride without dilation, number of blocks so far
        total = sum(stage.depth for stage in self.stages)
        for i, stage in enumerate(self.stages):
            before, nominal = nominal, nominal * stage.stride
            for j in range(stage.depth):
                first = stage.stride > 1 and j == 0
                x = block(
                    f'stage{i + 1}_block{j + 1}',
                    x,
                    stage,
                    stride=stage.stride if first and nominal <= self.output_stride else 1,
                    dilation=max((before if first else nominal) // self.output_stride, 1),
                    drop_path=self.drop_path * number / total,
                )
                number += 1
            features[nominal] = x  # [B, H/stride, W/stride, D]
        return {stride: features[stride] for stride in self.strides}


VARIANTS = {'efficientnet_lite0': partial(EfficientNetLite)}
