"""Public weights to start a run from. `config.model.pretrained` is one of

- a Mask2Former, MaskFormer, EoMT, VidEoMT, UPerNet or BeitForSemanticSegmentation in Hugging
  Face's format: a folder, or a name on the hub such as facebook/mask2former-swin-tiny-ade-semantic;
- a run of this library: its workdir, of which the newest checkpoint is read, or what --mode=publish
  made of it: a folder, or a name on the hub;
- DINOv2 or DINOv3 in Hugging Face's format, likewise;
- a file with a backbone: original JAX vision transformers (`.npz`); ViTs (DINOv2 and DINOv3 among
  them) and ResNets of timm, torchvision or mmseg, Swins and BEiTs of timm, mmseg or Hugging Face,
  an EfficientNet-Lite0 of timm (`.safetensors`, or `.pth` where PyTorch is installed); of a whole
  mmseg model only the backbone is read, with the neck of a BEiT;
- efficientnet_lite0: ImageNet weights of that backbone, which an installed package holds. They
  expect `data.mean` and `data.std` of (127.5, 127.5, 127.5);
- a file with a whole model: the paper's released Segmenter (`.pth`), or an EoMT of its authors
  (`.bin`).

In Python, `load_hf` returns a Hugging Face model unchanged.
"""

import operator
import re
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from rankseg_jax import checkpoint, sharding, storage
from rankseg_jax.backbones.vit import resize_codes
from rankseg_jax.layers import resize
from rankseg_jax.pretrained import (
    beit,
    classes,
    efficientnet_lite,
    eomt,
    hf,
    hub,
    packages,
    released,
    resnet,
    swin,
    vit,
)
from rankseg_jax.pretrained.files import float32, read
from rankseg_jax.pretrained.hf import load_hf  # noqa: F401
from rankseg_jax.pretrained.torch_layers import part

# Parts of a model that a file may lack: those that RankSeg adds, and the neck of a BEiT.
OPTIONAL = (re.compile(r'/(decoder|classifier)/(head|rank)/'), re.compile(r'/backbone/neck'))
POSITION_BIAS = re.compile(r'/backbone/position_bias\d+/table$')
RANK_LAYER = re.compile(r'/rank/temperature/.+$')
QUERY_BIAS = 'params/decoder/classes/bias'  # of classes, not there if logits are cosines
MASK_PROBABILITY = 'batch_stats/mask_probability'  # of an EoMT, not there in a VidEoMT


def convert(arrays: dict[str, np.ndarray], base: str = '') -> dict:
    """Converts arrays that are named as in another project.

    Of an mmsegmentation model only the backbone is converted, with the neck of a BEiT, save for a
    released Segmenter.

    Args:
      base: see `load`.

    Returns:
      Variables {'params'[, 'batch_stats']} of a 'backbone' or of a whole model.

    Raises:
      ValueError: the names belong to no known project, or the weights are differences and there is
        no `base`.
    """
    if 'Transformer/posembed_input/pos_embedding' in arrays:
        return {'params': {'backbone': vit.from_augreg(arrays)}}
    arrays = part(arrays, 'module.') or arrays  # saved while training on several devices
    if 'decode_head.proj_patch' in arrays:
        return {'params': released.segmenter(arrays)}
    if 'network.attn_mask_probs' in arrays:
        return complete(eomt.from_authors(arrays), base)
    neck = {key: value for key, value in arrays.items() if key.startswith('neck.')}
    arrays = part(arrays, 'backbone.') or arrays
    tables = any(key.endswith('relative_position_bias_table') for key in arrays)
    if tables and any(key.endswith('cls_token') for key in arrays):
        variables = beit.from_torch(arrays | neck)
        return {collection: {'backbone': tree} for collection, tree in variables.items()}
    if any(re.search(r'(^|\.)(cls|class)_token$', key) for key in arrays):
        return {'params': {'backbone': vit.from_torch(arrays)}}
    if tables:
        return {'params': {'backbone': swin.from_torch(arrays)}}
    if 'layer1.0.conv1.weight' in arrays:
        variables = resnet.from_timm(arrays)
    elif arrays.keys() & {'conv_stem.weight', '_conv_stem.weight'}:
        variables = efficientnet_lite.from_torch(arrays)
    else:
        raise ValueError(
            'config.model.pretrained: the names are not those of a ViT, a Swin, a BEiT, a ResNet, '
            f'an EfficientNet-Lite0 or a released Segmenter, but {sorted(arrays)[:5]} …'
        )
    return {collection: {'backbone': tree} for collection, tree in variables.items()}


def complete(variables: dict, base: str) -> dict:
    """Variables of an EoMT, to whose backbone that of `base` is added if it is a difference.

    Raises:
      ValueError: it is one, and there is no `base`, or one of other parameters.
      FileNotFoundError, ImportError, OSError: as `read_variables`.
    """
    params = variables['params']
    if not eomt.is_difference(params['backbone']):
        return variables
    if not base:
        raise ValueError(
            'the weights of this EoMT are differences from those of a DINOv3: to add the two, run '
            '--mode=convert --config=… --input=<this file> --config.model.pretrained=<the DINOv3>'
        )
    whole = read_variables(base)['params'].get('backbone', {})
    if jax.tree.map(np.shape, whole) != jax.tree.map(np.shape, params['backbone']):
        raise ValueError(
            f'config.model.pretrained = {base} has other parameters than the DINOv3 that this EoMT '
            'was trained from: choose that of its size'
        )
    summed = jax.tree.map(np.add, params['backbone'], whole)
    return variables | {'params': params | {'backbone': summed}}


