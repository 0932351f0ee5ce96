"""--mode=publish: folders for the Hugging Face hub, which transformers and --mode=convert read."""

import json
import re
import shutil
from functools import partial
from unittest import mock

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from safetensors.numpy import load_file, save_file

from configs import common
from rankseg_jax import (
    checkpoint,
    cli,
    convert,
    evaluate,
    models,
    pretrained,
    processes,
    publish,
    sharding,
    tasks,
)
from rankseg_jax.backbones import resnet, vit
from rankseg_jax.data import fitting
from rankseg_jax.pretrained import hf, hub, processor
from tests import tiny
from tests.helpers import mend_torchvision, random_init, relative_error
from tests.test_eomt_hf import PADDED, SIDE, WINDOWS
from tests.test_processor import PROCESSORS, described

NAMES = ('wall', 'tree', 'sky', 'person', 'car')
resnet.VARIANTS['resnet_tiny'] = partial(resnet.ResNet, (1, 1, 1, 2), bottleneck=True, width=4)
vit.VARIANTS['dinov2_tiny'] = partial(
    vit.ViT, 16, 32, 2, 2, num_registers=4, codes='patches', layer_scale=1e-5
)
vit.VARIANTS['dinov3_tiny'] = partial(
    vit.ViT,
    patch=8,
    width=32,
    num_layers=2,
    num_heads=2,
    num_registers=2,
    codes='rotary',
    epsilon=1e-5,
    layer_scale=1e-5,
    gated=True,
    mlp_dim=48,
    unbiased=('key',),
)
# Of models without RankSeg that Hugging Face has, too.
MODELS = {
    'swin': {'model__backbone': 'swin_tinier'},
    'resnet': {'model__backbone': 'resnet_tiny', 'model__frozen_norm': True},
    'dinov2': {'model__framework': 'eomt', 'model__backbone': 'dinov2_tiny'},
    'dinov3': {'model__framework': 'eomt', 'model__backbone': 'dinov3_tiny'},
}


def baseline(**overrides):
    """The config of a small Mask2Former or EoMT, which computes and trains in its own ways."""
    own = {'rankseg': None, 'model__joint_blocks': 1, 'model__cosine': False, 'ema': 0.9}
    return tiny.queries_config('/data', **own | overrides)


def save_run(config, workdir, class_names=NAMES, things=()):
    """Saves a run with random variables, in which averages differ; returns what predicts."""
    count = len(class_names)
    model = models.build(config, count)
    variables = random_init(model, count, 0, config.augment.crop_size)
    if 'mask_probability' in variables['batch_stats']:  # in between, transformers draws
        variables['batch_stats']['mask_probability'] = np.ones(
            config.model.joint_blocks, np.float32
        )
    if config.ema:
        variables['ema'] = random_init(model, count, 1, config.augment.crop_size)['params']
    run = {
        'config': config.to_dict(),
        'class_names': list(class_names),
        'things': list(things),
        'next_step': 7,
        'score': None,
    }
    with checkpoint.open_checkpoints(workdir, keep=1) as manager:
        checkpoint.save(manager, 7, variables, None, run)
    return {
        'params': variables.get('ema', variables['params']),
        'batch_stats': variables['batch_stats'],
    }


def check_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(expected))


def check_returns(folder, workdir, expected, config, things=()):
    """A published run becomes the run that it was, with averaged parameters."""
    convert.run(folder, workdir, common.get_config(), as_is=True)
    saved = checkpoint.open_run(workdir)
    assert saved.step == 0 and saved.class_names == NAMES and saved.things == tuple(things)
    assert json.loads(saved.config.to_json()) == json.loads(config.to_json())
    model = models.build(saved.config, len(NAMES))
    found = models.restore(saved, model, saved.config, sharding.make_mesh(1))
    if config.ema:
        check_equal(found.pop('ema'), expected['params'])
    check_equal(found, expected)


