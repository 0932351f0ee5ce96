"""Hugging Face's UPerNet and BeitForSemanticSegmentation: the same logits, and the same label maps.

The models are random and tiny.
"""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import common
from rankseg_jax import config_check, convert, models, predict, pretrained
from rankseg_jax.data import fitting
from rankseg_jax.pretrained import load_hf, processor
from tests import tiny  # noqa: F401  (adds the backbones 'swin_tiny' and 'beit_tiny')
from tests.helpers import random_batch_norms, random_parameters, random_variables, relative_error

NAMES = {'0': 'wall', '1': 'tree', '2': 'sky', '3': 'person'}


@pytest.fixture(scope='module')
def torch():
    return pytest.importorskip('torch')


@pytest.fixture(scope='module')
def transformers(torch):
    return pytest.importorskip('transformers')


def swin_config(transformers, **options):
    return transformers.SwinConfig(
        **dict(
            embed_dim=8,
            depths=[1, 1, 2, 1],
            num_heads=[1, 2, 2, 4],
            window_size=3,
            out_features=[f'stage{i}' for i in range(1, 5)],
        )
        | options
    )


def beit_config(transformers, **options):
    return transformers.BeitConfig(
        **dict(
            hidden_size=16,
            num_hidden_layers=5,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=64,
            use_relative_position_bias=True,
            out_indices=[2, 3, 4, 5],
            id2label=NAMES,
        )
        | options
    )


def save(torch, transformers, kind, path, **options):
    """Saves a random model of `kind` with its image processor; returns the model."""
    if kind == 'beit':
        model = transformers.BeitForSemanticSegmentation(beit_config(transformers, **options))
        images = transformers.BeitImageProcessor(size={'height': 64, 'width': 64})
    else:
        backbone = (
            swin_config(transformers) if kind == 'swin' else beit_config(transformers, add_fpn=True)
        )
        config = transformers.UperNetConfig(
            backbone_config=backbone, hidden_size=16, id2label=NAMES, **options
        )
        model = transformers.UperNetForSemanticSegmentation(config)
        images = transformers.SegformerImageProcessor(
            size={'height': 64, 'width': 96} if kind == 'swin' else {'height': 64, 'width': 64}
        )
    random_batch_norms(torch, random_parameters(torch, model, scale=0.3))
    model.save_pretrained(path)
    images.save_pretrained(path)
    return model


@pytest.fixture(scope='module', params=['swin', 'upernet beit', 'beit'])
def saved(request, torch, transformers, tmp_path_factory):
    """(folder, model) of each kind."""
    path = tmp_path_factory.mktemp('hf')
    return path, save(torch, transformers, request.param, path)


def test_logits_are_hugging_faces(saved, torch):
    path, theirs = saved
    images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype(np.float32)
    heads = {}
    for name in ('decode_head', 'auxiliary_head'):
        getattr(theirs, name).register_forward_hook(
            lambda _, __, logits, name=name: heads.update({name: logits.permute(0, 2, 3, 1)})
        )
    with torch.no_grad():
        theirs(torch.tensor(images).permute(0, 3, 1, 2))
    model, variables = load_hf(path)
    ours = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(
        variables, images
    )
    assert relative_error(ours.logits, heads['decode_head']) <= 1e-5
    assert relative_error(ours.auxiliary_logits, heads['auxiliary_head']) <= 1e-5
    assert ours.logits.shape[1:3] == (16, 24)


def photo(rows, columns, seed):
    """Smooth colors, as in photos."""
    colors = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(colors).resize((columns, rows), Image.Resampling.BICUBIC)


def test_label_maps_are_those_of_hugging_faces_pipeline(saved, torch, transformers, tmp_path):
    path, theirs = saved
    config = common.get_config()
    convert.run(path, tmp_path / 'run', config, as_is=True)
    config_check.check(config, common.get_config())
    assert config.task == 'semantic' and config.rankseg is None
    assert (config.model.framework, config.model.channels) == ('upernet', 16)
    assert config.model.auxiliary_weight == 0.4
    predictor = predict.load(tmp_path / 'run')
    assert predictor.class_names == tuple(NAMES.values())
    built = models.build(config, 4)
    if config.model.backbone == 'beit_tiny':
        assert tuple(config.model.feature_blocks) == built.backbone.feature_blocks
        assert built.backbone.feature_blocks == (
            (1, 2, 3, 4) if theirs.config.model_type == 'beit' else (2, 3, 4, 5)
        )
        assert built.backbone.epsilon == 1e-12
    images = transformers.AutoImageProcessor.from_pretrained(path)
    for seed, size in enumerate([(70, 50), (64, 96), (201, 131)]):
        image = photo(*size, seed)
        with torch.no_grad():
            output = theirs(**images(image, return_tensors='pt'))
        (expected,) = images.post_process_semantic_segmentation(output, target_sizes=[size])
        found = predictor(np.asarray(image)).labels
        assert len(np.unique(expected)) > 1
        # Where two categories are equally likely, rounding decides.
        assert (found != expected.numpy()).mean() < 2e-3


def test_models_without_an_auxiliary_head(torch, transformers, tmp_path):
    for kind in ('swin', 'beit'):
        path = tmp_path / kind
        save(torch, transformers, kind, path, use_auxiliary_head=False)
        config = common.get_config()
        convert.run(path, tmp_path / f'{kind}_run', config, as_is=True)
        assert config.model.auxiliary_weight == 0


