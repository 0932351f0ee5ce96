"""Batches for evaluation and prediction."""

import itertools
import threading
import time

import jax
import numpy as np
import pytest

from rankseg_jax.data import IGNORE_LABEL, batching, fitting
from tests.test_pipeline import Numbers, plain_config


def batches(source, config, num_devices=1):
    return list(batching.eval_batches(source, config, num_devices))


def test_empty_source():
    with pytest.raises(ValueError, match=r"split 'validation' .* no example"):
        batches(Numbers(0), plain_config())


@pytest.mark.parametrize('count, hosts', [(10, 1), (8, 1), (1, 1), (10, 2), (1, 2), (13, 4)])
def test_every_example_is_seen_once_over_all_hosts(monkeypatch, count, hosts):
    seen = []
    for host in range(hosts):
        monkeypatch.setattr(jax, 'process_index', lambda host=host: host)
        monkeypatch.setattr(jax, 'process_count', lambda: hosts)
        source = Numbers(count)
        for batch in batches(source, plain_config(batch_size=4)):
            assert len(batch['mask']) == 4 // hosts
            seen += batch['index'][batch['mask']].tolist()
            assert (batch['index'][~batch['mask']] == -1).all()
            assert not batch['views'][0]['image'][~batch['mask']].any()
            assert (batch['label'][~batch['mask']] == IGNORE_LABEL).all()
        assert sum(source.loaded.values()) == len(range(host, count, hosts))
    assert sorted(seen) == list(range(count))


def test_a_batch_gives_each_device_as_many():
    found = batches(Numbers(10), plain_config(), num_devices=3)
    assert [len(batch['mask']) for batch in found] == [6, 6]


def test_labels_keep_their_size_on_a_canvas():
    sizes = ((30, 50), (65, 20), (128, 64))
    found = batches(Numbers(6, sizes=sizes), plain_config(batch_size=2))
    assert [batch['label'].shape[1:] for batch in found] == [(128, 64), (128, 64), (128, 64)]
    assert batches(Numbers(1, sizes=sizes), plain_config(batch_size=2))[0]['label'].shape == (
        2,
        64,
        64,
    )
    for batch in found:
        (view,) = batch.pop('views')
        assert view['image'].shape == (2, 16, 16, 3) and view['image'].dtype == np.float32
        for label, size, index, content in zip(
            batch['label'], batch['size'], batch['index'], view['content'], strict=True
        ):
            rows, columns = sizes[index % 3]
            assert tuple(size) == (rows, columns)
            expected = np.full(label.shape, IGNORE_LABEL)
            expected[:rows, :columns] = index % 5
            expected[0, 0] = IGNORE_LABEL
            np.testing.assert_array_equal(label, expected)
            assert max(content) == 16
        assert {name: batch[name].dtype.name for name in batch} == {
            'label': 'int32',
            'size': 'int32',
            'index': 'int32',
            'mask': 'bool',
        }


def test_images_of_any_size_are_batched_with_their_like_and_never_padded_to_others():
    """With `base_size`, each device gets one image, of the shape that it has alone."""
    sizes = ((40, 60), (60, 40), (33, 90), (64, 64), (200, 10))
    config = plain_config()
    config.eval.base_size = (48, 100)
    source = Numbers(23, sizes=sizes)
    seen = []
    for batch in batches(source, config, num_devices=2):
        (view,) = batch['views']
        for place in np.flatnonzero(batch['mask']):
            seen.append(int(batch['index'][place]))
            alone = fitting.eval_views(source.load(seen[-1])['image'], config)[0]
            np.testing.assert_array_equal(view['image'][place], alone['image'])
    assert sorted(seen) == list(range(23))


def test_examples_that_wait_for_their_like_are_few():
    waiting = set()

    def examples():
        for index in range(100):
            waiting.add(index)
            view = {'image': np.zeros((index + 1, 1, 3)), 'content': np.ones(2)}
            yield {'views': (view,), 'size': (1, 1), 'index': index}

    most = 0
    for batch in batching.batches(examples(), 2):
        most = max(most, len(waiting))
        waiting -= set(batch['index'].tolist())
    assert most <= batching.HELD * 2 + 1 and not waiting


def test_corrupt_examples_are_named_and_left_out(caplog):
    with caplog.at_level('WARNING', logger='absl'):
        found = batches(Numbers(5, corrupt=(1,)), plain_config(batch_size=3))
    assert [batch['index'].tolist() for batch in found] == [[0, 2, 3], [4, -1, -1]]
    messages = [record.message for record in caplog.records]
    assert messages == ['Skipping corrupt example 1: 1.jpg: broken']


def test_more_corrupt_examples_than_allowed_stop_with_their_names():
    config = plain_config()
    config.data.max_corrupt = 1
    with pytest.raises(ValueError, match='2 examples .*max_corrupt = 1') as caught:
        batches(Numbers(8, corrupt=(1, 4)), config)
    assert '1.jpg' in str(caught.value) and '4.jpg' in str(caught.value)


@pytest.mark.parametrize('error', [ValueError, KeyError])
def test_other_errors_come_out_as_they_are(error):
    with pytest.raises(error, match='3.jpg: broken'):
        batches(Numbers(8, corrupt=(3,), error=error), plain_config())


def test_threads_read_ahead_in_order_and_not_too_far():
    started, lock = [], threading.Lock()

    def read(item):
        with lock:
            started.append(item)
        time.sleep(0.001 * (item % 3))
        return item

    found = []
    for item in batching.read_ahead(read, itertools.count(), ahead=5, workers=3):
        found.append(item)
        assert len(started) <= len(found) + 6
        if item == 40:
            break
    assert found == list(range(41))


def test_delayed_starts_the_next_before_it_gives_one():
    events = []

    def items():
        for i in range(3):
            events.append(f'start {i}')
            yield i

    for item in batching.delayed(items()):
        events.append(f'use {item}')
    assert events == ['start 0', 'start 1', 'use 0', 'start 2', 'use 1', 'use 2']
