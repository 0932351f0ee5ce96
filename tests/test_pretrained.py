import fnmatch
import functools
import json
import operator
import re
import shutil
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rankseg_jax import checkpoint, models, optimizers, pretrained
from rankseg_jax.pretrained import classes, hf
from rankseg_jax.pretrained.torch_layers import part
from rankseg_jax.selector import Choice
from tests import tiny
from tests.helpers import numpy_state, random_variables


def segmenter_config(method='rankseg', num_classes=8, side=32):
    config = tiny.config(
        '',
        model__framework='segmenter',
        model__backbone='vit_ti16',
        model__channels=64,
        model__decoder_heads=1,
        augment__crop_size=(side, side),
    )
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
    """Random weights with the released Segmenter's names: a ViT-Ti, a decoder of width 64."""
    dim, head, rng = 192, 64, np.random.default_rng(0)
    shapes = {
        'backbone.cls_token': (1, 1, dim),
        'backbone.pos_embed': (1, grid**2 + 1, dim),
        'backbone.patch_embed.projection.weight': (dim, 3, 16, 16),
        'backbone.patch_embed.projection.bias': (dim,),
        'backbone.ln1.weight': (dim,),
        'backbone.ln1.bias': (dim,),
    }
    for i in range(12):
        layer = f'backbone.layers.{i}'
        shapes |= {f'{layer}.ln{n}.{leaf}': (dim,) for n in (1, 2) for leaf in ('weight', 'bias')}
        shapes |= {
            f'{layer}.attn.attn.in_proj_weight': (3 * dim, dim),
            f'{layer}.attn.attn.in_proj_bias': (3 * dim,),
            f'{layer}.attn.attn.out_proj.weight': (dim, dim),
            f'{layer}.attn.attn.out_proj.bias': (dim,),
            f'{layer}.ffn.layers.0.0.weight': (4 * dim, dim),
            f'{layer}.ffn.layers.0.0.bias': (4 * dim,),
            f'{layer}.ffn.layers.1.weight': (dim, 4 * dim),
            f'{layer}.ffn.layers.1.bias': (dim,),
        }
    decoder = {
        'cls_emb': (1, num_classes, head),
        'proj_dec.weight': (head, dim),
        'proj_dec.bias': (head,),
        'proj_patch': (head, head),
        'proj_classes': (head, head),
    }
    for i in range(3 if method == 'rankseg' else 2):
        block = f'blocks.{i}'
        decoder |= {
            f'{block}.norm{n}.{leaf}': (head,) for n in (1, 2) for leaf in ('weight', 'bias')
        }
        decoder |= {
            f'{block}.attn.qkv.weight': (3 * head, head),
            f'{block}.attn.qkv.bias': (3 * head,),
            f'{block}.attn.proj.weight': (head, head),
            f'{block}.attn.proj.bias': (head,),
            f'{block}.mlp.fc1.weight': (4 * head, head),
            f'{block}.mlp.fc1.bias': (4 * head,),
            f'{block}.mlp.fc2.weight': (head, 4 * head),
            f'{block}.mlp.fc2.bias': (head,),
        }
    norms = {'decoder_norm': head, 'mask_norm': num_classes}
    if method == 'rankseg':
        norms = {'decoder_norm': head, 'decoder_norm2': head, 'mask_norm': num_selected}
        decoder |= {'ml_fc.W': (1, num_classes, head), 'ml_fc.b': (1, num_classes)}
    decoder |= {
        f'{name}.{leaf}': (size,) for name, size in norms.items() for leaf in ('weight', 'bias')
    }
    shapes |= {f'decode_head.{name}': shape for name, shape in decoder.items()}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize('method', ['rankseg', 'baseline'])
def test_released_segmenter_fills_every_parameter(tmp_path, method):
    torch = pytest.importorskip('torch')
    state = released_state(8, 3, method)
    path = tmp_path / 'model.pth'
    torch.save(
        {'meta': {'epoch': 1}, 'state_dict': {k: torch.tensor(v) for k, v in state.items()}}, path
    )
    variables = fresh(segmenter_config(method))
    loaded = pretrained.load(path, variables)
    ours, theirs = (
        sorted(float(np.abs(x).sum()) for x in jax.tree.leaves(tree))
        for tree in (loaded['params'], state)
    )
    # All weights are loaded, and no initial value remains.
    np.testing.assert_allclose(sum(ours), sum(theirs), rtol=1e-5)
    kernel = loaded['params']['decoder']['block1']['MultiHeadDotProductAttention_0']['key'][
        'kernel'
    ]
    np.testing.assert_array_equal(
        kernel[:, 0], state['decode_head.blocks.1.attn.qkv.weight'][64:128].T
    )
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)


