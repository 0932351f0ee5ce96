"""Runs and data in buckets, served by an S3 server on this machine, against those on a disk."""

import json
import logging
import os

import jax
import numpy as np
import pytest
from PIL import Image

from configs import common
from rankseg_jax import (
    checkpoint,
    convert,
    data,
    evaluate,
    export,
    predict,
    publish,
    storage,
    train,
)
from rankseg_jax.data.published import files
from rankseg_jax.prediction_files import predict_split
from tests import tiny

pytest.importorskip('s3fs')
boto3 = pytest.importorskip('boto3')
moto_server = pytest.importorskip('moto.server')


@pytest.fixture(scope='module')
def bucket():
    """The client of a server with the bucket `things`, which s3:// means here."""
    logging.getLogger('werkzeug').setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('AWS_ENDPOINT_URL', f'http://{host}:{port}')
        for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
            patch.setenv(name, 'any')
        patch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
        client = boto3.client('s3')
        client.create_bucket(Bucket='things')
        yield client
    server.stop()


def names_in(bucket, prefix):
    """The keys of a bucket, as its own client lists them."""
    found = bucket.list_objects_v2(Bucket='things', Prefix=prefix).get('Contents', ())
    return {entry['Key'].removeprefix(prefix) for entry in found}


def put_folder(bucket, folder, prefix):
    for path in folder.rglob('*'):
        if path.is_file():
            bucket.upload_file(str(path), 'things', f'{prefix}/{path.relative_to(folder)}')


@pytest.fixture(scope='module')
def runs(bucket, data_dir, tmp_path_factory):
    """(config, workdir on a disk, workdir in the bucket) of the same run."""
    options = {'eval_every': 6, 'checkpoint_every': 2, 'keep_checkpoints': 3}
    config = tiny.config(data_dir, steps=6, **options)
    places = tmp_path_factory.mktemp('run'), 's3://things/run'
    for place in places:
        train.train(config, place)
    return config, *places


def parameters(workdir):
    return jax.tree.leaves(checkpoint.read_model(workdir))