@pytest.fixture(scope='module')
def transformers():
    pytest.importorskip('torch')
    found = pytest.importorskip('transformers')
    mend_torchvision()
    return found


@pytest.mark.parametrize('name', MODELS)
def test_transformers_loads_a_baseline(name, transformers, tmp_path):
    import torch

    config = baseline(task='panoptic', **MODELS[name])
    config.model.drop_path, config.loss.no_object = 0.1, 0.2
    things = (False, False, False, True, True)
    expected = save_run(config, tmp_path / 'run', things=things)
    folder = publish.run(config, tmp_path / 'run', tmp_path / 'hub')
    theirs, info = transformers.AutoModelForUniversalSegmentation.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    assert theirs.config.id2label == dict(enumerate(NAMES))
    np.testing.assert_allclose(theirs.criterion.empty_weight, [1] * 5 + [0.2])

    model = models.build(config, len(NAMES))
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    ours = jax.jit(partial(model.apply, train=False))(expected, images)
    with torch.no_grad():
        output = theirs.eval()(torch.tensor(images).permute(0, 3, 1, 2))
    assert relative_error(ours.class_logits, output.class_queries_logits) < 1e-4
    assert relative_error(ours.mask_logits, output.masks_queries_logits) < 1e-4

    theirs.save_pretrained(tmp_path / 'again')
    written, again = (load_file(x / 'model.safetensors') for x in (folder, tmp_path / 'again'))
    check_equal(written, again)
    check_returns(folder, tmp_path / 'returned', expected, config, things)


