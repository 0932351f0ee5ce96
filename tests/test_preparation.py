"""Preparing records: kills, locks, faults of the disk, folders that are wrong or half there."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rankseg_jax.data import CorruptExample
from rankseg_jax.data.published import ade20k, preparation
from rankseg_jax.data.published.label_maps import to_labels
from tests import official_cases

ROOT = Path(__file__).parents[1]
open_split = partial(official_cases.open_split, ade20k.Ade20k)


@pytest.fixture
def folder(tmp_path):
    """Seven training images and two for validation."""
    root = tmp_path / 'data'
    for split, prefix, count in (('training', 'train', 7), ('validation', 'val', 2)):
        for i in range(count):
            name = f'{split}/ADE_{prefix}_{i:08}'
            official_cases.picture(
                root / f'ADEChallengeData2016/images/{name}.jpg', 20, 24, seed=10 * count + i
            )
            label = (
                np.random.default_rng(10 * count + i).integers(0, 151, (20, 24)).astype(np.uint8)
            )
            official_cases.values(root / f'ADEChallengeData2016/annotations/{name}.png', label)
    return root


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(preparation, 'SHARD', 2)


def prepare(folder, records):
    return official_cases.prepare(ade20k.Ade20k, folder, records)


def test_examples_are_read_several_at_once(folder, tmp_path, monkeypatch):
    read, together, both = ade20k.Ade20k.read, [], threading.Barrier(2, timeout=20)
    tried = iter(range(2))  # the first of each split is read alone

    def wait(entry):
        if next(tried, None) is None and entry[0] in ('ADE_train_00000000', 'ADE_train_00000001'):
            together.append(both.wait())  # BrokenBarrierError if the other one does not come
        return read(entry)

    monkeypatch.setattr(ade20k.Ade20k, 'read', wait)
    prepare(folder, tmp_path / 'records')
    assert sorted(together) == [0, 1]


def contents(records):
    """Names of the files that were prepared, and every example."""
    source = ade20k.Ade20k(data_dir=records).as_data_source()
    files = sorted(path.name for path in (records / 'ade20k/1.0.0').iterdir())
    return files, [
        {key: np.asarray(value).tolist() for key, value in example.items()}
        for split in ('train', 'validation')
        for example in source[split]
    ]


def left_behind(records):
    """What lies beside the finished data set."""
    return sorted(path.name for path in (records / 'ade20k').glob('*') if path.name != '1.0.0')


def test_parts_become_shards_in_order(folder, tmp_path):
    builder = prepare(folder, tmp_path / 'records')
    assert builder.info.splits['train'].shard_lengths == [2, 2, 2, 1]
    assert builder.info.splits['validation'].shard_lengths == [2]
    names = [record['file_name'].decode() for record in builder.as_data_source('train')]
    assert names == [f'ADE_train_{i:08}' for i in range(7)]
    assert not left_behind(tmp_path / 'records')


PROGRAM = """
import sys, time
import tensorflow_datasets as tfds
from rankseg_jax.data.published import ade20k, preparation
preparation.SHARD = 2
read = ade20k.Ade20k.read.__func__
def slow(cls, entry):
    if entry[0] == 'ADE_train_00000005':
        time.sleep(1000)
    return read(cls, entry)
