"""--mode=convert: public weights become a run that the other modes read."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import common
from rankseg_jax import checkpoint, config_check, convert, models, predict, pretrained, sharding
from rankseg_jax.pretrained import load_hf
from tests import tiny
from tests.helpers import random_parameters, random_variables

NAMES = {'0': 'wall', '1': 'tree', '2': 'sky'}


def save_mask2former(path, **options):
    """Saves a tiny Hugging Face Mask2Former with its preprocessor; returns `path`."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    backbone = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 2, 4],
        window_size=3,
        out_features=[f'stage{i}' for i in range(1, 5)],
    )
    options = (
        dict(
            hidden_dim=32,
            feature_size=32,
            mask_feature_size=32,
            num_attention_heads=4,
            encoder_layers=1,
            decoder_layers=3,
            encoder_feedforward_dim=128,
            dim_feedforward=256,
            num_queries=5,
            id2label=NAMES,
        )
        | options
    )
    config = transformers.Mask2FormerConfig(backbone_config=backbone, **options)
    random_parameters(
        torch, transformers.Mask2FormerForUniversalSegmentation(config)
    ).save_pretrained(path)
    transformers.Mask2FormerImageProcessor(
        size={'shortest_edge': 64, 'longest_edge': 128},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.4, 0.5, 0.6],
    ).save_pretrained(path)
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return save_mask2former(tmp_path_factory.mktemp('hf'))


def read(workdir):
    """Reads (run, model, variables) of the newest checkpoint, as the other modes do."""
    saved = checkpoint.open_run(workdir)
    run = checkpoint.read_run(saved.manager, saved.step)
    model = models.build(saved.config, len(saved.class_names))
    return run, model, models.restore(saved, model, saved.config, sharding.make_mesh(1))


def test_a_hugging_face_checkpoint_becomes_a_run(folder, tmp_path):
    config = common.get_config()
    path = convert.run(folder, tmp_path / 'new' / 'run', config, as_is=True)
    config_check.check(config, common.get_config())
    assert path == tmp_path / 'new' / 'run' / 'checkpoints' / '0' and path.is_dir()
    run, model, variables = read(tmp_path / 'new' / 'run')
    assert run['config'] == json.loads(config.to_json())
    assert run['class_names'] == list(NAMES.values())
    assert run['next_step'] == 0 and run['score'] is None
    assert config.rankseg is None and config.data.num_classes == 3
    np.testing.assert_allclose(
        [config.data.mean, config.data.std], 255 * np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    )
    assert (
        tuple(config.eval.base_size) == (64, 128)
        and config.eval.batch_size == 1
        and config.data.antialias
    )
    theirs, expected = load_hf(folder)
    assert model == theirs
    start_of_later_run = pretrained.read_variables(tmp_path / 'new' / 'run')
    for found in (variables, start_of_later_run):
        jax.tree.map(np.testing.assert_array_equal, found, {'batch_stats': {}} | expected)


def test_published_panoptic_checkpoints_know_their_things():
    things = convert.published_things('facebook/mask2former-swin-tiny-coco-panoptic', 133)
    assert sum(things) == 80 and all(things[:80])
    things = convert.published_things('facebook/mask2former-swin-large-ade-panoptic', 150)
    stuff = [i for i in range(12) if not things[i]]
    assert sum(things) == 100 and stuff == [0, 1, 2, 3, 4, 5, 6, 9, 11]
    assert (
        convert.published_things('/weights/mask2former-swin-small-coco-instance', 80) == [True] * 80
    )
    assert convert.published_things('facebook/mask2former-swin-base-ade-semantic', 150) is None
    assert convert.published_things('panoptic/mine', 150) is None


def test_a_panoptic_checkpoint_predicts_segments(tmp_path):
    save_mask2former(tmp_path / 'mine-instance')
    convert.run(tmp_path / 'mine-instance', tmp_path / 'run', common.get_config(), as_is=True)
    result = predict.load(tmp_path / 'run')(
        np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
    )
    assert result.labels.shape == result.segment_ids.shape == (40, 70)
    assert result.segment_ids.max() == len(result.segments)