class TestRuns:
    def test_a_run_that_was_cut_short_ends_as_on_a_disk(self, runs, bucket, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        config, disk, place = runs
        steps = {2, 4, 6}
        assert set(checkpoint.open_checkpoints(place).all_steps()) == steps
        # The upload of the last one was not completed, and an object before it is cut short.
        bucket.delete_object(Bucket='things', Key='run/checkpoints/6/uploaded.json')
        sizes = storage.sizes(storage.path(f'{place}/checkpoints/4/optimizer'))
        largest = max(sizes, key=lambda name: sizes[name])
        key = f'run/checkpoints/4/optimizer/{largest}'
        content = bucket.get_object(Bucket='things', Key=key)['Body'].read()
        bucket.put_object(Bucket='things', Key=key, Body=content[:-1])
        assert checkpoint.open_run(place).step == 4  # its model is whole
        train.train(config, place)
        for a, b in zip(parameters(disk), parameters(place), strict=True):
            np.testing.assert_array_equal(a, b)
        assert checkpoint.open_run(place).step == 6
        assert any(name.startswith('damaged_4_') for name in names_in(bucket, 'run/checkpoints/'))
        rows, same = (
            [json.loads(line) for line in text.splitlines()]
            for text in (
                bucket.get_object(Bucket='things', Key='run/metrics.jsonl')['Body'].read(),
                (disk / 'metrics.jsonl').read_bytes(),
            )
        )
        losses, expected = (
            {row['step']: row['train/loss'] for row in some if 'train/loss' in row}
            for some in (rows, same)
        )
        # Step 3 is the first after the interruption, and logged therefore.
        assert losses.keys() - expected.keys() == {3} and rows[-1]['step'] == 6
        assert all(losses[step] == expected[step] for step in (1, 2, 6))
        assert sum('tfevents' in name for name in names_in(bucket, 'run/')) == 2
        assert not list(tmp_path.iterdir()) and not os.path.exists('/s3')

    def test_old_checkpoints_are_removed(self, runs, bucket):
        kept = set(checkpoint.open_checkpoints(runs[2]).all_steps())
        found = {name.split('/')[0] for name in names_in(bucket, 'run/checkpoints/')}
        assert {int(name) for name in found if name.isdigit()} == kept

    def test_scores_and_predictions(self, runs, bucket):
        config, disk, place = runs
        expected = evaluate.run(config, disk)
        output = 's3://things/scores'
        assert evaluate.run(config, place, output)['mIoU'] == expected['mIoU']
        (name,) = (name for name in names_in(bucket, 'scores/') if name.startswith('scores_'))
        scores = bucket.get_object(Bucket='things', Key=f'scores/{name}')['Body'].read()
        assert json.loads(scores)['mIoU'] == expected['mIoU']
        maps = [name for name in names_in(bucket, 'scores/') if name.endswith('.png')]
        assert len(maps) == 40
        with storage.written('s3://things/drawn') as folder:
            predict_split(predict.load(place), config, folder)
        assert 'grid.png' in names_in(bucket, 'drawn/')

    def test_an_export_is_read_back(self, runs, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        config, disk, place = runs
        monkeypatch.setattr(export, 'PLATFORMS', ('cpu',))
        exported = export.run(config, place, f'{place}/export')
        image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        labels = predict.load(exported)(image).labels
        np.testing.assert_array_equal(labels, predict.load(disk)(image).labels)
        assert not list(tmp_path.iterdir())

    def test_a_published_run_is_read_back(self, runs, tmp_path):
        config, disk, place = runs
        for _ in range(2):  # the second keeps the license of the first
            folder = publish.run(config, place, f'{place}/hub')
        convert.run(folder, tmp_path, common.get_config(), as_is=True)
        for a, b in zip(parameters(disk), parameters(tmp_path), strict=True):
            np.testing.assert_array_equal(a, b)


class TestData:
    def test_folders_are_read(self, bucket, tmp_path):
        rng = np.random.default_rng(0)
        for name in ('b/x', 'a', '.hidden'):
            for kind, shape, suffix in (('images', (6, 8, 3), 'jpg'), ('labels', (6, 8), 'png')):
                path = tmp_path / f'{kind}/train/{name}.{suffix}'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 2, shape).astype(np.uint8)).save(path)
        (tmp_path / 'classes.txt').write_text('wall\nfloor\n', 'utf-8-sig')
        put_folder(bucket, tmp_path, 'photos')
        config = tiny.config(tmp_path, data__name='folder', data__num_classes=0).data
        disk = data.get_source(config, 'train')
        config.dir = 's3://things/photos'
        source = data.get_source(config, 'train')
        assert source.ids == disk.ids == ('a.jpg', 'b/x.jpg')
        assert source.class_names == disk.class_names
        for index in range(2):
            for key, values in disk.load(index).items():
                np.testing.assert_array_equal(source.load(index)[key], values)
        assert str(source.check()) == str(disk.check()) and not source.check().problems
        with pytest.raises(FileNotFoundError, match='no folder s3://things/photos/images/test'):
            data.get_source(config, 'test')

    def test_records_are_copied_once(self, bucket, data_dir):
        put_folder(bucket, data_dir, 'records')
        config = tiny.config('s3://things/records').data
        source = data.get_source(config, 'validation')
        disk = data.get_source(tiny.config(data_dir).data, 'validation')
        np.testing.assert_array_equal(source.load(3)['image'], disk.load(3)['image'])
        assert data.get_source(config, 'train')._files.split()[0] in str(
            files.records_folder(config.dir, 'emoji_scenes') / source._files.split()[0]
        )
        config.dir = 's3://things/photos'
        with pytest.raises(FileNotFoundError, match='no folder emoji_scenes of records'):
            data.get_source(config, 'train')


class TestMessages:
    def test_what_cannot_be_reached(self, bucket, monkeypatch):
        for place, kind, message in (
            ('s3://nothing/run', FileNotFoundError, "the bucket 'nothing' does not exist"),
            ('ftp://host/run', ValueError, 'must be a path, gs://<bucket>/… or s3://<bucket>/…'),
            ('s3:///run', ValueError, 'must be a path, gs'),
        ):
            with pytest.raises(kind, match=message):
                storage.path(place)
        monkeypatch.setitem(storage.PACKAGES, 's3', 'no_such_package')
        with pytest.raises(ImportError, match='pip install no_such_package'):
            storage.path('s3://things/elsewhere')

    def test_several_processes_need_another_place(self, monkeypatch):
        monkeypatch.setattr(jax, 'process_count', lambda: 2)
        with pytest.raises(ValueError, match='2 processes cannot write .* use gs://'):
            checkpoint.check_place('s3://things/run')
        checkpoint.check_place('gs://things/run')


def test_temporary_folders_go_before_a_program_ends_at_once():
    class Owner:
        pass

    owner = Owner()
    folder = storage.temporary_folder(owner)
    (folder / 'file').write_text('')
    storage.remove_temporary_folders()
    assert not folder.exists()
