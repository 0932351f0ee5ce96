"""--mode=convert: public weights become a run that the other modes read."""

import json
import shutil

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from safetensors.numpy import save_file

from configs import common
from rankseg_jax import (
    checkpoint,
    cli,
    config_check,
    convert,
    models,
    predict,
    pretrained,
    processes,
    sharding,
    train,
)
from rankseg_jax.data.published.label_maps import read_classes
from rankseg_jax.pretrained import load_hf
from rankseg_jax.published_task import published_task
from tests import tiny
from tests.helpers import random_init, random_parameters

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


@pytest.mark.parametrize('precision', ['bfloat16', 'float16'])
def test_parameters_of_half_precision_become_float32(folder, tmp_path, precision):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    theirs = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    theirs.to(getattr(torch, precision)).save_pretrained(tmp_path / 'half')
    theirs.float().save_pretrained(tmp_path / 'rounded')
    _, found = load_hf(tmp_path / 'half')
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype('float32')}
    _, expected = load_hf(tmp_path / 'rounded')
    jax.tree.map(np.testing.assert_array_equal, found, expected)


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
    assert config.eval.stretch and config.eval.multiple == 32
    assert config.eval.resample == 'bilinear' and tuple(config.eval.mask_size) == (384, 384)
    theirs, expected = load_hf(folder)
    assert model == theirs
    start_of_later_run = pretrained.read_variables(tmp_path / 'new' / 'run')
    for found in (variables, start_of_later_run):
        jax.tree.map(np.testing.assert_array_equal, found, {'batch_stats': {}} | expected)


COCO = read_classes('coco_panoptic')['names']
# As published on the hub.
CITYSCAPES = (
    'road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,'
    'person,rider,car,truck,bus,train,motorcycle,bicycle'
).split(',')
ADE = [f'{name} ' for name in read_classes('ade20k')['names']]
VISTAS = read_classes('mapillary_vistas')['names']
UNKNOWN = [f'LABEL_{i}' for i in range(200)]
FACEBOOK = 'facebook/mask2former-swin-large'


@pytest.mark.parametrize(
    'source, names, flags, task, things',
    [
        (f'{FACEBOOK}-coco-panoptic', COCO, {}, 'panoptic', range(80)),
        ('/runs/checkpoint-500', COCO, {}, 'panoptic', range(80)),
        ('facebook/maskformer-swin-tiny-coco', COCO, {}, 'panoptic', range(80)),
        (f'{FACEBOOK}-cityscapes-panoptic', CITYSCAPES, {}, 'panoptic', range(11, 19)),
        (f'{FACEBOOK}-cityscapes-semantic', CITYSCAPES, {}, 'semantic', ()),
        (f'{FACEBOOK}-cityscapes-instance', CITYSCAPES[11:], {}, 'instance', range(8)),
        ('checkpoint-500', CITYSCAPES, {}, 'semantic', ()),
        ('checkpoint-500', CITYSCAPES, {'task': 'panoptic'}, 'panoptic', range(11, 19)),
        ('checkpoint-500', COCO[:80], {}, 'instance', range(80)),
        ('checkpoint-500', COCO[:80], {'task': 'panoptic'}, 'panoptic', range(80)),
        ('checkpoint-500', UNKNOWN, {'task': 'instance'}, 'instance', range(200)),
        ('aws-instance-7', ADE, {}, 'semantic', ()),
        ('aws-instance-7', UNKNOWN, {}, 'semantic', ()),
        ('aws-instance-7', ['person', 'car'], {}, 'semantic', ()),
        ('my-panoptic', ADE, {}, 'semantic', ()),
        ('mask2former-tiny-mine-instance', UNKNOWN, {}, 'instance', range(200)),
        (
            'checkpoint-500',
            UNKNOWN,
            {'things': ['0-2', '7', 'LABEL_9']},
            'panoptic',
            [0, 1, 2, 7, 9],
        ),
        ('checkpoint-500', UNKNOWN, {'things': ['all']}, 'instance', range(200)),
        (f'{FACEBOOK}-coco-panoptic', COCO, {'task': 'semantic'}, 'semantic', ()),
    ],
)
def test_the_task_is_told_from_the_names_of_the_categories(source, names, flags, task, things):
    found, is_thing, reason = published_task(source, names, flags.get('task'), flags.get('things'))
    assert found == task and reason
    assert len(is_thing) == (0 if task == 'semantic' else len(names))
    assert [i for i, thing in enumerate(is_thing) if thing] == list(things)


def test_things_of_the_published_panoptic_tasks():
    _, things, _ = published_task(f'{FACEBOOK}-ade-panoptic', ADE, None, None)
    assert sum(things) == 100
    stuff = [i for i in range(12) if not things[i]]
    assert stuff == [0, 1, 2, 3, 4, 5, 6, 9, 11]
    _, things, _ = published_task(f'{FACEBOOK}-mapillary-vistas-panoptic', VISTAS, None, None)
    assert sum(things) == 37 and len(things) == 65
    assert [VISTAS[i] for i in (8, 23, 43, 58)] == [
        'Crosswalk - Plain', 'Lane Marking - Crosswalk', 'Pothole', 'On Rails',
    ]  # fmt: skip
    assert [things[i] for i in (8, 23, 43, 58)] == [True, True, False, False]


