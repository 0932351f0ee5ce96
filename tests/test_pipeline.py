import collections
import itertools
import subprocess
import sys
import textwrap
import threading

import jax
import numpy as np
import pytest

from configs import common
from rankseg_jax import tasks
from rankseg_jax.data import IGNORE_LABEL, CorruptExample, Source, get_source, pipeline, reading


class Numbers(Source):
    """Example i has i at pixel (1, 1) and noise elsewhere; its label is i % 5 but for a corner."""

    class_names = tuple('abcde')

    def __init__(self, count, corrupt=(), sizes=((8, 8),), error=CorruptExample):
        self.ids = [f'{i}.jpg' for i in range(count)]
        self.corrupt, self.sizes, self.error = corrupt, sizes, error
        self.loaded = collections.Counter()
        self.lock = threading.Lock()

    def load(self, index):
        with self.lock:
            self.loaded[index] += 1
        if index in self.corrupt:
            raise self.error(f'{self.ids[index]}: broken')
        size = self.sizes[index % len(self.sizes)]
        label = np.full(size, index % 5, np.int32)
        label[0, 0] = IGNORE_LABEL
        image = np.random.default_rng(index).integers(0, 256, (*size, 3)).astype(np.uint8)
        image[1, 1] = index % 256
        return {'image': image, 'label': label}


def plain_config(batch_size=4, **augment):
    """No augmentation, and images come out as they are stored."""
    config = common.get_config()
    config.batch_size = config.eval.batch_size = batch_size
    config.data.mean, config.data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    config.eval.size = (16, 16)
    settings = {
        'crop_size': (8, 8),
        'scale_range': (1.0, 1.0),
        'flip': 0.0,
        'photometric': False,
        **augment,
    }
    config.augment.update(settings)
    return config


def train_batches(source, config, *, start_step):
    task = tasks.from_source(config, source)
    return pipeline.train_batches(source, config, task, start_step=start_step)


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], other[name])


def test_example_indices_visit_each_once_an_epoch():
    stream = np.concatenate([reading.example_indices(10, 3, step, 4) for step in range(10)])
    epochs = stream.reshape(4, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = np.concatenate([reading.example_indices(10, 4, step, 4) for step in range(10)])
    assert (stream != other).any()


def test_batches_hold_the_indices_that_example_indices_names():
    source, config = Numbers(10), plain_config()
    for step, batch in enumerate(take(train_batches(source, config, start_step=0), 8)):
        indices = reading.example_indices(10, config.seed, step, 4)
        np.testing.assert_array_equal(batch['image'][:, 1, 1, 0], indices)
        np.testing.assert_array_equal(batch['label'][:, 1, 1], indices % 5)
        assert (batch['label'][:, 0, 0] == IGNORE_LABEL).all()
        assert batch['image'].dtype == np.float32 and batch['label'].dtype == np.int32
        assert batch['mask'].all() and batch['mask'].dtype == bool


@pytest.mark.parametrize('workers', [0, 1, 4])
def test_same_seed_gives_the_same_batches(workers):
    config = common.get_config()
    config.batch_size, config.augment.crop_size = 4, (16, 16)
    first = take(train_batches(Numbers(10), config, start_step=0), 6)
    config.data.num_workers = workers
    again = take(train_batches(Numbers(10), config, start_step=0), 6)
    for batch, other in zip(first, again, strict=True):
        assert_same(batch, other)
    config.seed = 1
    other = take(train_batches(Numbers(10), config, start_step=0), 1)[0]
    assert (first[0]['image'] != other['image']).any()


def test_one_example_is_augmented_anew_each_time():
    config = common.get_config()
    config.batch_size, config.augment.crop_size = 8, (16, 16)
    batches = take(train_batches(Numbers(1, sizes=((24, 24),)), config, start_step=0), 3)
    images = {image.tobytes() for batch in batches for image in batch['image']}
    assert len(images) == 24


def test_resume_continues_bit_by_bit_and_reads_nothing_before():
    config = common.get_config()
    config.batch_size, config.augment.crop_size = 3, (16, 16)
    config.data.num_workers = 2
    whole = take(train_batches(Numbers(1000), config, start_step=0), 12)
    source = Numbers(1000)
    resumed = take(train_batches(source, config, start_step=7), 5)
    for batch, other in zip(whole[7:], resumed, strict=True):
        assert_same(batch, other)
    skipped = {i for step in range(7) for i in reading.example_indices(1000, 0, step, 3)}
    assert not skipped & set(source.loaded)


def test_source_smaller_than_a_batch_is_repeated():
    batch = next(train_batches(Numbers(3), plain_config(batch_size=8), start_step=0))
    assert batch['mask'].all()
    counts = np.bincount(batch['image'][:, 1, 1, 0].astype(int), minlength=3)
    assert counts.sum() == 8 and counts.min() >= 2


def test_empty_source():
    with pytest.raises(ValueError, match=r"split 'train' .* no example"):
        train_batches(Numbers(0), plain_config(), start_step=0)


def pretend_hosts(monkeypatch, index, count):
    monkeypatch.setattr(jax, 'process_index', lambda: index)
    monkeypatch.setattr(jax, 'process_count', lambda: count)


def test_train_shards_make_up_the_global_batch(monkeypatch):
    config = common.get_config()
    config.batch_size, config.augment.crop_size = 4, (16, 16)
    whole = take(train_batches(Numbers(10), config, start_step=2), 4)
    shards = []
    for host in range(2):
        pretend_hosts(monkeypatch, host, 2)
        shards.append(take(train_batches(Numbers(10), config, start_step=2), 4))
    for batch, *parts in zip(whole, *shards, strict=True):
        assert_same(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})


