import json
import math
import tracemalloc
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from rankseg_jax import data
from rankseg_jax.analysis import charts, cooccurrence, dataset, dataset_charts, statistics
from rankseg_jax.data import CorruptExample, Source
from tests import tiny

NAMES = (
    'sky',
    'a price of $5 or $\\frac$',
    'a name that is much too long to stand beside a chart',
    *'defgh',
)


class LabelMaps(Source):
    """Label maps as given; None cannot be read."""

    def __init__(self, labels, class_names=NAMES, **attributes):
        self.labels, self.class_names = labels, class_names
        self.ids = [f'image {i}' for i in range(len(labels))]
        vars(self).update(attributes)

    def load(self, index):
        if self.labels[index] is None:
            raise CorruptExample(f'image {index}: cut off')
        label = np.array(self.labels[index], np.int32)
        return {'image': np.zeros((*label.shape, 3), np.uint8), 'label': label}


def random_labels(seed, number=60, num_classes=8):
    """The last class is never seen, image 4 is all ignored, and image 6 cannot be read."""
    rng = np.random.default_rng(seed)
    labels = [
        rng.choice(np.arange(-1, num_classes - 1), [(4, 3), (2, 5)][i % 2]) for i in range(number)
    ]
    labels[4] = np.full((7, 1), -1)
    labels[6] = None
    return labels


def held_by(labels):
    return [set(label.ravel().tolist()) - {-1} for label in labels if label is not None]


def run(monkeypatch, output, train, validation, **overrides):
    """What `dataset.run` returns, after a look at its files."""
    config = tiny.config('', **overrides)
    sources = {config.data.train_split: train, config.data.eval_split: validation}
    monkeypatch.setattr(data, 'get_source', lambda data_config, split: sources[split])
    reports = dataset.run(config, output)
    # There is no NaN in the file.
    saved = json.loads((output / 'analysis.json').read_text(), parse_constant=pytest.fail)
    assert saved == reports
    return reports


@pytest.mark.parametrize('seed', range(3))
def test_a_description_equals_counting_by_hand(seed):
    labels = random_labels(seed)
    report, together = dataset.describe(LabelMaps(labels))
    read = [label for label in labels if label is not None]
    held, pixels = (
        held_by(labels),
        Counter(np.concatenate([label.ravel() for label in read]).tolist()),
    )
    assert report['images'] == 59 and report['unread'] == ['image 6: cut off']
    for c, row in enumerate(report['categories']):
        assert row == {
            'name': NAMES[c],
            'images': sum(c in classes for classes in held),
            'pixels': pixels[c],
        }
    assert report['never_seen'] == ['h']
    assert report['ignored'] == pytest.approx(pixels[-1] / sum(pixels.values()))
    sizes = {(row['rows'], row['columns']): row['images'] for row in report['sizes']}
    assert sizes == Counter(label.shape for label in read)
    assert report['categories_per_image']['histogram'] == [
        sum(len(classes) == n for classes in held) for n in range(max(map(len, held)) + 1)
    ]
    np.testing.assert_array_equal(
        together.toarray(),
        [[sum({a, b} <= classes for classes in held) for b in range(8)] for a in range(8)],
    )


@pytest.mark.parametrize('number', [1, 7, 99, 100, 101, 150, 200, 1000])
def test_the_distribution_equals_counting_by_hand(number):
    numbers = np.random.default_rng(number).poisson(20, number)
    found = statistics.distribution(numbers)
    assert found['fewer_than_25'] == sum(1 for n in numbers if n < 25) / number
    assert found['p99'] == min(
        n for n in numbers.tolist() if sum(1 for m in numbers if m <= n) * 100 >= 99 * number
    )
    assert (found['min'], found['max']) == (min(numbers), max(numbers))
    assert statistics.distribution([24, 25, 26, 3])['fewer_than_25'] == 0.5


def presence_with_structure(number):
    """bool [number, 30]: classes in groups, frequent and rare, the last in all images."""
    rng = np.random.default_rng(number)
    group = rng.integers(0, 3, number)
    return np.stack(
        [
            rng.random(number)
            < (0.9 if c == 29 else 0.4 * 0.85**c if c % 4 == 3 else 0.6 * (group == c % 4))
            for c in range(29)
        ]
        + [np.ones(number, bool)],
        1,
    )


