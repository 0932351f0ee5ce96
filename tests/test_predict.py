import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.export
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import rankseg_jax
from rankseg_jax import (
    analysis,
    checkpoint,
    convert,
    data,
    evaluate,
    export,
    models,
    predict,
    sharding,
    tasks,
    train,
)
from rankseg_jax.data import CorruptExample, video_files
from rankseg_jax.prediction_files import (
    find_images,
    find_videos,
    output_names,
    predict_files,
    predict_split,
)
from rankseg_jax.tasks.result import Result
from tests import FAST_COMPILATION, tiny
from tests.helpers import run_example

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def trained(data_dir, tmp_path_factory):
    """(config, workdir) of a run of two steps, with EMA so that both kinds of parameters exist."""
    config = tiny.config(data_dir, steps=2, ema=0.5)
    workdir = tmp_path_factory.mktemp('run')
    train.train(config, workdir)
    return config, workdir


@pytest.fixture(scope='module')
def predictor(trained):
    return rankseg_jax.predict.load(trained[1])


@pytest.mark.parametrize('shape', [(32, 32), (1, 1), (37, 91), (200, 3)])
def test_label_maps_have_the_size_of_their_image(predictor, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    result = predictor(image)
    assert result.labels.shape == shape and result.labels.dtype == np.int32
    names = [name for name, _ in result.categories]
    assert len(set(names)) == 3
    scores = [score for _, score in result.categories]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    assert {predictor.class_names[c] for c in np.unique(result.labels)} <= set(names)
    assert result.overlay().mode == 'RGB'


def test_arrays_pil_images_and_paths_agree(predictor, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / 'a.png')
    for other in (
        Image.fromarray(image),
        tmp_path / 'a.png',
        str(tmp_path / 'a.png'),
        Image.fromarray(image).convert('RGBA'),
    ):
        np.testing.assert_array_equal(predictor(other).labels, predictor(image).labels)
    Image.fromarray(np.rot90(image)).save(tmp_path / 'turned.png', exif=exif)
    with Image.open(tmp_path / 'turned.png') as turned:
        np.testing.assert_array_equal(predictor(turned).labels, predictor(image).labels)


@pytest.mark.parametrize(
    'image', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_bad_arrays_are_refused(predictor, image):
    with pytest.raises(ValueError, match='uint8'):
        predictor(image)


WINDOWS = {
    'base_size': (24, 64),
    'window': (16, 16),
    'stride': (12, 12),
    'flip': True,
    'batch_size': 16,
}


@pytest.mark.parametrize('options', [{}, WINDOWS])
def test_predictor_agrees_with_the_evaluation(trained, options, tmp_path):
    """Evaluation gives the accuracy of the predicted maps, and writes the same maps."""
    config, workdir = trained
    config = config.copy_and_resolve_references()
    config.eval.update(options)
    predictor = predict.load(workdir, config=config)
    mesh = sharding.make_mesh(1)
    model = models.build(config, 8)
    variables = models.restore(checkpoint.open_run(workdir), model, config, mesh)
    source = data.get_source(config.data, 'validation')
    task = tasks.from_source(config, source)
    step = evaluate.make_eval_step(model, config, task, mesh)
    writer = task.writer(tmp_path, source)
    scores = evaluate.evaluate(
        step, variables, source, config=config, task=task, mesh=mesh, writer=writer
    )
    right = total = 0
    for i in range(len(source)):
        example = source.load(i)
        labels = predictor(example['image']).labels
        right, total = right + (labels == example['label']).sum(), total + labels.size
        np.testing.assert_array_equal(
            np.array(Image.open(tmp_path / f'{source.ids[i]}.png')), labels
        )
    np.testing.assert_allclose(scores['aAcc'], right / total, rtol=1e-6)


def test_files_folders_and_lists(predictor, tmp_path):
    images = tmp_path / 'images'
    images.mkdir()
    for name in ('a.png', 'a.jpg', 'b.png'):
        Image.new('RGB', (20, 10), (200, 30, 30)).save(images / name)
    (images / 'night/rain').mkdir(parents=True)
    for name in ('night/rain/a.png', '._a.png', 'night/._a.png'):
        shutil.copy(images / 'a.png', images / name)
    (images / 'night/.DS_Store').write_bytes(b'macOS')
    (images / 'broken.jpg').write_bytes(b'\xff\xd8\xff nothing')
    (tmp_path / 'list.txt').write_text('images/b.png\n')
    output = predict_files(predictor, [images, tmp_path / 'list.txt'], tmp_path / 'out')
    named = {
        path.relative_to(output).as_posix(): json.loads(path.read_text())['image']
        for path in output.rglob('*.json')
    }
    assert named == {
        'a.json': str(images / 'a.jpg'),
        'a.png.json': str(images / 'a.png'),
        'b.json': str(images / 'b.png'),
        'b.png.json': str(images / 'b.png'),
        'night/rain/a.json': str(images / 'night/rain/a.png'),
    }
    assert (output / 'night/rain/a.png').is_file() and (
        output / 'night/rain/a_overlay.png'
    ).is_file()
    labels = np.asarray(Image.open(output / 'b.png'))
    np.testing.assert_array_equal(labels, predictor(images / 'b.png').labels)
    rows = json.loads((output / 'b.json').read_text())['categories']
    assert len(rows) == 3 and rows[0]['confidence'] >= rows[1]['confidence']
    assert Image.open(output / 'b_overlay.png').width >= 20
    with pytest.raises(CorruptExample, match='broken.jpg'):
        predict_files(predictor, [images / 'broken.jpg'], tmp_path / 'none')
    for other in (images, images / 'night/rain/..' / '..'):
        with pytest.raises(ValueError, match='holds the images themselves'):
            predict_files(predictor, [images], other)
    with pytest.raises(ValueError, match='holds the images themselves'):
        predict_files(predictor, [images / 'night'], images / 'night')
    with pytest.raises(FileNotFoundError, match='missing.png'):
        predict_files(predictor, [tmp_path / 'missing.png'], tmp_path / 'none')


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def test_new_sizes_of_images_compile_next_to_nothing(predictor):
    """After the first image of a canvas, any size on it takes the same programs."""
    for size in ((60, 60), (60, 120), (120, 120), (120, 60)):
        predictor(noise(size))
    compiled = []

    def listen(event, _, **__):
        if event == '/jax/core/compile/backend_compile_duration':
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for i in range(30):
            predictor(noise((33 + 3 * i, 128 - 2 * i)))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_images_in_batches_are_predicted_as_alone(trained, tmp_path):
    """Of any sizes and in any folder; the unreadable one is named in its place."""
    config, workdir = trained
    config = config.copy_and_resolve_references()
    config.eval.batch_size = 4
    config.mesh.data = 2
    predictor = predict.load(workdir, config=config)
    paths = []
    for i, size in enumerate([(20, 10), (70, 130), (1, 1), (32, 32), (9, 200), (50, 50)]):
        paths.append(tmp_path / f'{i}.png')
        Image.fromarray(noise(size, i)).save(paths[-1])
    paths.insert(3, tmp_path / 'broken.png')
    paths[3].write_bytes(b'nothing')
    found = dict(predictor.many(paths))
    assert sorted(found) == list(range(7)) and isinstance(found.pop(3), CorruptExample)
    for place, result in found.items():
        alone = predictor(paths[place])
        np.testing.assert_array_equal(result.labels, alone.labels)
        np.testing.assert_array_equal(result.image, alone.image)
        assert [name for name, _ in result.categories] == [name for name, _ in alone.categories]


def test_a_bad_image_or_a_long_name_stops_no_other(predictor, tmp_path, capsys):
    images = tmp_path / 'images'
    images.mkdir()
    long = 251 - len('.png')
    names = ['a', 'b' * long, 'b' * (long - 1) + 'c', 'ä' * (long // 2), 'z']
    for name in names:
        Image.fromarray(noise((8, 8))).save(images / f'{name}.png')
    (images / 'm.jpg').write_bytes(b'nothing')
    output = predict_files(predictor, [images], tmp_path / 'out')
    assert len(list(output.glob('*.json'))) == len(list(output.glob('*_overlay.png'))) == 5
    printed = capsys.readouterr().out
    assert '5 of 6 images predicted' in printed and 'm.jpg' in printed


def test_images_of_one_name_in_two_folders_are_both_kept(predictor, tmp_path):
    for folder in ('day', 'night', 'day/rain'):
        (tmp_path / folder).mkdir()
        Image.fromarray(noise((8, 8))).save(tmp_path / folder / 'a.png')
    inputs = [tmp_path / 'day', tmp_path / 'night']
    output = predict_files(predictor, inputs, tmp_path / 'out')
    found = [json.loads(path.read_text())['image'] for path in output.rglob('*.json')]
    expected = [tmp_path / name for name in ('day/a.png', 'day/rain/a.png', 'night/a.png')]
    assert sorted(found) == [str(path) for path in expected]


def write_film(path, length=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    with video_files.Writer(path, 10) as writer:
        for seed in range(length):
            writer.write(noise((32, 32), seed))


def test_videos_do_not_write_where_others_do(predictor, tmp_path, monkeypatch):
    """Videos of one name; a video and a folder of images that is called like it."""
    for name in ('a/clip.mp4', 'b/clip.mp4', 'b/._clip.mp4', 'b/.trash/old.mp4'):
        write_film(tmp_path / name, length=2 if name == 'a/clip.mp4' else 3)
    (tmp_path / 'b/clip').mkdir()
    Image.fromarray(noise((20, 30))).save(tmp_path / 'b/clip/00000.png')
    (tmp_path / 'b/gone.jpg').symlink_to('nowhere.jpg')
    (tmp_path / 'list.txt').write_text('a/clip.mp4\nb\n')
    predict_files(predictor, [tmp_path / 'list.txt'], tmp_path / 'out')
    written = {str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.*')}
    images = {f'clip/00000{end}' for end in ('.png', '.json', '_overlay.png')}
    first = {'clip.mp4', 'clip.mp4.json', 'clip.mp4.mp4', *(f'clip.mp4/0000{i}.png' for i in '01')}
    second = {'clip_2.json', 'clip_2.mp4', *(f'clip_2/0000{i}.png' for i in '012')}
    assert written == images | first | second
    with Image.open(tmp_path / 'out/clip/00000.png') as image:
        assert image.size == (30, 20)
    monkeypatch.chdir(tmp_path / 'b/clip')
    predict_files(predictor, ['.'], tmp_path / 'here')
    (tmp_path / 'empty.txt').write_text('\n')
    with pytest.raises(FileNotFoundError, match='the list .*empty.txt is empty'):
        predict_files(predictor, [tmp_path / 'empty.txt'], tmp_path / 'here')


def test_nothing_is_left_of_an_earlier_video_and_a_broken_one_is_said(predictor, tmp_path, capsys):
    output, broken = tmp_path / 'out', iter([2, 1])

    def predict_as_clip(length):
        write_film(tmp_path / 'clip.mp4', length)
        predict_files(predictor, [tmp_path / 'clip.mp4'], output)
        return sorted(path.name for path in output.rglob('*.*'))

    predict_as_clip(length=3)
    assert predict_as_clip(length=1) == ['00000.png', 'clip.json', 'clip.mp4']

    class Broken(CorruptExample):
        pass

    def frames(path, max_pixels):
        for seed in range(next(broken)):
            yield noise((32, 32), seed)
        raise Broken(f'{path}: broken')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_files, 'read_frames', frames)
        patch.setattr(predictor, 'batch_size', 1)
        for name in ('clip.mp4', 'other.mp4'):
            write_film(tmp_path / name)
        Image.fromarray(noise((20, 30))).save(tmp_path / 'photo.png')
        inputs = [tmp_path / name for name in ('clip.mp4', 'other.mp4', 'photo.png')]
        predict_files(predictor, inputs, output)
    assert f'broken; only the images of 1 frames are in {output}' in capsys.readouterr().out
    left = {path.name for path in output.rglob('*') if 'photo' not in path.name}
    assert left == {'clip', '00000.png'}


def test_earlier_predictions_are_no_input(tmp_path):
    for name in ('a.png', 'night/a.png', 'out/a.png', 'out/night/a_overlay.png', 'out2/b.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(output):
        found = find_images([tmp_path], tmp_path / output)
        assert all(tmp_path / name == path for path, name in found)
        return [name.as_posix() for _, name in found]

    assert names('out') == ['a.png', 'night/a.png', 'out2/b.png']
    assert len(names('elsewhere')) == 5


def test_label_maps_of_many_categories_are_16_bit(tmp_path):
    labels = np.array([[0, 255, 256, 1283]])
    names = tuple(f'c{i}' for i in range(1284))
    Result(np.zeros((1, 4, 3), np.uint8), labels, [], names).save(tmp_path / 'map')
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'map.png')), labels)


def test_missing_checkpoints_are_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match='train first'):
        predict.load(tmp_path / 'mistyped')
    assert not (tmp_path / 'mistyped').exists()
    assert checkpoint.find(checkpoint.open_checkpoints(trained[1]), 'best') == 2
    with pytest.raises(FileNotFoundError, match='newest'):
        predict.load(trained[1], 'newest')
    with pytest.raises(FileNotFoundError, match='77'):
        predict.load(trained[1], '77')


def test_data_in_another_order_are_refused(trained, predictor, tmp_path, monkeypatch):
    config, workdir = trained
    get_source, written = data.get_source, set(workdir.iterdir())

    def reordered(*args):
        source = get_source(*args)
        source.class_names = source.class_names[::-1]
        return source

    monkeypatch.setattr(data, 'get_source', reordered)
    for use in (
        lambda: train.train(config, workdir),
        lambda: evaluate.run(config, workdir),
        lambda: analysis.run(config, workdir),
        lambda: predict_split(predictor, config, tmp_path / 'drawings'),
    ):
        with pytest.raises(ValueError, match="category 0 is 'background' in the run, .* in the da"):
            use()
    assert set(workdir.iterdir()) == written and not any(tmp_path.iterdir())


def test_folders_that_cannot_be_written_are_refused_first(trained, predictor, monkeypatch):
    config, workdir = trained
    Image.new('RGB', (2, 2)).save(workdir / 'a.png')

    def fail(*args, **kwargs):
        raise OSError(errno.EROFS, 'Read-only file system')

    monkeypatch.setattr(tempfile, 'TemporaryFile', fail)
    monkeypatch.setattr(Path, 'mkdir', lambda *args, **kwargs: None)
    monkeypatch.setattr(models, 'restore', lambda *args: pytest.fail('too late'))
    output = workdir / 'there'
    for use in (
        lambda: train.train(config, workdir),
        lambda: evaluate.run(config, workdir),
        lambda: evaluate.run(config, workdir, output),
        lambda: analysis.run(config, workdir),
        lambda: analysis.run(config, workdir, output),
        lambda: export.run(config, workdir, output),
        lambda: predict_files(predictor, [workdir / 'a.png'], output),
        lambda: predict_split(predictor, config, output),
        lambda: convert.run(workdir, output, config, as_is=False),
    ):
        with pytest.raises(OSError, match=r'cannot write to .*\(Read-only file system\): choose'):
            use()


def test_scores_are_printed_before_they_are_written(trained, tmp_path, monkeypatch, capsys):
    config, workdir = trained
    monkeypatch.setattr(
        evaluate, 'evaluate', lambda *args, **options: {'mIoU': 0.25, 'classes': []}
    )
    evaluate.run(config, workdir, tmp_path / 'there')
    written = tmp_path / 'there/scores_validation_2.json'
    assert json.loads(written.read_text())['mIoU'] == 0.25
    assert not (workdir / written.name).exists()
    capsys.readouterr()

    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Path, 'write_text', fail)
    with pytest.raises(OSError, match='No space left'):
        evaluate.run(config, workdir)
    assert '25.0' in capsys.readouterr().out


def test_oracle_needs_labels_and_uses_them(trained):
    config, workdir = trained
    model = models.build(config, 8)
    mesh = sharding.make_mesh(1)
    variables = models.restore(checkpoint.open_run(workdir), model, config, mesh)
    with config.unlocked():
        config.rankseg.oracle = True
    try:
        task = tasks.build(config, 'abcdefgh')
        oracle = predict.from_model(models.build(config, 8), variables, config, task=task)
        image, label = np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 6)
        label[3:, 4:] = 2
        assert set(np.unique(oracle(image, label).labels)) <= {2, 6}
        with pytest.raises(ValueError, match='oracle'):
            oracle(image)
    finally:
        config.rankseg.oracle = False