def test_class_layers_for_another_number_of_classes_are_not_loaded(tmp_path, capsys):
    path = tmp_path / 'model.npz'
    state = released_state(20, 5)
    np.savez(path, **state)
    variables = fresh(segmenter_config())
    loaded = pretrained.load(path, variables)
    message = (
        'decoder/class_embedding keeps its initial value; '
        'its shape is (20, 64) here and (8, 64) in the model'
    )
    assert message in capsys.readouterr().out
    decoder = loaded['params']['decoder']
    np.testing.assert_array_equal(
        decoder['class_embedding'], variables['params']['decoder']['class_embedding']
    )
    np.testing.assert_array_equal(decoder['project']['bias'], state['decode_head.proj_dec.bias'])


def test_position_codes_are_resampled_and_a_backbones_file_leaves_the_rest(tmp_path):
    path = tmp_path / 'backbone.safetensors'
    safetensors = pytest.importorskip('safetensors.numpy')
    state = {
        k.removeprefix('backbone.'): v
        for k, v in released_state(8, 3, grid=4).items()
        if k.startswith('backbone.')
    }
    safetensors.save_file(state, path)
    variables = fresh(segmenter_config())
    loaded = pretrained.load(path, variables)
    assert loaded['params']['backbone']['position'].shape == (2, 2, 192)
    np.testing.assert_array_equal(
        loaded['params']['backbone']['class_position'], state['pos_embed'][0, 0]
    )
    jax.tree.map(
        np.testing.assert_array_equal, loaded['params']['decoder'], variables['params']['decoder']
    )


def save(path, arrays):
    """Writes arrays to a file of any format."""
    if path.suffix == '.npz':
        np.savez(path, **arrays)
    elif path.suffix == '.safetensors':
        pytest.importorskip('safetensors.numpy').save_file(arrays, path)
    else:
        torch = pytest.importorskip('torch')
        tensors = {
            key: torch.tensor(x.astype(np.float32)).to(getattr(torch, x.dtype.name))
            for key, x in arrays.items()
        }
        torch.save({'state_dict': tensors}, path)


@pytest.mark.parametrize('suffix', ['npz', 'safetensors', 'pth'])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float64'])
def test_files_of_any_precision_are_read_as_float32(tmp_path, suffix, dtype):
    values = np.array([0.1, -3.7, 200.0]).astype(jnp.dtype(dtype))
    save(tmp_path / f'a.{suffix}', {'a': values, 'b': values.reshape(3, 1)})
    found = pretrained.read(tmp_path / f'a.{suffix}')
    for key, shape in (('a', (3,)), ('b', (3, 1))):
        assert found[key].dtype == np.float32 and found[key].shape == shape
        np.testing.assert_array_equal(found[key].ravel(), values.astype(np.float32))


@pytest.mark.parametrize('source, dtype', [('file', 'bfloat16'), ('run', 'float16')])
def test_half_precision_weights_are_trained_in_float32(tmp_path, source, dtype):
    """A step of 1e-5 changes them all. In bfloat16 it would change those below 0.005 alone."""
    config = segmenter_config('baseline')
    variables = fresh(config)
    path = tmp_path / 'model.safetensors'
    state = released_state(8, 3, 'baseline')
    save(path, {key: x.astype(jnp.dtype(dtype)) for key, x in state.items()})
    if source == 'run':
        half = jax.tree.map(lambda x: x.astype(dtype), pretrained.read_variables(path))
        with checkpoint.open_checkpoints(tmp_path / 'run', 1) as manager:
            checkpoint.save(manager, 0, {'batch_stats': {}} | half, None, {'score': None})
        path = tmp_path / 'run'
    params = pretrained.load(path, variables)['params']
    config.optimizer.update(learning_rate=1e-5, weight_decay=0.0)
    optimizer = optimizers.make_optimizer(config.optimizer, steps=10)
    state = jax.jit(optimizer.init)(params)
    assert {x.dtype.name for x in jax.tree.leaves((params, state))} == {'float32', 'int32'}

    @jax.jit
    def step(params, state):
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates)

    stepped = step(params, state)
    before, after = (
        np.concatenate([x.ravel() for x in jax.tree.leaves(tree['backbone'])])
        for tree in (params, stepped)
    )
    assert (before != after).mean() > 0.99 and np.isfinite(after).all()