@pytest.mark.parametrize('kind', ['swin', 'beit'])
def test_a_model_with_rankseg_starts_from_it(torch, transformers, tmp_path, kind):
    save(torch, transformers, kind, tmp_path)
    config = tiny.config(
        '',
        model__framework='upernet',
        model__backbone=f'{kind}_tiny',
        model__channels=16,
        augment__crop_size=(64, 64),
    )
    model = models.build(config, 4)
    variables = random_variables(model, np.zeros((1, 64, 64, 3), np.float32))
    loaded = pretrained.load(tmp_path, variables)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    _, theirs = load_hf(tmp_path)
    for part in ('backbone', 'decoder', 'auxiliary'):
        jax.tree.map(np.testing.assert_array_equal, loaded['params'][part], theirs['params'][part])
    jax.tree.map(
        np.testing.assert_array_equal,
        loaded['params']['classifier']['head'],
        variables['params']['classifier']['head'],
    )


def change(path, **keys):
    """Changes keys of config.json, those of the backbone by `backbone__key`."""
    config = json.loads((path / 'config.json').read_text())
    for key, value in keys.items():
        section, _, leaf = key.rpartition('__')
        (config[f'{section}_config'] if section else config)[leaf] = value
    (path / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize(
    'kind, keys, message',
    [
        ('swin', {'backbone__model_type': 'convnext'}, "model_type = 'convnext' is not supported"),
        ('swin', {'pool_scales': [1, 2]}, r'pool_scales = \[1, 2\] is not supported'),
        ('swin', {'auxiliary_num_convs': 2}, 'auxiliary_num_convs = 2 is not supported'),
        ('swin', {'auxiliary_channels': 32}, 'auxiliary_channels = 32 is not supported'),
        ('swin', {'backbone__out_features': ['stage4']}, 'out_features'),
        ('upernet beit', {'backbone__add_fpn': False}, 'backbone_config: add_fpn = False is not'),
        ('beit', {'use_absolute_position_embeddings': True}, 'use_absolute_position_embeddings'),
        ('beit', {'intermediate_size': 32}, 'intermediate_size = 32 is not supported, only 64'),
        ('beit', {'patch_size': 8}, 'patch_size = 8 is not supported'),
    ],
)
def test_other_models_are_refused_by_name(torch, transformers, tmp_path, kind, keys, message):
    save(torch, transformers, kind, tmp_path)
    change(tmp_path, **keys)
    with pytest.raises(ValueError, match=message) as error:
        load_hf(tmp_path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('flags', [{'task': 'panoptic'}, {'task': 'instance'}, {'things': ['0']}])
def test_pixels_have_one_task(torch, transformers, tmp_path, flags):
    save(torch, transformers, 'swin', tmp_path / 'hf')
    with pytest.raises(ValueError, match='classifies pixels, which is --task=semantic'):
        convert.run(tmp_path / 'hf', tmp_path / 'run', common.get_config(), as_is=True, **flags)


def test_published_names_do_not_make_a_pixel_model_panoptic(torch, transformers, tmp_path):
    """'person' alone names things of COCO."""
    save(torch, transformers, 'swin', tmp_path / 'hf')
    change(tmp_path / 'hf', id2label={str(i): 'person' for i in range(4)})
    config = common.get_config()
    convert.run(tmp_path / 'hf', tmp_path / 'run', config, as_is=True, task='semantic')
    assert config.task == 'semantic'


PROCESSORS = {
    'Beit': [
        {'size': {'height': 48, 'width': 64}},
        {'size': 40},
        {'size': 40, 'resample': 2, 'do_center_crop': False, 'crop_size': 40},
        {'size': 40, 'do_normalize': False},
        {},
    ],
    'Segformer': [{'size': {'height': 48, 'width': 64}}, {'size': 40, 'resample': 3}, {}],
}


@pytest.mark.parametrize('name', PROCESSORS)
def test_pixels_are_hugging_faces(transformers, name):
    for options in PROCESSORS[name]:
        images = getattr(transformers, f'{name}ImageProcessor')(**options)
        config = common.get_config()
        model_type = {'Beit': 'beit', 'Segformer': 'upernet'}[name]
        for found in (options, json.loads(images.to_json_string())):
            keys = processor.input_keys(found, model_type)
            for section, values in keys.items():
                config[section].update(values)
            config_check.check(config, common.get_config())
            image = photo(47, 71, 0)
            (view,) = fitting.eval_views(np.asarray(image), config)
            pixels = images(image, return_tensors='np')['pixel_values'][0].transpose(1, 2, 0)
            np.testing.assert_allclose(view['image'], pixels, rtol=0, atol=1e-5)
    assert tuple(config.eval.mask_size) == {'Beit': (-1, -1), 'Segformer': (0, 0)}[name]


@pytest.mark.parametrize(
    'options, model_type, message',
    [
        ({'do_center_crop': True}, 'beit', 'do_center_crop = True is not supported'),
        ({'size': {'shortest_edge': 5}}, 'upernet', 'only a number, or height and width'),
        ({'image_processor_type': 'ViTImageProcessor'}, 'upernet', 'segformer and beit'),
        ({'image_processor_type': 'BeitImageProcessor'}, 'maskformer', 'mask2former and mask'),
    ],
)
def test_other_processors_are_refused(options, model_type, message):
    with pytest.raises(ValueError, match=message):
        processor.input_keys(options, model_type)
