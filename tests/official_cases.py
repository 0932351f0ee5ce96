"""Shared by the tests of published data sets: TFDS's test case, and images and maps for folders."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

pytest.importorskip('dill')  # of tfds.testing

SAMPLES = Path(__file__).parent / 'golden/samples'  # official annotations, without the photos


class Case(tfds.testing.DatasetBuilderTestCase):
    """Prepares DATASET_CLASS from the files of `fill(root)`, compares it with SPLITS; see TFDS."""

    MOCK_OUT_FORBIDDEN_OS_FUNCTIONS = False
    SKIP_CHECKSUMS = True

    @classmethod
    def setUpClass(cls):
        root = Path(tfds.testing.make_tmp_dir())
        cls.fill(root)
        cls.EXAMPLE_DIR = str(root)
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        tfds.testing.rm_tmp_dir(cls.EXAMPLE_DIR)

    def _make_builder(self, config=None):
        # TFDS's case iterates with tf.data.
        return self.DATASET_CLASS(data_dir=self.tmp_dir, file_format='tfrecord')


def folder_fixture(fill):
    """A fixture: a folder with the files that `fill(root)` writes."""

    @pytest.fixture
    def folder(tmp_path):
        fill(tmp_path / 'data')
        return tmp_path / 'data'

    return folder


def picture(path, rows, columns, seed=0):
    """Writes a random JPEG and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)
    Image.fromarray(blocks).save(path, quality=95)


def blank_image(path, rows, columns):
    """Writes a gray image in place of a photo that may not be distributed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (columns, rows), (128, 128, 128)).save(path)


def real_panoptic(folder):
    """The real annotations of two images as the validation split of COCO panoptic."""
    root, sample = folder / 'coco', SAMPLES / 'coco_panoptic'
    (root / 'annotations').mkdir(parents=True)
    for image in json.loads((sample / 'panoptic_examples.json').read_text())['images']:
        blank_image(root / 'val2017' / image['file_name'], image['height'], image['width'])
    (root / 'panoptic_val2017').symlink_to(sample / 'panoptic_examples')
    (root / 'annotations/panoptic_val2017.json').symlink_to(sample / 'panoptic_examples.json')
    return root


def values(path, values):
    """Writes a map as PNG and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def open_split(builder_class, folder, split='train', num_classes=0):
    """The source of a split, from official files or from records."""
    config = SimpleNamespace(dir=str(folder), num_classes=num_classes)
    return builder_class.get_source(config, split)


def prepare(builder_class, folder, records):
    """The builder after plain TFDS's download_and_prepare."""
    builder = builder_class(data_dir=records)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(folder))
    )
    return builder


def assert_same(builder_class, folder, records, *splits):
    """Splits, train and validation if none is named, are the same in a folder and in records."""
    for split in splits or ('train', 'validation'):
        assert_same_source(*(open_split(builder_class, path, split) for path in (folder, records)))


def assert_same_source(straight, prepared):
    assert (
        straight.ids == prepared.ids
        and straight.class_names == prepared.class_names
        and straight.annotated == prepared.annotated
        and len(straight)
    )
    for index in range(len(straight)):
        one, other = straight.load(index), prepared.load(index)
        assert one['image'].dtype == np.uint8 and one['label'].dtype == np.int32
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
        if hasattr(straight, 'segments'):
            (ids, segments), (other_ids, other_segments) = (
                straight.segments(index),
                prepared.segments(index),
            )
            np.testing.assert_array_equal(ids, other_ids)
            assert segments == other_segments
        if hasattr(straight, 'instances'):
            assert json.dumps(straight.instances(index)) == json.dumps(prepared.instances(index))
    if hasattr(straight, 'videos'):
        assert straight.videos == prepared.videos
        for video, (_, frames) in enumerate(straight.videos):
            chosen = range(0, len(frames), 2)
            np.testing.assert_equal(straight.clip(video, chosen), prepared.clip(video, chosen))
            if hasattr(straight, 'tracks'):
                assert straight.video_id(video) == prepared.video_id(video)
                assert json.dumps(straight.tracks(video)) == json.dumps(prepared.tracks(video))


def assert_refused(builder_class, folder, records, error, match):
    """Reading a folder and preparing it end in this error, and preparing leaves no file behind."""
    with pytest.raises(error, match=match):
        for split in builder_class.PUBLISHED:
            open_split(builder_class, folder, split).load(0)
    with pytest.raises(error, match=match):
        prepare(builder_class, folder, records)
    assert not [path for path in Path(records).rglob('*') if path.is_file()]


def class_pixels(source):
    """Pixels and images of each class, counted one by one."""
    pixels, images = ([0] * len(source.class_names) for _ in range(2))
    for index in range(len(source)):
        values, counts = np.unique(source.load(index)['label'], return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value >= 0:
                pixels[value] += count
                images[value] += 1
    return pixels, images


def change(path, function):
    """Changes a JSON file."""
    content = json.loads(path.read_text())
    function(content)
    path.write_text(json.dumps(content))