@pytest.mark.parametrize('prefix', ['backbone.', 'module.', 'module.backbone.'])
@pytest.mark.parametrize('kind', ['vit', 'swin', 'resnet'])
def test_backbones_are_found_behind_prefixes(kind, prefix):
    if kind == 'vit':
        state = part(released_state(8, 3), 'backbone.')
    else:
        timm = pytest.importorskip('timm')
        if kind == 'swin':
            model = timm.models.swin_transformer.SwinTransformer(
                96, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window_size=3
            )
        else:
            model = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, [1, 1, 1, 1])
        state = numpy_state(model)
    expected = pretrained.convert(state)
    whole = {f'{prefix}{key}': value for key, value in state.items()}
    if 'backbone' in prefix:
        head = prefix.replace('backbone', 'decode_head')
        whole[f'{head}conv_seg.weight'] = np.zeros((3, 2, 1, 1), np.float32)
    found = pretrained.convert(whole)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_objects_in_a_pytorch_file_are_refused_with_the_way_to_save_the_weights(
    tmp_path, monkeypatch
):
    """As in checkpoints of mmsegmentation, where mmengine may be installed or not."""
    torch = pytest.importorskip('torch')
    name = 'mmengine.logging.history_buffer'
    module = types.ModuleType(name)
    module.HistoryBuffer = type('HistoryBuffer', (), {'__module__': name})
    for i in range(1, 4):
        parent = '.'.join(name.split('.')[:i])
        monkeypatch.setitem(sys.modules, parent, module if i == 3 else types.ModuleType(parent))
    path = tmp_path / 'iter_80000.pth'
    tensors = {key: torch.tensor(x) for key, x in released_state(8, 3).items()}
    torch.save({'message_hub': module.HistoryBuffer(), 'state_dict': tensors}, path)
    with pytest.raises(ValueError, match=f'{name}.HistoryBuffer, which are not') as error:
        pretrained.read(path)
    assert '\n' not in str(error.value)
    command = re.search(r'python -c "(.*)"$', str(error.value))[1]
    monkeypatch.chdir(tmp_path)
    exec(command)
    jax.tree.map(
        np.testing.assert_array_equal, pretrained.read('weights.pth'), released_state(8, 3)
    )


@pytest.mark.parametrize('suffix', ['npz', 'safetensors', 'pth'])
def test_damaged_files_are_refused_in_one_line(tmp_path, suffix):
    path = tmp_path / f'a.{suffix}'
    save(path, {'a': np.ones(20_000, np.float32)})
    for content in (path.read_bytes()[:9000], b'version https://git-lfs.github.com/spec/v1', b''):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf'a.{suffix} is not a .* file|is not a NumPy'
        ) as error:
            pretrained.read(path)
        assert '\n' not in str(error.value)


def test_another_model_lists_both_sides(tmp_path):
    state = {k: v for k, v in released_state(8, 3).items() if 'layers.11.' not in k}
    np.savez(tmp_path / 'model.npz', **state)
    with pytest.raises(
        ValueError, match=r'(?s)block11.*checkpoint has none, model \(192,\).*Choose the model'
    ):
        pretrained.load(tmp_path / 'model.npz', fresh(segmenter_config()))


def test_files_that_are_no_weights_are_refused(tmp_path):
    (tmp_path / 'notes.txt').write_text('')
    np.savez(tmp_path / 'other.npz', a=np.zeros(3))
    variables = fresh(segmenter_config())
    with pytest.raises(FileNotFoundError, match='missing.npz is not a file'):
        pretrained.load(tmp_path / 'missing.npz', variables)
    with pytest.raises(ValueError, match='notes.txt must be'):
        pretrained.load(tmp_path / 'notes.txt', variables)
    with pytest.raises(ValueError, match="not those of a ViT.*'a'"):
        pretrained.load(tmp_path / 'other.npz', variables)


HUB_NAME = 'somebody/mask2former-tiny.v2'


def downloading(monkeypatch, download):
    """Replaces the hub's `snapshot_download`, and returns what records its calls."""
    hub = pytest.importorskip('huggingface_hub')
    monkeypatch.setattr(
        hub, 'snapshot_download', mock.create_autospec(hub.snapshot_download, side_effect=download)
    )
    return hub.snapshot_download