ade20k.Ade20k.read = classmethod(slow)
builder = ade20k.Ade20k(data_dir=sys.argv[2])
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=sys.argv[1]))
"""


def test_a_killed_preparation_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    records = tmp_path / 'records'
    process = subprocess.Popen(
        [sys.executable, '-c', PROGRAM, str(folder), str(records)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    parts = records / 'ade20k/1.0.0.parts'
    done = [f'ade20k-train.array_record-0000{i}-of-00004' for i in (0, 1)]
    until = time.time() + 60
    while not all((parts / name).exists() for name in done):
        assert process.poll() is None and time.time() < until, process.stderr.read().decode()
        time.sleep(0.05)
    with pytest.raises(ValueError, match='another process is preparing'):
        prepare(folder, records)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not (records / 'ade20k/1.0.0').exists()
    assert len(left_behind(records)) == 2  # the parts, and TFDS's own folder

    read, names = ade20k.Ade20k.read, []
    monkeypatch.setattr(ade20k.Ade20k, 'read', lambda entry: names.append(entry[0]) or read(entry))
    prepare(folder, records)
    left = [*(f'ADE_train_{i:08}' for i in (4, 5, 6)), 'ADE_val_00000000', 'ADE_val_00000001']
    # The first of each split is read before anything is written.
    tried = ['ADE_train_00000000', 'ADE_val_00000000']
    assert sorted(names) == sorted(tried + left) and not left_behind(records)
    prepare(folder, tmp_path / 'at_once')
    assert contents(records) == contents(tmp_path / 'at_once')


def test_parts_of_other_files_are_not_taken(folder, tmp_path):
    records = tmp_path / 'records'
    path = folder / 'ADEChallengeData2016/images/validation/ADE_val_00000001.jpg'
    content = path.read_bytes()
    path.write_bytes(content[:300])
    with pytest.raises(CorruptExample, match='ADE_val_00000001'):
        prepare(folder, records)
    assert list((records / 'ade20k/1.0.0.parts').glob('*train*'))  # to go on with
    path.write_bytes(content)
    for kind in ('images', 'annotations'):  # now the folder holds one example less
        next(
            (folder / f'ADEChallengeData2016/{kind}/training').glob('ADE_train_00000003.*')
        ).unlink()
    prepare(folder, records)
    names = [
        record['file_name'].decode()
        for record in ade20k.Ade20k(data_dir=records).as_data_source('train')
    ]
    assert names == [f'ADE_train_{i:08}' for i in (0, 1, 2, 4, 5, 6)]


def test_what_reads_otherwise_than_written_is_refused(folder, tmp_path, monkeypatch):
    class Forgetful(preparation.ArrayRecordDataSource):
        def __getitem__(self, index):
            return super().__getitem__(index)[:-1]

    monkeypatch.setattr(preparation, 'ArrayRecordDataSource', Forgetful)
    with pytest.raises(ValueError, match='does not read back as it was written'):
        prepare(folder, tmp_path / 'records')
    assert not (tmp_path / 'records/ade20k/1.0.0').exists()


@pytest.mark.parametrize(
    'name, content',
    [('metadata.json', '{}'), ('metadata.json', ''), ('dataset_info.json', '{"name')],
)
def test_records_half_there_are_named(folder, tmp_path, name, content):
    path = Path(prepare(folder, tmp_path / 'records').data_path)
    (path / name).write_text(content)
    with pytest.raises(
        ValueError, match='records/ade20k.* holds records that are broken, incomplete'
    ):
        open_split(tmp_path / 'records')


def test_records_that_cannot_be_read_are_corrupt_examples(folder, tmp_path):
    path = (
        Path(prepare(folder, tmp_path / 'records').data_path)
        / 'ade20k-train.array_record-00001-of-00004'
    )
    content = bytearray(path.read_bytes())
    content[500] ^= 255
    for broken in (bytes(content), b'', None):
        path.unlink() if broken is None else path.write_bytes(broken)
        source = open_split(tmp_path / 'records')
        assert source.load(0)
        with pytest.raises(CorruptExample, match='ADE_train_00000002: its record cannot be read'):
            source.load(2)


def test_pictures_that_are_none_are_named(folder):
    path = folder / 'ADEChallengeData2016/images/training/ADE_train_00000003.jpg'
    path.write_bytes(b'none')
    with pytest.raises(
        CorruptExample,
        match='ADE_train_00000003: UnidentifiedImageError: cannot identify image file$',
    ):
        open_split(folder).load(3)


def test_records_in_another_format_are_named(folder, tmp_path):
    builder = ade20k.Ade20k(data_dir=tmp_path / 'records', file_format='tfrecord')
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(folder))
    )
    with pytest.raises(
        ValueError, match='not in the format array_record; remove that folder and prepare it again'
    ):
        open_split(tmp_path / 'records')


def test_a_full_disk_is_named(folder, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError('No space left on device')

    monkeypatch.setattr(preparation.file_adapters.ArrayRecordFileAdapter, 'write_examples', full)
    with pytest.raises(
        OSError, match=r'parts/ade20k-\S*tmp cannot be written or read back: No space left'
    ):
        prepare(folder, tmp_path / 'records')


def test_preparing_again_says_that_nothing_is_done(folder, tmp_path, capsys):
    for message in ('', 'ade20k/1.0.0 exists already; remove that folder'):
        ade20k.Ade20k.prepare(folder, tmp_path / 'records')
        assert message in capsys.readouterr().out


def test_progress_is_shown(folder, tmp_path, capsys):
    prepare(folder, tmp_path / 'records')
    assert '9/9' in capsys.readouterr().err


def test_a_wrong_folder_leaves_nothing(tmp_path):
    (tmp_path / 'data/somewhere').mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match='does not hold ade20k: neither images/training'
    ) as error:
        prepare(tmp_path / 'data', tmp_path / 'records')
    assert 'docs/datasets.md' in str(error.value) and 'ADEChallengeData2016/annotations' in str(
        error.value
    )
    assert not [path for path in (tmp_path / 'records').rglob('*') if path.is_file()]


def test_half_a_folder_is_named_and_leaves_nothing(folder, tmp_path):
    for i in (1, 4):
        (folder / f'ADEChallengeData2016/annotations/training/ADE_train_{i:08}.png').unlink()
    (folder / 'ADEChallengeData2016/images/training/ADE_train_00000002.jpg').unlink()
    for attempt in (lambda: prepare(folder, tmp_path / 'records'), lambda: open_split(folder)):
        with pytest.raises(FileNotFoundError, match='3 of 14 files are missing') as error:
            attempt()
        for name in ('ADE_train_00000001.png', 'ADE_train_00000004.png', 'ADE_train_00000002.jpg'):
            assert name in str(error.value)
    assert not [path for path in (tmp_path / 'records').rglob('*') if path.is_file()]
    # The validation split is complete.
    assert len(open_split(folder, 'validation')) == 2


def test_an_empty_split_is_named(folder):
    for kind in ('images', 'annotations'):
        for path in (folder / f'ADEChallengeData2016/{kind}/validation').iterdir():
            path.unlink()
    with pytest.raises(FileNotFoundError, match=r"split 'validation'.*validation/\*.jpg"):
        open_split(folder, 'validation')


def test_config_errors_name_the_way_out(folder):
    with pytest.raises(ValueError, match="no split 'val'; the splits are train, validation"):
        open_split(folder, 'val')
    with pytest.raises(ValueError, match='num_classes = 151, but ade20k names 150'):
        open_split(folder, num_classes=151)


@pytest.mark.parametrize(
    'values, ids, ignored, expected',
    [
        ([0, 1, 3], (1, 3), (0,), [65535, 0, 1]),
        ([7, 2000, 9], (2000, 7), None, [1, 0, 65535]),
        ([255, 254], range(255), (255,), [65535, 254]),
    ],
)
def test_to_labels(values, ids, ignored, expected):
    assert to_labels(np.array([values]), ids, ignored, 'a.png').tolist() == [expected]


def test_to_labels_names_unknown_values():
    with pytest.raises(ValueError, match=r'a.png: label values \[2, 9\] are neither a class'):
        to_labels(np.array([[1, 9, 2, 0]]), (1, 3), (0,), 'a.png')