def locate(source: str | Path) -> Path:
    """The file or folder of any source that `config.model.pretrained` accepts.

    Raises:
      ImportError, OSError: as `hf.locate` and `packages.locate`.
    """
    if storage.is_remote(source):
        place = storage.path(source)
        return place if (place / 'checkpoints').is_dir() else storage.copied(place)
    if str(source) in packages.PACKAGES and not Path(source).exists():
        return packages.locate(str(source))
    return hf.locate(source)


def read_variables(source: str | Path, base: str = '') -> dict:
    """Reads weights from any source that `config.model.pretrained` accepts.

    From a run it reads the newest checkpoint, with averaged parameters if there are any.

    Args:
      source: see above.
      base: see `load`.

    Returns:
      Variables {'params'[, 'batch_stats']} of a 'backbone' or of a whole model.

    Raises:
      FileNotFoundError, ImportError, OSError, ValueError: as `locate`, `hf.read_folder`, `read`
        and `convert`.
    """
    path = locate(source)
    if (path / 'checkpoints').is_dir():
        model = float32(checkpoint.read_model(path))
        return {'params': model.get('ema', model['params']), 'batch_stats': model['batch_stats']}
    if (path / 'config.json').is_file():
        return hub.read_variables(path)
    return convert(read(path), base)


def read_class_names(source: str | Path) -> Sequence[str]:
    """The categories of a run, or of a Hugging Face model; empty if `source` does not tell them.

    Raises:
      FileNotFoundError, ImportError, OSError, ValueError: as `locate` and `hub.read_run`.
    """
    path = locate(source)
    if (path / 'checkpoints').is_dir():
        manager = checkpoint.open_checkpoints(path)
        return checkpoint.newest_whole(manager, checkpoint.read_run)[1]['class_names']
    if run := hub.read_run(path):
        return run['class_names']
    return hf.class_names(path)


def load(
    source: str | Path, variables: dict, base: str = '', class_names: Sequence[str] = ()
) -> dict:
    """Replaces a model's variables by those of `source` (see `read_variables`).

    Position codes and biases are resampled to the model's grid, a ViT's kernels to its patches.
    In class layers for other categories, each category takes what was learned under its name, see
    `classes.places`. Initial values are kept where there is no such name, in layers for another
    number of ranks or of categories without names (all this is printed), in the parts of the model
    that are missing from a backbone's file, and in RankSeg's parts and a BEiT's neck if the file
    has none. Queries that are classified by cosines (`config.model.cosine`) take weights for
    products, save their bias, and the reverse.

    Args:
      source: of the weights.
      variables: of the model.
      base: the source of a backbone from which those of `source` may be differences, as those of
        EoMTs on DINOv3 are.
      class_names: the model's; empty: unknown.

    Raises:
      ValueError: any other difference in names or shapes; both sides are listed.
      FileNotFoundError, ImportError, OSError: as `read_variables`.
    """
    found = traverse_util.flatten_dict(read_variables(source, base), sep='/')
    model = traverse_util.flatten_dict(
        {key: variables[key] for key in ('params', 'batch_stats')}, sep='/'
    )
    parts = {key.split('/')[1] for key in found}
    expected = {key: value for key, value in model.items() if key.split('/')[1] in parts}
    for optional in OPTIONAL:
        if not any(optional.search(key) for key in found):
            expected = {key: value for key, value in expected.items() if not optional.search(key)}
    layers = [key for key in expected if key in found and classes.CLASS_LAYER.search(key)]
    learned = read_class_names(source) if layers and class_names else ()
    pairs = classes.places(learned, class_names)
    if pairs is not None:
        for key in layers:
            found[key] = classes.carry(
                key, found[key], expected, pairs=pairs, num_learned=len(learned)
            )
        sharding.print_once(
            f'{source}: {len(pairs)} of the {len(class_names)} categories are known there; class '
            'layers of the others keep their initial values'
        )
    if MASK_PROBABILITY not in expected:
        found.pop(MASK_PROBABILITY, None)
    if QUERY_BIAS not in expected:
        found.pop(QUERY_BIAS, None)
    elif any(key.startswith('params/decoder/classes') for key in found):
        found.setdefault(QUERY_BIAS, expected[QUERY_BIAS])
    for key, value in expected.items():
        if key in found and found[key].shape != value.shape:
            other_axes = sum(map(operator.ne, found[key].shape, value.shape))
            if key.endswith('backbone/position'):
                antialias = 'params/backbone/class_position' not in expected
                found[key] = np.asarray(resize_codes(found[key], value.shape[:2], antialias))
            elif (
                key.endswith('backbone/patches/kernel') and found[key].shape[2:] == value.shape[2:]
            ):
                found[key] = vit.resize_kernel(found[key], value.shape[0])
            elif POSITION_BIAS.search(key):
                found[key] = np.asarray(resize(found[key], value.shape[:2]))
            elif other_axes == 1 and (classes.CLASS_LAYER.search(key) or RANK_LAYER.search(key)):
                sharding.print_once(
                    f'{source}: {key} keeps its initial value; its shape is {found[key].shape} '
                    f'here and {value.shape} in the model'
                )
                found[key] = value
    checkpoint.check_same(
        found,
        expected,
        where=f'config.model.pretrained = {source}',
        advice='Choose the model that the weights belong to.',
    )
    loaded = {'batch_stats': {}} | traverse_util.unflatten_dict(model | found, sep='/')
    return loaded | ({'ema': loaded['params']} if 'ema' in variables else {})