def test_a_name_on_the_hub_is_downloaded_but_for_what_is_not_read(tmp_path, monkeypatch):
    files = [
        'config.json',
        'preprocessor_config.json',
        'model-00001-of-00002.safetensors',
        'model.safetensors.index.json',
    ]
    (tmp_path / 'hub').mkdir()
    for name in [*files, 'pytorch_model.bin', 'README.md']:
        (tmp_path / 'hub' / name).write_text(name)

    def download(name, allow_patterns):
        def others(_, names):
            return [
                file
                for file in names
                if not any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)
            ]

        return shutil.copytree(tmp_path / 'hub', tmp_path / 'cache' / name, ignore=others)

    calls = downloading(monkeypatch, download)
    assert sorted(path.name for path in hf.locate(HUB_NAME).iterdir()) == sorted(files)
    assert calls.call_count == 1
    monkeypatch.chdir(tmp_path / 'cache')
    for path in (
        HUB_NAME,
        'weights/backbone.pth',
        tmp_path / 'nothing',
        'nothing',
        'a/b/c',
    ):  # the first is there now
        assert hf.locate(path) == type(tmp_path)(path)
    assert calls.call_count == 1


def test_a_name_that_cannot_be_downloaded_is_named_with_the_fix(monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    downloading(monkeypatch, hub.errors.LocalEntryNotFoundError('cannot reach the host'))
    for load in (pretrained.load_hf, pretrained.read_variables):
        with pytest.raises(
            OSError,
            match=rf'{HUB_NAME} is not a file or folder.*Check the name.*cannot reach the host',
        ):
            load(HUB_NAME)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(
        ImportError, match=rf'{HUB_NAME} is not a file.*pip install huggingface_hub'
    ):
        pretrained.load_hf(HUB_NAME)


@pytest.mark.parametrize('averaged', [False, True])
def test_a_run_is_read_with_other_classes_and_ranks(tmp_path, averaged):
    """From 8 categories to 5, from 3 ranks to 2: all else is the run's, averaged if it has that."""
    config = tiny.config('', model__framework='upernet', rankseg__temperature='temperature')
    variables = fresh(config)
    saved = variables | (
        {'ema': jax.tree.map(lambda x: x + 1, variables['params'])} if averaged else {}
    )
    with checkpoint.open_checkpoints(tmp_path, 1) as manager:
        checkpoint.save(
            manager,
            3,
            saved,
            None,
            {'config': config.to_dict(), 'class_names': [], 'next_step': 3, 'score': None},
        )
    config.rankseg.num_selected = 2
    model = random_variables(models.build(config, 5), np.zeros((1, 32, 32, 3), np.float32), seed=1)
    loaded = pretrained.load(tmp_path, model)
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    found = set()

    def compare(path, ours, run, fresh):
        same = ours.shape == run.shape
        found.update(() if same else [jax.tree_util.keystr(path, simple=True, separator='/')])
        np.testing.assert_array_equal(ours, run if same else fresh)

    run = {'params': saved.get('ema', saved['params']), 'batch_stats': saved['batch_stats']}
    jax.tree.map_with_path(compare, loaded, run, model)
    assert found == {
        f'params/classifier/{name}'
        for name in (
            'auxiliary_classes/bias',
            'auxiliary_classes/embedding',
            'classes/bias',
            'classes/embedding',
            'head/classify/bias',
            'head/classify/kernel',
            'rank/temperature/log_tau',
        )
    }


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds neither config.json nor checkpoints'):
        pretrained.load(tmp_path, {})
    (tmp_path / 'checkpoints').mkdir()
    with pytest.raises(FileNotFoundError, match='no checkpoint in'):
        pretrained.load(tmp_path, {})


def save_run(workdir, config, variables, class_names):
    run = {'config': config.to_dict(), 'class_names': class_names, 'next_step': 3, 'score': None}
    with checkpoint.open_checkpoints(workdir, 1) as manager:
        checkpoint.save(manager, 3, variables, None, run)


@pytest.mark.parametrize(
    'options',
    [
        # C = K = 8: the kernel of the multi-label head is square.
        {'model__framework': 'upernet', 'model__backbone': 'tiny_pyramid'},
        {
            'model__framework': 'upernet',
            'model__backbone': 'tiny_pyramid',
            'rankseg__head': 'encoder',
        },
        {
            'model__framework': 'segmenter',
            'model__backbone': 'tinier_vit',
            'model__decoder_layers': 2,
            'model__decoder_heads': 2,
            'rankseg__head': 'first_block',
            'rankseg__pool': 1,
            'rankseg__temperature': 'layer_norm',
        },
        {
            'model__framework': 'mask2former',
            'model__backbone': 'tiny_pyramid',
            'model__channels': 32,
            'model__decoder_heads': 2,
            'model__pixel_layers': 1,
            'model__num_queries': 4,
            'rankseg__layer': 1,
        },
    ],
    ids=['upernet', 'encoder', 'first_block', 'mask2former'],
)
def test_a_run_on_categories_in_another_order_predicts_the_same(tmp_path, options):
    config = tiny.config('', **options)
    variables, names = fresh(config), list('abcdefgh')
    save_run(tmp_path, config, variables, names)
    order = [5, 0, 7, 1, 2, 6, 4, 3]
    ours = fresh(config)
    ours['params'] = jax.tree.map(lambda x: x + 1, ours['params'])
    loaded = pretrained.load(tmp_path, ours, class_names=[names[i] for i in order])
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    model = models.build(config, 8)
    forward = jax.jit(lambda variables: models.forward(model, variables, images, Choice()))
    expected, found = forward(variables), forward(loaded)
    np.testing.assert_allclose(
        found.presence_logits, expected.presence_logits[:, order], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(np.take(order, found.selection.labels), expected.selection.labels)
    logits = 'class_logits' if options['model__framework'] == 'mask2former' else 'logits'
    np.testing.assert_allclose(
        getattr(found, logits), getattr(expected, logits), rtol=1e-4, atol=1e-4
    )


def test_categories_are_known_by_name(tmp_path, capsys):
    """From 8 to 5, of which 3 are known: the others and no-object keep what is theirs."""
    config = tiny.queries_config('')
    variables = fresh(config)
    save_run(tmp_path, config, variables, list('abcdefgh'))
    ours = fresh(config, 5)
    ours['params'] = jax.tree.map(lambda x: x + 1, ours['params'])
    loaded = pretrained.load(tmp_path, ours, class_names=['new', 'c', 'h', 'a', 'other'])
    assert '3 of the 5 categories are known there' in capsys.readouterr().out
    learned, kept = ([2, 7, 0, 8], [1, 2, 3, 5]), [0, 4]  # there and here; 8 and 5: no-object
    for path, there, here in (
        (('classes', 'embedding'), *learned),
        (('classes', 'bias'), *learned),
        (('head', 'classify', 'bias'), learned[0][:-1], learned[1][:-1]),
    ):
        theirs, initial, found = (
            functools.reduce(operator.getitem, path, tree['params']['decoder'])
            for tree in (variables, ours, loaded)
        )
        np.testing.assert_array_equal(found[np.array(here)], theirs[np.array(there)])
        np.testing.assert_array_equal(found[np.array(kept)], initial[np.array(kept)])


@pytest.mark.parametrize(
    'learned, wanted, expected',
    [
        ('sky tree road', 'sky tree road', None),
        ('sky tree road', 'sky trees road', None),  # spelled differently
        ('sky tree road', 'a b c', None),
        ('', 'sky tree', None),
        ('sky tree', '', None),
        ('sky tree road', 'road tree sky', [(0, 2), (1, 1), (2, 0)]),
        ('sky tree road', 'road lake sky', [(0, 2), (2, 0)]),
        ('sky tree road', 'tree', [(0, 1)]),
        ('sky tree road', 'a b', []),
        ('road road sky', 'sky road', [(0, 2)]),
        ('road road sky', 'road road sky', None),
        (
            'wall edifice sky door screen',
            'wall house sky screen gate',
            [(0, 0), (1, 1), (2, 2), (3, 4)],
        ),
    ],
)
def test_places_of_categories(learned, wanted, expected):
    assert classes.places(learned.split(), wanted.split()) == expected


def test_hugging_faces_names_are_in_order(tmp_path):
    assert hf.class_names(tmp_path) == []
    names = {str(i): f'name {i}' for i in range(11)}
    for content, expected in (
        (dict(sorted(names.items())), list(names.values())),
        ({'0': 'a', '2': 'c'}, []),
        ({'a': 'b'}, []),
        (['a', 'b'], []),
    ):
        (tmp_path / 'config.json').write_text(json.dumps({'id2label': content}))
        assert hf.class_names(tmp_path) == expected
