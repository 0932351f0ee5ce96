import logging

import jax
import numpy as np
import pytest
from absl import logging as absl_logging

from rankseg_jax import models, pretrained
from tests import tiny
from tests.helpers import random_variables


def segmenter_config(method='rankseg', num_classes=8, side=32):
    config = tiny.config('', model__framework='segmenter', model__backbone='vit_ti16', model__channels=64,
                         model__decoder_heads=1, augment__crop_size=(side, side))
    if method == 'baseline':
        config.rankseg = None
    else:
        config.model.decoder_layers = 3
        config.rankseg.update(head='first_block', temperature='layer_norm', pool=1)
    return config


def fresh(config, num_classes=8):
    images = np.zeros((1, *config.augment.crop_size, 3), np.float32)
    return {'batch_stats': {}} | random_variables(models.build(config, num_classes), images)


def released_state(num_classes, num_selected, method='rankseg', grid=2):
    """A random state dict with the names and shapes of the released Segmenter: ViT-Ti of 12 layers, decoder of width 64."""
    dim, head, rng = 192, 64, np.random.default_rng(0)
    shapes = {'backbone.cls_token': (1, 1, dim), 'backbone.pos_embed': (1, grid**2 + 1, dim),
              'backbone.patch_embed.projection.weight': (dim, 3, 16, 16), 'backbone.patch_embed.projection.bias': (dim,),
              'backbone.ln1.weight': (dim,), 'backbone.ln1.bias': (dim,)}
    for i in range(12):
        layer = f'backbone.layers.{i}'
        shapes |= {f'{layer}.ln{n}.{leaf}': (dim,) for n in (1, 2) for leaf in ('weight', 'bias')}
        shapes |= {f'{layer}.attn.attn.in_proj_weight': (3 * dim, dim), f'{layer}.attn.attn.in_proj_bias': (3 * dim,),
                   f'{layer}.attn.attn.out_proj.weight': (dim, dim), f'{layer}.attn.attn.out_proj.bias': (dim,),
                   f'{layer}.ffn.layers.0.0.weight': (4 * dim, dim), f'{layer}.ffn.layers.0.0.bias': (4 * dim,),
                   f'{layer}.ffn.layers.1.weight': (dim, 4 * dim), f'{layer}.ffn.layers.1.bias': (dim,)}
    decoder = {'cls_emb': (1, num_classes, head), 'proj_dec.weight': (head, dim), 'proj_dec.bias': (head,),
               'proj_patch': (head, head), 'proj_classes': (head, head)}
    for i in range(3 if method == 'rankseg' else 2):
        block = f'blocks.{i}'
        decoder |= {f'{block}.norm{n}.{leaf}': (head,) for n in (1, 2) for leaf in ('weight', 'bias')}
        decoder |= {f'{block}.attn.qkv.weight': (3 * head, head), f'{block}.attn.qkv.bias': (3 * head,),
                    f'{block}.attn.proj.weight': (head, head), f'{block}.attn.proj.bias': (head,),
                    f'{block}.mlp.fc1.weight': (4 * head, head), f'{block}.mlp.fc1.bias': (4 * head,),
                    f'{block}.mlp.fc2.weight': (head, 4 * head), f'{block}.mlp.fc2.bias': (head,)}
    norms = {'decoder_norm': head, 'mask_norm': num_classes}
    if method == 'rankseg':
        norms = {'decoder_norm': head, 'decoder_norm2': head, 'mask_norm': num_selected}
        decoder |= {'ml_fc.W': (1, num_classes, head), 'ml_fc.b': (1, num_classes)}
    decoder |= {f'{name}.{leaf}': (size,) for name, size in norms.items() for leaf in ('weight', 'bias')}
    shapes |= {f'decode_head.{name}': shape for name, shape in decoder.items()}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize('method', ['rankseg', 'baseline'])
def test_released_segmenter_fills_every_parameter(tmp_path, method):
    torch = pytest.importorskip('torch')
    state = released_state(8, 3, method)
    path = tmp_path / 'model.pth'
    torch.save({'meta': {'epoch': 1}, 'state_dict': {k: torch.tensor(v) for k, v in state.items()}}, path)
    variables = fresh(segmenter_config(method))
    loaded = pretrained.load(path, variables)
    ours, theirs = (sorted(float(np.abs(x).sum()) for x in jax.tree.leaves(tree)) for tree in (loaded['params'], state))
    np.testing.assert_allclose(sum(ours), sum(theirs), rtol=1e-5)  # nothing is lost and nothing is left as it was
    kernel = loaded['params']['decoder']['block1']['MultiHeadDotProductAttention_0']['key']['kernel']
    np.testing.assert_array_equal(kernel[:, 0], state['decode_head.blocks.1.attn.qkv.weight'][64:128].T)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)


def test_another_number_of_classes_starts_afresh_and_says_so(tmp_path):
    path = tmp_path / 'model.npz'
    state = released_state(20, 5)
    np.savez(path, **state)
    variables = fresh(segmenter_config())
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    absl_logging.get_absl_logger().addHandler(handler)
    try:
        loaded = pretrained.load(path, variables)
    finally:
        absl_logging.get_absl_logger().removeHandler(handler)
    assert any('decoder/class_embedding starts afresh, it has 20 rows and the model 8' in line for line in lines)
    decoder = loaded['params']['decoder']
    np.testing.assert_array_equal(decoder['class_embedding'], variables['params']['decoder']['class_embedding'])
    np.testing.assert_array_equal(decoder['project']['bias'], state['decode_head.proj_dec.bias'])


def test_position_codes_are_resampled_and_a_backbones_file_leaves_the_rest(tmp_path):
    path = tmp_path / 'backbone.safetensors'
    safetensors = pytest.importorskip('safetensors.numpy')
    state = {k.removeprefix('backbone.'): v for k, v in released_state(8, 3, grid=4).items() if k.startswith('backbone.')}
    safetensors.save_file(state, path)
    variables = fresh(segmenter_config())
    loaded = pretrained.load(path, variables)
    assert loaded['params']['backbone']['position'].shape == (2, 2, 192)
    np.testing.assert_array_equal(loaded['params']['backbone']['class_position'], state['pos_embed'][0, 0])
    jax.tree.map(np.testing.assert_array_equal, loaded['params']['decoder'], variables['params']['decoder'])


def test_another_model_lists_both_sides(tmp_path):
    state = {k: v for k, v in released_state(8, 3).items() if 'layers.11.' not in k}
    np.savez(tmp_path / 'model.npz', **state)
    with pytest.raises(ValueError, match=r'(?s)block11.*checkpoint has none, model \(192,\).*Choose the model'):
        pretrained.load(tmp_path / 'model.npz', fresh(segmenter_config()))


def test_files_that_are_no_weights_are_refused(tmp_path):
    (tmp_path / 'notes.txt').write_text('')
    np.savez(tmp_path / 'other.npz', a=np.zeros(3))
    variables = fresh(segmenter_config())
    with pytest.raises(FileNotFoundError, match='missing.npz is no file'):
        pretrained.load(tmp_path / 'missing.npz', variables)
    with pytest.raises(ValueError, match='notes.txt must be'):
        pretrained.load(tmp_path / 'notes.txt', variables)
    with pytest.raises(ValueError, match="not those of a ViT.*'a'"):
        pretrained.load(tmp_path / 'other.npz', variables)
