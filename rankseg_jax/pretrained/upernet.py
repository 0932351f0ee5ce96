"""UPerNet's decoder under the names of mmseg and of Hugging Face `transformers`."""

from rankseg_jax.decoders.uper import UPerHead
from rankseg_jax.pretrained.torch_layers import conv_norm


def uper_head(state, norm: str) -> tuple[dict, dict]:
    """Parameters and statistics of `decoders.uper.UPerHead` over strides 4 to 32.

    Args:
      norm: how batch norms are called.
    """
    names = {f'pool{n}': f'psp_modules.{i}.1' for i, n in enumerate(UPerHead.pool_sizes)}
    names |= {'pool_fuse': 'bottleneck', 'fuse': 'fpn_bottleneck'}
    for i, stride in enumerate((4, 8, 16)):
        names |= {f'lateral{stride}': f'lateral_convs.{i}', f'pyramid{stride}': f'fpn_convs.{i}'}
    layers = {
        ours: conv_norm(state, f'{theirs}.conv', f'{theirs}.{norm}')
        for ours, theirs in names.items()
    }
    return (
        {name: layer[0] for name, layer in layers.items()},
        {name: layer[1] for name, layer in layers.items()},
    )
