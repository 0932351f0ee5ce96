"""ADE20K-150: files in the official format made here, and three real annotations."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from rankseg_jax.data import IGNORE_LABEL, CorruptExample
from rankseg_jax.data.label_files import LabelWriter
from rankseg_jax.data.published import ade20k
from rankseg_jax.metrics.semantic import SemanticMetric
from tests import official_cases


def fill(root):
    """Three training and two validation images; label values 0, 1, 150 and others."""
    for folder, prefix, count in (('training', 'train', 3), ('validation', 'val', 2)):
        for i in range(1, count + 1):
            name = f'{folder}/ADE_{prefix}_{i:08}'
            official_cases.picture(
                root / f'ADEChallengeData2016/images/{name}.jpg', 30 + i, 40, seed=i + 10 * count
            )
            label = (
                np.random.default_rng(i + 10 * count)
                .choice([0, 1, 2, 77, 150], (30 + i, 40))
                .astype(np.uint8)
            )
            official_cases.values(root / f'ADEChallengeData2016/annotations/{name}.png', label)


class Ade20kTest(official_cases.Case):
    DATASET_CLASS = ade20k.Ade20k
    SPLITS = {'train': 3, 'validation': 2}
    fill = staticmethod(fill)


folder = official_cases.folder_fixture(fill)
open_split = partial(official_cases.open_split, ade20k.Ade20k)


def test_value_0_does_not_count_and_150_is_the_last_class(folder):
    source = open_split(folder)
    values = np.array(
        Image.open(folder / 'ADEChallengeData2016/annotations/training/ADE_train_00000002.png')
    ).astype(int)
    label = source.load(1)['label']
    assert source.ids[1] == 'ADE_train_00000002' and len(source.class_names) == 150
    assert (label[values == 0] == IGNORE_LABEL).all() and (label[values == 150] == 149).all()
    assert source.class_names[0] == 'wall' and (label[values == 1] == 0).all()
    assert source.published == 20_210 and source.category_ids == tuple(range(1, 151))


def test_records_hold_what_the_folder_holds(folder, tmp_path):
    builder = official_cases.prepare(ade20k.Ade20k, folder, tmp_path / 'records')
    official_cases.assert_same(ade20k.Ade20k, folder, tmp_path / 'records')
    record = builder.as_data_source('train')[1]
    assert record['labels'].dtype == np.uint16 and set(np.unique(record['labels'])) <= {
        0,
        1,
        76,
        149,
        65535,
    }
    assert record['file_name'] == b'ADE_train_00000002' and record['original_size'].tolist() == [
        32,
        40,
    ]
    assert (
        builder.info.metadata['names'][149] == 'flag' and builder.info.metadata['ids'][149] == 150
    )


def test_a_value_above_150_is_refused_by_name(folder):
    path = folder / 'ADEChallengeData2016/annotations/training/ADE_train_00000001.png'
    official_cases.values(path, np.full((31, 40), 151, np.uint8))
    with pytest.raises(ValueError, match=r'ADE_train_00000001.png: label values \[151\]'):
        open_split(folder).load(0)


def test_a_picture_of_another_size_is_corrupt(folder):
    official_cases.picture(
        folder / 'ADEChallengeData2016/images/training/ADE_train_00000001.jpg', 5, 6
    )
    with pytest.raises(CorruptExample, match='5 x 6'):
        open_split(folder).load(0)


def test_real_annotations(tmp_path):
    sample = official_cases.SAMPLES / 'sceneparsing'
    root = tmp_path / 'ADEChallengeData2016'
    (root / 'annotations').mkdir(parents=True)
    (root / 'annotations/validation').symlink_to(sample / 'sampleData/annotations')
    for path in (root / 'annotations/validation').iterdir():
        columns, rows = Image.open(path).size
        official_cases.blank_image(root / f'images/validation/{path.stem}.jpg', rows, columns)
    source = open_split(root, 'validation')
    rows = [
        line.split('\t') for line in (sample / 'objectInfo150.txt').read_text().splitlines()[1:]
    ]
    assert [int(row[0]) for row in rows] == list(source.category_ids)
    # The names of the list are synonyms in their order; two of ours are from a later spelling.
    ours_in_theirs = [name in row[4] for name, row in zip(source.class_names, rows, strict=True)]
    assert len(source) == 3 and sum(ours_in_theirs) >= 140
    metric = SemanticMetric.empty(150)
    for index, name in enumerate(source.ids):
        values = np.array(Image.open(sample / f'sampleData/annotations/{name}.png'))
        label = source.load(index)['label']
        np.testing.assert_array_equal(np.where(label == IGNORE_LABEL, 0, label + 1), values)
        # The benchmark's example submission is the ground truth, so ours must equal it.
        LabelWriter(tmp_path / 'submission', source).write(name, label)
        submitted = np.array(Image.open(tmp_path / f'submission/{name}.png'))
        assert submitted.dtype == np.uint8
        np.testing.assert_array_equal(
            submitted, np.array(Image.open(sample / f'sampleData/predictions/{name}.png'))
        )
        metric = metric.merge(
            SemanticMetric.from_batch(label[None], submitted[None].astype(int) - 1, 150)
        )
    assert metric.compute(source.class_names)['mIoU'] == 1