@pytest.mark.parametrize(
    'task, things, message',
    [
        ('panoptic', None, r'these 200 categories \(LABEL_0, LABEL_1, .* --things=0-79,person or'),
        ('panoptik', None, "config.task = 'panoptik' is unknown"),
        ('video_instance', None, 'are read for one of panoptic, instance, semantic; a run of ano'),
        ('semantic', ['0'], '--things belongs to --task=panoptic; --task=semantic has none'),
        ('instance', ['0'], '--things belongs to --task=panoptic; --task=instance has nothing'),
        (None, ['0-200'], "'0-200' is no category; .* numbers from 0 to 199"),
        (None, ['LABEL-3'], "'LABEL-3' is no category; give names, such as 'LABEL_3'"),
    ],
)
def test_tasks_that_a_checkpoint_cannot_have_are_refused(task, things, message):
    with pytest.raises(ValueError, match=message):
        published_task('checkpoint-500', UNKNOWN, task, things)


@pytest.mark.parametrize('mode, config', [('predict', None), ('convert', common.get_config())])
def test_flags_of_public_weights_belong_to_their_conversion(tmp_path, mode, config):
    flags.FLAGS(['main.py', f'--workdir={tmp_path}'])
    with flagsaver.flagsaver(mode=mode, task='panoptic'):
        with pytest.raises(ValueError, match='--task and --things describe public weights'):
            cli.run(config, tmp_path)


def test_flags_and_what_was_assumed(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(processes, 'start', lambda **_: None)
    flags.FLAGS(['main.py', f'--workdir={tmp_path}'])
    with flagsaver.flagsaver(mode='convert', input=[str(folder)], things=['tree', '2']):
        cli.run(None, tmp_path)
    saved = checkpoint.open_run(tmp_path)
    assert saved.things == (False, True, True) and saved.config.task == 'panoptic'
    assert 'Task: panoptic, 2 of 3 categories are things, as --things says. To change it: ' in (
        capsys.readouterr().out
    )


def test_weights_for_another_config_become_a_run(tmp_path, monkeypatch):
    """With another number of categories, class layers are initialized and all else is loaded."""
    monkeypatch.setattr(models, 'init', random_init)
    config = tiny.config(
        tmp_path, model__framework='upernet', data__name='folder', data__num_classes=0, ema=0.9
    )
    old = random_init(models.build(config, 5), 5, 1, (32, 32))
    with checkpoint.open_checkpoints(tmp_path / 'old', 1) as manager:
        checkpoint.save(manager, 7, old, None, {'class_names': list('vwxyz'), 'score': None})
    for kind in ('images', 'labels'):
        (tmp_path / kind / 'train').mkdir(parents=True)
        Image.fromarray(np.zeros((40, 80), np.uint8)).save(tmp_path / kind / 'train/0.png')
    (tmp_path / 'classes.txt').write_text('\n'.join('abcdefgh'))
    config.data.long_side = 64  # to follow the images
    convert.run(tmp_path / 'old', tmp_path / 'new', config, as_is=False)
    assert checkpoint.open_run(tmp_path / 'new').config.eval.size == (32, 64)
    run, model, variables = read(tmp_path / 'new')
    assert run['class_names'] == list('abcdefgh')
    assert set(variables) == {'params', 'batch_stats', 'ema'}
    jax.tree.map(np.testing.assert_array_equal, variables['ema'], variables['params'])
    fresh = random_init(model, 8, config.seed, (32, 32))['params']
    for name in fresh.keys() - {'classifier'}:
        jax.tree.map(np.testing.assert_array_equal, variables['params'][name], old['params'][name])
    jax.tree.map(
        np.testing.assert_array_equal,
        variables['params']['classifier']['classes'],
        fresh['classifier']['classes'],
    )


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
        ('preprocessor_config.json', {'size': {'shortest_edge': 64}}, 'lacks longest_edge'),
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
        ValueError, match='model.safetensors is not a safetensors file.*git without LFS'
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


def test_an_instance_run_starts_a_video_run(folder, tmp_path, monkeypatch):
    """By --mode=convert and by config.model.pretrained, also from Hugging Face's folder."""
    monkeypatch.setattr(models, 'init', random_init)
    instance = common.get_config()
    convert.run(folder, tmp_path / 'instance', instance, as_is=True, task='instance')
    tiny.write_videos(tmp_path / 'data')
    config = tiny.queries_config(
        tmp_path / 'data', task='video_instance', data__name='video_folder', data__num_classes=0
    )
    config.model.update(instance.model)
    expected = load_hf(folder)[1]['params']

    def check_start(params):
        decoder, theirs = dict(params['decoder']), dict(expected['decoder'])
        assert decoder.pop('classes')['embedding'].shape == (5, 32)
        del theirs['classes'], decoder['head'], decoder['rank']
        jax.tree.map(np.testing.assert_array_equal, decoder, theirs)
        for name in params.keys() - {'decoder'}:
            jax.tree.map(np.testing.assert_array_equal, params[name], expected[name])

    convert.run(tmp_path / 'instance', tmp_path / 'video', config, as_is=False)
    run, _, variables = read(tmp_path / 'video')
    assert run['class_names'] == list('abcd') and run['config']['task'] == 'video_instance'
    check_start(variables['params'])
    predictor = predict.load(tmp_path / 'video')
    results = list(predictor.video(tmp_path / 'data/videos/validation/video0'))
    assert len(results) == 6 and results[0].masks.shape[1:] == (32, 32)
    config.model.update(pretrained=str(folder), cosine=True)
    check_start(train.fresh_state(train.set_up(config)).model['params'])