@pytest.mark.filterwarnings('ignore:A single label')  # one in all images
@pytest.mark.parametrize('number', [40, 700, 7300])
def test_pairs_equal_scikit_learn_and_their_definitions(number):
    metrics = pytest.importorskip('sklearn.metrics')
    present = presence_with_structure(number)
    names = [f'c{c}' for c in range(30)]
    found = cooccurrence.pairs(
        cooccurrence.count(sparse.csr_array(present.astype(np.int32))), number, names
    )
    least = max(5, -(-number // 1000))
    assert found['least_images'] == least
    meet, bound = [], []
    for a, b in combinations(range(30), 2):
        both = (present[:, a] & present[:, b]).sum()
        phi = metrics.matthews_corrcoef(present[:, a], present[:, b])
        if both:
            meet.append(both)
        if (
            both >= least
            and (~present[:, a] & ~present[:, b]).sum() >= least
            and phi * math.sqrt(number) >= 5
        ):
            bound.append((a, b, phi))
    assert [row['images'] for row in found['frequent']] == sorted(meet, reverse=True)[:50]
    expected = sorted(bound, key=lambda pair: -pair[2])[:50]
    np.testing.assert_allclose(
        [row['phi'] for row in found['bound']], [phi for _, _, phi in expected], atol=1e-12
    )
    assert {(row['a'], row['b']) for row in found['bound']} == {
        (f'c{a}', f'c{b}') for a, b, _ in expected
    }
    assert expected
    for row in found['frequent'] + found['bound']:
        a, b = (present[:, int(row[key][1:])] for key in 'ab')
        assert row['images'] == sum(a & b)
        assert row['b_given_a'] == pytest.approx(b[a].mean()) and row['a_given_b'] == pytest.approx(
            a[b].mean()
        )
        assert row['lift'] == pytest.approx((a & b).mean() / (a.mean() * b.mean()))
        assert row['phi'] == pytest.approx(metrics.matthews_corrcoef(a, b), abs=1e-12)


def test_neither_chance_nor_a_few_images_make_a_pair_bound():
    rng = np.random.default_rng(0)
    # Independent categories, each in 33 images or more.
    present = rng.random((5000, 60)) < 0.4 / np.arange(1, 61)
    present[:, 0] = True

    def bound():
        found = cooccurrence.pairs(
            cooccurrence.count(sparse.csr_array(present.astype(np.int32))), 5000, range(60)
        )
        return [(row['a'], row['b'], row['phi']) for row in found['bound']]

    assert bound() == []
    present[:, 58:] = False
    present[:4, 58:] = True  # never apart, but of too few images
    present[:, 56:58] = True
    present[:4, 56:58] = False  # the same, of their absence
    assert bound() == []
    present[:5, 58:] = True
    assert bound() == [(58, 59, 1.0)]


def test_a_class_in_every_image_and_few_images_say_nothing_of_pairs():
    for present in (
        np.ones((30, 3)),
        np.ones((1, 3)),
        np.eye(3),
        np.zeros((9, 3)),
        np.zeros((0, 3)),
    ):
        together = cooccurrence.count(sparse.csr_array(present.astype(np.int32)))
        found = cooccurrence.pairs(together, len(present), 'abc')
        assert found['bound'] == [] and all(row['phi'] == 0 for row in found['frequent'])


@pytest.mark.parametrize(
    'attributes, line, remedy',
    [
        ({}, '12 images; 8 categories', False),
        ({'published': None}, '12 images; 8 categories', False),
        ({'published': 12}, '12 images, as published; 8 categories', False),
        (
            {'published': 20210},
            '12 images, published: 20,210; 8 categories',
            '20,198 images fewer than published',
        ),
        (
            {'published': 10},
            '12 images, published: 10; 8 categories',
            '2 images more than published',
        ),
    ],
    ids=str,
)
def test_sizes_are_compared_with_the_published(
    attributes, line, remedy, monkeypatch, tmp_path, capsys
):
    labels = [np.zeros((2, 2))] * 12
    report = run(monkeypatch, tmp_path, LabelMaps(labels), LabelMaps(labels, **attributes))[
        'validation'
    ]
    text = capsys.readouterr().out
    assert f'validation: {line}\n' in text and report['published'] == attributes.get('published')
    assert len(report['warnings']) == bool(remedy)
    if remedy:
        assert remedy in report['warnings'][0] and 'docs/datasets.md' in report['warnings'][0]
        assert f'warning: {report["warnings"][0]}' in text


def test_unreadable_images_count_among_the_published(monkeypatch, tmp_path, capsys):
    labels = [np.zeros((2, 2)), None, np.ones((2, 2))]
    report = run(monkeypatch, tmp_path, LabelMaps(labels, published=3), LabelMaps(labels))['train']
    assert report['images'] == 2 and report['warnings'] == []
    assert 'train: 3 images (1 unreadable), as published; 8 categories' in capsys.readouterr().out


def test_what_is_printed_and_written(monkeypatch, tmp_path, capsys):
    labels = random_labels(0, 200)
    reports = run(
        monkeypatch,
        tmp_path,
        LabelMaps(labels),
        LabelMaps(labels[:20]),
        data__train_split='day/train',
    )
    captured = capsys.readouterr()
    assert captured.err == ''  # progress is for long runs
    held = held_by(labels)
    assert '100.00% of the images hold fewer than 25' in captured.out
    assert 'warning: 1 of 8 classes never seen: h\n' in captured.out
    together = sparse.load_npz(tmp_path / 'cooccurrence_day_train.npz')
    assert together.dtype.kind == 'i' and together[[0], [1]] == sum(
        {0, 1} <= classes for classes in held
    )
    first = reports['day/train']['cooccurrence']['frequent'][0]
    assert first['images'] == max(
        sum({a, b} <= classes for classes in held) for a, b in combinations(range(8), 2)
    )
    assert first['images'] == together[[NAMES.index(first['a'])], [NAMES.index(first['b'])]]
    for name in (
        'cooccurrence_day_train',
        'cooccurrence_validation',
        'categories_per_image',
        'long_tail',
    ):
        assert min(Image.open(tmp_path / f'{name}.png').size) > 200
    never = dataset.summary(
        dataset.describe(LabelMaps([np.zeros((1, 1))], '012345678'))[0] | {'problems': []}
    )
    assert 'warning: 8 of 9 classes never seen: 1, 2, 3, 4, 5 and 3 more' in never


def test_the_heat_map_shows_the_shares(monkeypatch, tmp_path):
    present = presence_with_structure(300)[:, :26]
    shown = []
    draw = charts.percentages
    monkeypatch.setattr(
        charts, 'percentages', lambda *args, **options: shown.append(args) or draw(*args, **options)
    )
    names = [f'路{c}' for c in range(26)]  # a character that matplotlib's own font lacks
    dataset_charts.draw_cooccurrence(
        cooccurrence.count(sparse.csr_array(present.astype(np.int32))),
        300,
        names,
        tmp_path / 'a.png',
    )
    ((shares, rows, columns),) = shown
    assert rows == columns == sorted(names, key=lambda name: -present[:, int(name[1:])].sum())[:20]
    for (i, j), share in np.ndenumerate(shares):
        a, b = (present[:, int(name[1:])] for name in (rows[i], columns[j]))
        assert share == pytest.approx(a.mean() if i == j else b[a].mean())


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
    'labels, class_names',
    [
        ([], 'ab'),
        ([None, None], 'ab'),
        ([np.full((3, 3), -1)] * 2, 'ab'),
        ([np.zeros((3, 3)), np.full((3, 3), -1)], 'a'),
        ([np.array([[0, 1], [2, -1]])], 'abcd'),
        ([np.zeros((3, 3))], NAMES[2:3]),
    ],
    ids=['empty', 'unreadable', 'all ignored', 'K = 1', 'one image', 'K = 1 and one image'],
)
def test_data_of_which_there_is_little(labels, class_names, monkeypatch, tmp_path, capsys):
    report = run(
        monkeypatch, tmp_path, LabelMaps(labels, class_names), LabelMaps(labels, class_names)
    )['train']
    held = held_by(labels)
    assert report['images'] == len(held) and len(report['unread']) == len(labels) - len(held)
    assert report['never_seen'] == [
        name for c, name in enumerate(class_names) if not any(c in classes for classes in held)
    ]
    assert sparse.load_npz(tmp_path / 'cooccurrence_train.npz').shape == (len(class_names),) * 2
    assert len(report['cooccurrence']['frequent']) == len(
        {pair for x in held for pair in combinations(sorted(x), 2)}
    )
    assert report['cooccurrence']['bound'] == []
    assert (tmp_path / 'long_tail.png').exists() == bool(held)
    assert (tmp_path / 'cooccurrence_train.png').exists() == any(held)
    assert f'train: {len(labels)} images' in capsys.readouterr().out


def test_memory_does_not_grow_with_images_times_classes():
    number, num_classes = 4000, 2000

    class Sparse(LabelMaps):
        def load(self, index):
            return {'label': np.array([[index % num_classes, index % 7, -1]], np.int32)}

    source = Sparse([0] * number, range(num_classes))
    tracemalloc.start()
    try:
        report, _ = dataset.describe(source)
        # Bytes: less than a dense mask would take.
        assert tracemalloc.get_traced_memory()[1] < number * num_classes
    finally:
        tracemalloc.stop()
    assert report['images'] == number


def test_videos_are_counted_apart_from_their_frames():
    source = LabelMaps(
        [np.zeros((2, 2), int)] * 3,
        videos=[('a', range(2)), ('b', range(2, 3))],
        published_videos=2806,
    )
    report, _ = dataset.describe(source)
    assert report['images'] == 3 and report['videos'] == 2 and report['published'] == 2806
    assert dataset.summary(report | {'problems': []})[0].startswith(
        '3 images of 2 videos, published: 2,806; '
    )
    assert report['warnings'][0].startswith('2,804 videos fewer than published')