def test_weights_for_another_config_become_a_run(tmp_path, monkeypatch):
    """With another number of categories, class layers are initialized and all else is loaded."""

    def init(model, num_classes, seed, image_shape):
        return {'batch_stats': {}} | random_variables(
            model, np.zeros((1, *image_shape, 3), np.float32), seed=seed
        )

    monkeypatch.setattr(models, 'init', init)
    config = tiny.config(tmp_path, data__name='folder', data__num_classes=0, ema=0.9)
    old = init(models.build(config, 5), 5, 1, (32, 32))
    with checkpoint.open_checkpoints(tmp_path / 'old', 1) as manager:
        checkpoint.save(manager, 7, old, None, {'score': None})
    for kind in ('images', 'labels'):
        (tmp_path / kind / 'train').mkdir(parents=True)
    (tmp_path / 'classes.txt').write_text('\n'.join('abcdefgh'))
    convert.run(tmp_path / 'old', tmp_path / 'new', config, as_is=False)
    run, model, variables = read(tmp_path / 'new')
    assert run['class_names'] == list('abcdefgh')
    assert set(variables) == {'params', 'batch_stats', 'ema'}
    jax.tree.map(np.testing.assert_array_equal, variables['ema'], variables['params'])
    fresh = init(model, 8, config.seed, (32, 32))['params']
    for name in fresh.keys() - {'classifier'}:
        jax.tree.map(np.testing.assert_array_equal, variables['params'][name], old['params'][name])
    jax.tree.map(
        np.testing.assert_array_equal,
        variables['params']['classifier']['classes'],
        fresh['classifier']['classes'],
    )


@pytest.mark.parametrize(
    'size, expected',
    [
        ({'size': 640, 'max_size': 2560}, {'base_size': (640, 2560)}),
        ({'size': {'height': 384, 'width': 256}}, {'size': (384, 256)}),
    ],
)
def test_older_ways_to_give_the_size(size, expected):
    config = common.get_config()
    convert.describe_input({'image_mean': [0, 0, 0], 'image_std': [1, 1, 1]} | size, config)
    assert config.eval.to_dict() == common.get_config().eval.to_dict() | expected
    config_check.check(config, common.get_config())


def test_models_that_no_config_describes_are_refused(folder, tmp_path):
    target = tmp_path / 'run'
    backbone = json.loads((folder / 'config.json').read_text())['backbone_config']
    for name, change, message in [
        (
            'config.json',
            {'backbone_config': backbone | {'window_size': 5}},
            r'(?s)no config.model.backbone.*window = 5',
        ),
        (
            'config.json',
            {'id2label': {'0': 'a', '1': 'b'}},
            'id2label must name the 3 categories .* names 2',
        ),
        (
            'config.json',
            {'backbone_config': None, 'backbone': 'swin_t'},
            "backbone = 'swin_t' without a backbone_config",
        ),
        (
            'config.json',
            {'backbone_config': {'model_type': 'swin'}},
            'image_size is missing in config.json',
        ),
        ('preprocessor_config.json', {'do_rescale': False}, 'do_rescale = False is not supported'),
        ('preprocessor_config.json', {'size': {'shortest_edge': 64}}, 'max_size is missing'),
    ]:
        changed = shutil.copytree(folder, tmp_path / 'hf', dirs_exist_ok=True)
        (changed / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
        with pytest.raises(ValueError, match=message):
            convert.run(changed, target, common.get_config(), as_is=True)
    with pytest.raises(
        ValueError,
        match=r'(?s)layer0/mlp/Dense_0/bias: checkpoint \(99,\), model \(256,\).*'
        r'No config describes',
    ):
        convert.run(
            save_mask2former(tmp_path / 'narrow', dim_feedforward=99),
            target,
            common.get_config(),
            as_is=True,
        )
    save_file({'model.a': np.zeros(1, np.float32)}, changed / 'model.safetensors')
    with pytest.raises(ValueError, match=r"not those of a whole model, but \['model.a'\]"):
        convert.run(changed, target, common.get_config(), as_is=True)
    (changed / 'model.safetensors').write_text(
        'version https://git-lfs.github.com/spec/v1\nsize 12\n'
    )
    with pytest.raises(
        ValueError, match='model.safetensors is not a safetensors file .*git without LFS'
    ):
        convert.run(changed, target, common.get_config(), as_is=True)
    with pytest.raises(
        ValueError, match='does not say which model its weights belong to: give a --config'
    ):
        convert.run(tmp_path, target, common.get_config(), as_is=True)
    with pytest.raises(FileNotFoundError, match='nothing holds no config.json'):
        convert.run(tmp_path / 'nothing', target, common.get_config(), as_is=True)
    (target / 'checkpoints/0').mkdir(parents=True)
    with pytest.raises(ValueError, match='run holds checkpoints already; choose a new folder'):
        convert.run(folder, target, common.get_config(), as_is=True)