@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
    config, workdir = trained
    return export.run(config, workdir, tmp_path_factory.mktemp('export') / 'files')


def test_frames_of_two_sizes_are_refused(predictor):
    frames = [np.zeros((32, width, 3), np.uint8) for width in (32, 40)]
    with pytest.raises(CorruptExample, match='frame 1 has 32 x 40'):
        list(predictor.video(frames))


def test_names_of_files_need_not_be_utf_8(tmp_path):
    name = os.fsdecode(b'caf\xe9.png')
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    try:
        (tmp_path / 'a.png').rename(tmp_path / name)
    except OSError:
        pytest.skip('this file system takes UTF-8 alone')
    stills = find_images([tmp_path], tmp_path / 'output')
    assert output_names([], stills, ('', '_overlay')) == [os.fsdecode(b'caf\xe9')]


@pytest.mark.parametrize('content', [b'', bytes(64), b'version https://git-lfs.github.com/spec/v1'])
def test_a_damaged_export_is_named(exported, tmp_path, content):
    (tmp_path / 'labels.json').write_bytes((exported / 'labels.json').read_bytes())
    (tmp_path / 'model.jax_export').write_bytes(content)
    with pytest.raises(ValueError, match='model.jax_export is no exported model or is damaged'):
        predict.load(tmp_path)
    (tmp_path / 'labels.json').unlink()
    with pytest.raises(ValueError, match='was cut off: export it again'):
        predict.load(tmp_path)