def test_images_of_a_baseline_are_seen_alike(transformers, tmp_path):
    config = baseline(model__backbone='swin_tinier', ema=0.0)
    config.eval.update(
        base_size=(40, 70), stretch=True, resample='bilinear', mask_size=(384, 384), batch_size=1
    )
    config.data.update(antialias=True, mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
    save_run(config, tmp_path / 'run')
    folder = publish.run(config, tmp_path / 'run', tmp_path / 'hub')
    assert 'may differ' not in (folder / 'README.md').read_text('utf-8')
    theirs = transformers.AutoImageProcessor.from_pretrained(folder)
    colors = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    image = Image.fromarray(colors).resize((90, 60), Image.Resampling.BICUBIC)
    (pixels,) = theirs(image, return_tensors='np')['pixel_values']
    (view,) = fitting.eval_views(np.asarray(image), config)
    assert pixels.shape == (3, 64, 64)
    np.testing.assert_allclose(view['image'].transpose(2, 0, 1), pixels, atol=0.02)


@pytest.mark.parametrize(
    'model_type, options',
    [('mask2former', options) for options in PROCESSORS.values()]
    + [('eomt', options) for options in (WINDOWS, PADDED, WINDOWS | {'size': PADDED['size']}, {})],
)
def test_processors_of_converted_models_are_written_as_they_were(model_type, options):
    config = described(options, model_type)
    config.augment.crop_size = (SIDE, SIDE)
    written, different = processor.described(config, model_type)
    assert not different
    found = processor.input_keys(json.loads(json.dumps(written)), model_type)
    for section, keys in processor.input_keys(options, model_type).items():
        assert all(processor.same(found[section][key], value) for key, value in keys.items())


@pytest.mark.parametrize('task', ['semantic', 'video_instance'])
def test_a_run_with_ranks_returns(task, tmp_path, capsys):
    config = baseline(task=task, rankseg=common.get_config().rankseg, model__backbone='tinier')
    config.rankseg.update(num_selected=5, train_selected=0, layer=1)  # κ = K
    things = (True,) * 5 if task == 'video_instance' else ()
    expected = save_run(config, tmp_path / 'run', things=things)
    folder = publish.run(config, tmp_path / 'run', tmp_path / 'hub')
    assert 'own, not that of Hugging Face: RankSeg is known to this' in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert names == {'model.safetensors', 'config.json', 'README.md'}
    check_returns(folder, tmp_path / 'returned', expected, config, things)


@pytest.mark.parametrize(
    'overrides, line',
    [
        ({'task': 'video_instance'}, 'it sees clips'),
        (MODELS['dinov2'] | {'model__cosine': True}, 'model.cosine is True, there False'),
        ({'model__backbone': 'tiny'}, "model.backbone.stem is 'small', there 'imagenet'"),
        ({'model__backbone': 'beit_tiny'}, 'its Mask2Former is not built on a BEiT'),
        ({'model__framework': 'maskformer'}, 'MaskFormer is not written in its format'),
        (
            MODELS['dinov2'] | {'augment__crop_size': (32, 64)},
            r'model.backbone.image_size is \(32, 64\), there \(32, 32\)',
        ),
        (MODELS['dinov2'] | {'augment__crop_size': (40, 40)}, 'have whole patches; 40 pixels'),
    ],
)
def test_why_a_run_is_not_in_hugging_faces_format(overrides, line, capsys):
    config = baseline(**overrides)
    task = tasks.build(config, NAMES, (True,) * len(NAMES))
    assert publish.in_hugging_faces(config, task, models.build(config, len(NAMES))) is None
    assert re.search(f"Format: this library's own, not .*{line}", capsys.readouterr().out)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A run with RankSeg as a folder, by flags."""
    monkeypatch.setattr(processes, 'start', lambda **_: None)
    config = tiny.config('/data', data__num_classes=300)
    save_run(config, tmp_path / 'run', [f'class {i}' for i in range(300)])
    scores = {'mIoU': 0.45678, 'PQ': None, 'recall': 1.0, 'classes': [{'name': 'a', 'IoU': 0.5}]}
    settings = evaluate.settings(config)
    other = settings | {'rankseg': settings['rankseg'] | {'oracle': True}}
    for name, content in {
        'validation_7': scores | {'settings': settings},
        'validation_6': {'mIoU': 0.1, 'settings': settings},
        'unseen_7': {'mIoU': 0.9, 'settings': other},
    }.items():
        (tmp_path / f'run/scores_{name}.json').write_text(json.dumps(content))
    (tmp_path / 'run/predictions').mkdir()
    Image.new('RGB', (4, 4)).save(tmp_path / 'run/predictions/grid.png')
    flags.FLAGS(['main.py', f'--workdir={tmp_path / "run"}'])
    with flagsaver.flagsaver(mode='publish'):
        cli.run(None, tmp_path / 'run')
    return tmp_path / 'run' / 'hub'


def test_the_model_card(published, tmp_path):
    hub = pytest.importorskip('huggingface_hub')
    card = hub.ModelCard.load(published / 'README.md')  # checks the metadata
    assert (card.data.license, card.data.library_name) == ('unknown', 'rankseg_jax')
    assert card.data.datasets == ['emoji_scenes']
    results = {result.metric_name: result for result in card.data.eval_results}
    assert results['mIoU'].metric_type == 'mean_iou' and results['mIoU'].metric_value == 45.68
    assert results['mIoU'].dataset_split == 'validation' and set(results) == {'mIoU', 'recall'}
    for text in ('300', 'κ = 3', '![Drawings of the split validation](grid.png)', '45.68'):
        assert text in card.text
    assert 'transformers' not in card.text
    assert (published / 'grid.png').read_bytes().startswith(b'\x89PNG')
    text = (published / 'README.md').read_text('utf-8')
    (published / 'README.md').write_text(text.replace('license: unknown', 'license: cc-by-4.0'))
    with flagsaver.flagsaver(mode='publish'):
        cli.run(None, tmp_path / 'run')
    card = hub.ModelCard.load(published / 'README.md')
    assert card.data.license == 'cc-by-4.0' and 'are under cc-by-4.0' in card.text


def test_a_folder_starts_a_run(published, tmp_path):
    """By config.model.pretrained, in shards too."""
    arrays = load_file(published / 'model.safetensors')
    (published / 'model.safetensors').unlink()
    shards = {name: f'part{i % 2}.safetensors' for i, name in enumerate(arrays)}
    for shard in set(shards.values()):
        part = {name: x for name, x in arrays.items() if shards[name] == shard}
        save_file(part, published / shard)
    index = published / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': shards}))
    found = pretrained.read_variables(published)
    saved = checkpoint.read_model(tmp_path / 'run')
    check_equal(found['params'], saved['params'])
    for content in ('{}', '{"weight_map": []}', '[]', '{x'):
        index.write_text(content)
        with pytest.raises(ValueError, match='model.safetensors.index.json'):
            pretrained.read_variables(published)
    names = [f'class {i}' for i in range(300)]
    assert pretrained.read_class_names(published) == names


def test_what_is_wrong_with_a_folder_is_named(published, tmp_path):
    content = json.loads((published / 'config.json').read_text())
    weights = (published / 'model.safetensors').read_bytes()

    def check(error, match, task=None):
        with pytest.raises(error, match=match):
            convert.run(published, tmp_path / 'new', common.get_config(), as_is=True, task=task)

    def write(**changes):
        (published / 'config.json').write_text(json.dumps(content | changes))

    check(ValueError, 'says its task itself: leave --task', task='panoptic')
    (published / 'model.safetensors').write_bytes(weights[: len(weights) // 2])
    check(ValueError, 'model.safetensors is not a safetensors file, or is damaged')
    (published / 'model.safetensors').unlink()
    check(FileNotFoundError, 'hub holds no model.safetensors')
    (published / 'model.safetensors').write_bytes(weights)
    write(class_names=content['class_names'][:299])
    check(ValueError, r'(?s)checkpoint \(300,.*a run of 299 categories, but hold other weights')
    write(things=[True])
    check(ValueError, 'config.json: things must be a list of 300 values, or empty')
    write(config={'model': {}})
    check(ValueError, 'describes no run of this version')
    changed = content['config'] | {'model': content['config']['model'] | {'backbone': 'vit_b99'}}
    write(config=changed)
    check(ValueError, "config.model.backbone = 'vit_b99' is unknown")
    (published / 'config.json').write_text(json.dumps({'library_name': 'rankseg_jax'}))
    check(ValueError, 'describes no run: it lacks class_names, config, things')
    (published / 'config.json').write_text(json.dumps({'model_type': 'bert'}))
    check(ValueError, "model_type = 'bert' is not supported")
    (published / 'config.json').write_text('{')
    check(ValueError, 'config.json is not JSON')
    shutil.rmtree(published)
    published.mkdir()
    (published / 'photo.jpg').write_text('')
    config = checkpoint.open_run(tmp_path / 'run').config
    with pytest.raises(ValueError, match='hub holds other files than a published run'):
        publish.run(config, tmp_path / 'run', published)


def test_a_publication_that_was_cut_off_is_none_and_is_made_again(published, tmp_path, monkeypatch):
    config = checkpoint.open_run(tmp_path / 'run').config
    with monkeypatch.context() as patch:
        patch.setattr(hub, 'save', mock.Mock(side_effect=OSError('the disk is full')))
        with pytest.raises(OSError, match='full'):
            publish.run(config, tmp_path / 'run', published)
    assert hub.read_run(published) is None and (published / 'model.safetensors').is_file()
    publish.run(config, tmp_path / 'run', published)
    assert hub.read_run(published)['class_names'][0] == 'class 0'


def test_names_of_files_are_those_that_are_downloaded(published):
    from fnmatch import fnmatch

    needed = [path.name for path in published.iterdir() if path.suffix in ('.json', '.safetensors')]
    for name in [*needed, 'rankseg_jax.json', 'preprocessor_config.json']:
        assert any(fnmatch(name, pattern) for pattern in hf.FILES)