def test_hosts_must_share_a_batch_evenly(monkeypatch):
    pretend_hosts(monkeypatch, 0, 3)
    with pytest.raises(ValueError, match='config.batch_size = 4 .* 3 hosts'):
        train_batches(Numbers(10), plain_config(), start_step=0)


def test_corrupt_example_is_named_once_and_masked(caplog):
    source, config = Numbers(6, corrupt=(2,)), plain_config(batch_size=6)
    with caplog.at_level('WARNING', logger='absl'):
        batches = take(train_batches(source, config, start_step=0), 3)
    for step, batch in enumerate(batches):
        bad = reading.example_indices(6, 0, step, 6) == 2
        np.testing.assert_array_equal(batch['mask'], ~bad)
        assert (batch['label'][bad] == IGNORE_LABEL).all() and not batch['image'][bad].any()
    assert [record.message for record in caplog.records].count(
        'Skipping corrupt example 1: 2.jpg: broken'
    ) == 1


def test_more_corrupt_examples_than_allowed_stop_with_their_names():
    config = plain_config()
    config.data.max_corrupt = 2
    batches = train_batches(Numbers(8, corrupt=(1, 4, 6)), config, start_step=0)
    with pytest.raises(ValueError, match='3 examples .*max_corrupt = 2') as caught:
        take(batches, 10)
    for name in ('1.jpg', '4.jpg', '6.jpg'):
        assert name in str(caught.value)
    config.data.max_corrupt = 3
    assert len(take(train_batches(Numbers(8, (1, 4, 6)), config, start_step=0), 10)) == 10


@pytest.mark.parametrize('error', [ValueError, KeyError, RuntimeError])
def test_other_errors_come_out_as_they_are(error, capfd):
    source = Numbers(8, corrupt=(3,), error=error)
    with pytest.raises(error, match='3.jpg: broken'):
        take(train_batches(source, plain_config(), start_step=0), 4)
    assert 'tensorflow' not in capfd.readouterr().err


def test_image_and_label_of_different_size_are_refused():
    class Crooked(Numbers):
        def load(self, index):
            return {**super().load(index), 'label': np.zeros([7, 8], np.int32)}

    with pytest.raises(ValueError, match=r'\.jpg: image \(8, 8, 3\) and label \(7, 8\)'):
        next(train_batches(Crooked(4), plain_config(), start_step=0))


def test_process_ends_while_examples_are_being_loaded():
    # TensorFlow waits for threads that the exiting interpreter has killed, unless stopped before.
    program = """
        import time
        import numpy as np
        from configs import common
        from rankseg_jax import tasks
        from rankseg_jax.data import Source, pipeline

        class Slow(Source):
            class_names, ids = 'ab', list('abcd')
            def load(self, index):
                time.sleep(0.2)
                return {'image': np.zeros([8, 8, 3], np.uint8), 'label': np.zeros([8, 8], np.int32)}

        config = common.get_config()
        config.batch_size = 2
        config.augment.crop_size = (8, 8)
        task = tasks.from_source(config, Slow())
        batches = pipeline.train_batches(Slow(), config, task, start_step=0)
        next(batches)
        print('done')
    """
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == 'done\n'


def test_get_source_names_the_data_sets():
    data = common.get_config().data
    data.name = 'camvidd'
    with pytest.raises(ValueError, match="'camvidd' .* camvid, .*folder") as caught:
        get_source(data, 'train')
    assert 'pipeline' not in str(caught.value) and 'transforms' not in str(caught.value)


def test_sources_open_without_tensorflow():
    program = """
        import sys
        import rankseg_jax.data.camvid, rankseg_jax.data.folder
        assert 'tensorflow' not in sys.modules
    """
    subprocess.run([sys.executable, '-c', textwrap.dedent(program)], timeout=60, check=True)