def test_exported_model_equals_the_model_for_any_batch(predictor, exported):
    call = jax.jit(jax.export.deserialize((exported / 'model.jax_export').read_bytes()).call)
    params = ocp.StandardCheckpointer().restore(exported / 'params')
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for batch in (images, images[:1]):
        found = jax.device_get(call(params, batch, np.full((len(batch), 2), 32, np.int32)))
        for i, image in enumerate(batch):
            result = predictor(image)
            np.testing.assert_array_equal(found['labels'][i], result.labels)
            assert [predictor.class_names[c] for c in found['categories'][i]] == [
                name for name, _ in result.categories
            ]
            np.testing.assert_allclose(
                found['confidences'][i], [score for _, score in result.categories], rtol=1e-4
            )


def test_exported_model_ignores_the_canvas_beyond_the_image(exported, predictor):
    """It is also read by predict.load, for images of any size."""
    loaded = predict.load(exported)
    image = np.random.default_rng(0).integers(0, 256, (32, 20, 3), np.uint8)
    np.testing.assert_array_equal(loaded(image).labels, predictor(image).labels)
    for shape in ((1, 1), (37, 91), (200, 3)):
        assert loaded(np.zeros((*shape, 3), np.uint8)).labels.shape == shape


@pytest.mark.parametrize('antialias', [False, True])
def test_photos_are_shrunk_as_in_evaluation(exported, predictor, tmp_path, antialias):
    """The photo is five times too large, so that smoothing shows, and has an EXIF rotation."""
    exported = shutil.copytree(exported, tmp_path / 'export')
    about = json.loads((exported / 'labels.json').read_text())
    assert about['antialias'] is False  # as `trained`
    (exported / 'labels.json').write_text(json.dumps(about | {'antialias': antialias}))
    rng = np.random.default_rng(0)
    coarse = rng.integers(50, 206, (8, 5, 3)).repeat(20, 0).repeat(20, 1)
    photo = Image.fromarray((coarse + rng.integers(-50, 50, coarse.shape)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / 'photo.png', exif=exif)
    turned = photo.rotate(-90, expand=True)
    middle = np.asarray(turned)[2::5, 2::5]  # [20, 32], the middle pixel of each 5 × 5 block
    expected = predictor(
        turned.resize((32, 20), Image.Resampling.BILINEAR) if antialias else middle
    ).labels
    loaded = predict.load(exported)(tmp_path / 'photo.png').labels
    # `expected` is smoothed by Pillow, so that some pixels differ by one level.
    tolerance = 0.03 if antialias else 0
    assert (loaded[2::5, 2::5] != expected).mean() <= tolerance
    run_example(exported, 'photo.png', tmp_path)
    found = np.asarray(Image.open(tmp_path / 'labels.png'))
    # Both fit images with the same function.
    np.testing.assert_array_equal(found, loaded[2::5, 2::5])


def test_photos_are_stretched_and_filtered_as_the_files_say(exported, predictor, tmp_path):
    exported = shutil.copytree(exported, tmp_path / 'export')
    about = json.loads((exported / 'labels.json').read_text())
    assert (about['resample'], about['stretch']) == ('', False)  # as `trained`
    about |= {'resample': 'lanczos', 'stretch': True}
    (exported / 'labels.json').write_text(json.dumps(about))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8))
    photo.save(tmp_path / 'photo.png')
    expected = predictor(photo.resize((32, 32), Image.Resampling.LANCZOS)).labels
    found = predict.load(exported)(photo).labels
    np.testing.assert_array_equal(found, expected.repeat(3, 0).repeat(2, 1))
    run_example(exported, 'photo.png', tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'labels.png')), expected)


def test_files_of_earlier_versions_are_read(exported, tmp_path):
    exported = shutil.copytree(exported, tmp_path / 'export')
    about = json.loads((exported / 'labels.json').read_text())
    del about['resample'], about['stretch']
    (exported / 'labels.json').write_text(json.dumps(about))
    assert predict.load(exported)(np.zeros((9, 5, 3), np.uint8)).labels.shape == (9, 5)


def test_export_leaves_other_files_alone(trained, tmp_path):
    (tmp_path / 'thesis.tex').write_text('…')
    with pytest.raises(ValueError, match='holds other files'):
        export.run(*trained, tmp_path)
    with pytest.raises(ValueError, match='holds other files'):
        export.run(*trained, trained[1])


def test_example_runs_without_this_package(exported, predictor, tmp_path):
    image = np.random.default_rng(0).integers(0, 10_000, (32, 32)).astype(np.uint16)  # dark
    Image.fromarray(image).save(tmp_path / 'photo.png')
    assert '% of the pixels' in run_example(exported, 'photo.png', tmp_path)
    assert 'rankseg' not in (exported / 'example.py').read_text()
    expected = predictor(np.repeat(image[..., None] // 256, 3, -1).astype(np.uint8)).labels
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'labels.png')), expected)


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('rankseg.oracle', True, 'oracle'),
        ('eval.scales', (0.5, 1.0), 'eval.scales'),
        ('eval.size', (0, 0), r'eval.size = \(0, 0\): a model is exported for one size'),
    ],
)
def test_configs_that_cannot_be_exported_are_refused(trained, tmp_path, key, value, message):
    config = trained[0].copy_and_resolve_references()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        export.run(config, trained[1], tmp_path)


MAIN_WITH_TINY_BACKBONES = """
from rankseg_jax import cli
from tests import tiny
cli.start()
"""


def test_evaluate_and_predict_from_the_command_line(trained, tmp_path):
    _, workdir = trained
    cache = tmp_path / 'home' / '.cache' / 'rankseg_jax'
    environment = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
    environment |= {'XLA_FLAGS': FAST_COMPILATION, 'PYTHONPATH': str(ROOT)}
    environment['HOME'] = str(tmp_path / 'home')

    def call(*arguments):
        result = subprocess.run(
            [sys.executable, '-c', MAIN_WITH_TINY_BACKBONES, f'--workdir={workdir}', *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert 'mIoU' in call(
        '--mode=evaluate', '--config.compilation_cache=', '--config.data.eval_split=train'
    )
    assert not cache.exists()
    scores = json.loads((workdir / 'scores_train_2.json').read_text())
    assert len(scores['classes']) == 8
    assert 'grid.png' in call('--mode=predict', f'--output={tmp_path}')
    assert Image.open(tmp_path / 'grid.png').height > 500

    def programs():
        return {path.name for path in cache.glob('jit_*-cache')}

    first = programs()
    assert any('network' in name for name in first)
    call('--mode=predict', f'--output={tmp_path}')
    assert programs() == first  # the second start finds them all


def test_an_output_among_the_data_is_refused(tmp_path):
    evaluate.check_output(tmp_path / 'out', str(tmp_path / 'data'))
    evaluate.check_output(None, str(tmp_path / 'data'))
    evaluate.check_output(tmp_path / 'out', '')
    (tmp_path / 'link').symlink_to(tmp_path / 'data')
    for output in (tmp_path / 'data/labels/validation', tmp_path / 'link/images'):
        with pytest.raises(ValueError, match=f'--output={output} lies in config.data.dir'):
            evaluate.check_output(output, str(tmp_path / 'data'))


def test_a_folder_of_animations_is_no_video(tmp_path):
    (tmp_path / 'frames').mkdir()
    frames = [Image.new('RGB', (8, 8), color) for color in ('red', 'blue')]
    frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / 'frames' / '1.png')
    videos, _ = find_videos([tmp_path], tmp_path / 'out', as_clips=True)
    assert [path.name for path, _ in videos] == ['a.gif', 'frames']
