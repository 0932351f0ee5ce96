"""--mode=demo: what the page shows, in a real browser, and what it does with bad files."""

import base64
import io
import os
import re
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from rankseg_jax import checkpoint, demo, export, models, predict
from rankseg_jax.data import coco, video_files
from rankseg_jax.tasks.result import Result
from tests import browser, tiny
from tests.helpers import start_processes

ROOT = Path(__file__).parents[1]
K = 8
NAMES = ('<b>a</b>', *'bcdefgh')


def smooth(size=(60, 90), seed=0):
    """A photo of few colors, uint8 [*size, 3]."""
    colors = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(colors).resize(size[::-1], Image.Resampling.BICUBIC))


def save_semantic(workdir, config=None, **options):
    """A run of a Segmenter with random weights, whose ranks are far from alike."""
    config = config or tiny.config('', **options)
    model = models.build(config, K)
    rng = np.random.default_rng(3)
    variables = jax.tree.map(
        lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype),
        jax.eval_shape(lambda: models.init(model, K, 0, (32, 32))),
    )
    run = {'config': config.to_dict(), 'class_names': NAMES, 'next_step': 5, 'score': None}
    with checkpoint.open_checkpoints(workdir, keep=1) as manager:
        checkpoint.save(manager, 5, variables, None, run)
    return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp('demo') / 'run'
    save_semantic(path)
    return path


@pytest.fixture(scope='module')
def predictor(workdir):
    return predict.load(workdir)


def pixels(url):
    """uint8 [h, w, 3] of a data URL."""
    file = io.BytesIO(base64.b64decode(url.partition(',')[2]))
    return np.asarray(Image.open(file).convert('RGB'))


def shown_names(frame):
    """[h, w], what the viewer says under the pointer."""
    names = np.array([region['name'] for region in frame['regions']])
    return names[coco.rgb_to_ids(pixels(frame['map']))]


# Ranks


@pytest.mark.parametrize('task', ['semantic', 'panoptic', 'video_instance'])
def test_the_first_ranks_are_what_a_smaller_kappa_predicts(task, tmp_path):
    run, path = tmp_path / 'run', tmp_path / 'a.png'
    Image.fromarray(smooth()).save(path)
    options = {'rankseg__train_selected': 3}
    if task == 'semantic':
        config = save_semantic(run, **options)
    else:
        config = tiny.queries_config('', task=task, **options)
        tiny.save_run(config, run)
    shown = demo.Demo(predict.load(run), tmp_path)
    (whole,) = shown.results(path, 3, [])
    config.rankseg.num_selected = 2
    expected = predict.load(run, config=config)(path)
    (found,) = shown.results(path, 2, [])
    np.testing.assert_array_equal(found.labels, expected.labels)
    if task != 'semantic':
        np.testing.assert_array_equal(found.segment_ids, expected.segment_ids)
    assert (found.labels != whole.labels).any()
    assert found.categories == whole.categories and len(found.categories) == 3


# What is shown


@pytest.mark.parametrize('kind', ['L', 'RGBA', 'I;16', 'P', 'rotated', 'tiny', 'thin', 'large'])
def test_images_of_any_kind_are_shown_as_they_are_predicted(kind, predictor, tmp_path):
    path, image = tmp_path / 'a.png', Image.fromarray(smooth())
    exif = Image.Exif()
    if kind == 'I;16':
        image = Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 257)
    elif kind == 'rotated':
        exif[274] = 6
    elif kind in ('tiny', 'thin', 'large'):
        image = image.resize({'tiny': (1, 1), 'thin': (3, 700), 'large': (1100, 300)}[kind])
    else:
        image = image.convert(kind)
    image.save(path, exif=exif)
    shown = demo.Demo(predictor, tmp_path)
    value, _ = shown.view(path, 3)
    (frame,) = value['frames']
    result = predictor(path)
    names, labels = shown_names(frame), result.labels
    factor = names.shape[0] / labels.shape[0]
    assert max(names.shape) <= demo.PHOTO_SIDE
    if factor >= 1:
        assert max(names.shape) >= 384
        expected = labels.repeat(round(factor), 0).repeat(round(factor), 1)
        np.testing.assert_array_equal(names, np.array(NAMES)[expected])
    shares = {region['name']: region['share'] for region in frame['regions']}
    counts = np.bincount(labels.ravel(), minlength=K) / labels.size
    for name, share in shares.items():
        assert share == pytest.approx(counts[NAMES.index(name)], abs=0.01)
    shape = pixels(frame['image']).shape[:2]
    assert shape == names.shape and (kind != 'rotated' or shape[0] > shape[1])
    assert value['seconds'] > 0 and frame['ranked'] == result.categories


def test_what_changes_is_told(predictor, tmp_path):
    path = tmp_path / 'a.png'
    Image.fromarray(smooth()).save(path)
    shown = demo.Demo(predictor, tmp_path)
    whole, maps = shown.view(path, 3)
    assert not any(region['was'] for region in whole['frames'][0]['regions'])
    assert shown.view(path, 3, maps)[0]['frames'] == whole['frames']
    value, _ = shown.view(path, 1, maps)
    first = predictor(path).categories[0][0]
    regions = value['frames'][0]['regions']
    assert {region['name'] for region in regions} == {first}
    before = {region['name']: region['share'] for region in whole['frames'][0]['regions']}
    assert {region['was'] or first: region['share'] for region in regions} == before


def test_tracks_are_named_and_keep_their_color(tmp_path):
    config = tiny.queries_config('', task='video_instance')
    tiny.save_run(config, tmp_path / 'run')
    path = tmp_path / 'a.mp4'
    wide = smooth((32, 120))
    with video_files.Writer(path, 10) as writer:
        for i in range(6):
            writer.write(wide[:, 3 * i : 3 * i + 48])
    predictor = predict.load(tmp_path / 'run')
    value, maps = demo.Demo(predictor, tmp_path).view(path, 3)
    assert len(value['frames']) == len(maps) == 6 and value['rate'] == 10
    colors = {}
    for frame, result in zip(value['frames'], predictor.video(path), strict=True):
        objects = dict(zip(result.ids, result.objects, strict=True))
        drawn = [region for region in frame['regions'] if region['color']]
        assert drawn
        for region in drawn:
            name, i = region['name'].split()
            label, score = objects[int(i)]
            assert name == predictor.class_names[label]
            assert region['score'] == pytest.approx(score, abs=1e-5)
            assert region['color'] == colors.setdefault(i, region['color'])


def test_many_classes_keep_their_names():
    names = tuple(f'category {i}' for i in range(1284))
    labels = np.arange(1300).reshape(26, 50) - 16
    labels[labels < 0] = -1
    result = Result(np.zeros((26, 50, 3), np.uint8), labels, [], names)
    found = demo.drawn(result, labels, np.roll(labels, 1))
    expected = np.where(labels < 0, 'nothing', np.array(names)[labels])
    np.testing.assert_array_equal(shown_names(found), expected)


def slider(page):
    """The properties of the slider of ranks."""
    return next(x['props'] for x in page.config['components'] if x['type'] == 'slider')


def test_no_slider_where_no_ranks_can_be_dropped(workdir, predictor, tmp_path, monkeypatch):
    pytest.importorskip('gradio')
    monkeypatch.setattr(export, 'PLATFORMS', ('cpu',))  # others take longer to lower
    path = tmp_path / 'a.png'
    Image.fromarray(smooth()).save(path)
    assert slider(demo.make_page(demo.Demo(predictor, tmp_path), 'run'))['visible']
    one = save_semantic(tmp_path / 'one', rankseg__num_selected=1)
    baseline = tiny.config('')
    baseline.rankseg = None
    save_semantic(tmp_path / 'baseline', config=baseline)
    export.run(checkpoint.open_run(workdir).config, workdir, tmp_path / 'export')
    for name, ranked in (('one', 1), ('baseline', 0), ('export', 3)):
        shown = demo.Demo(predict.load(tmp_path / name), tmp_path)
        assert not slider(demo.make_page(shown, name))['visible']
        (frame,) = shown.view(path, shown.num_ranks)[0]['frames']
        expected = shown.predictor(path)
        found = shown_names(frame)[2::5, 2::5]  # it is enlarged
        np.testing.assert_array_equal(found, np.array(NAMES)[expected.labels])
        assert frame['ranked'] == expected.categories and len(frame['ranked']) == ranked
    one.rankseg.oracle = True
    with pytest.raises(ValueError, match='oracle'):
        demo.Demo(predict.load(tmp_path / 'one', config=one), tmp_path)


def test_a_missing_package_is_told_before_the_model_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ImportError, match='pip install gradio'):
        demo.run(None, tmp_path / 'missing')


# The server


@pytest.fixture(scope='module')
def server(workdir, tmp_path_factory):
    """(address, its folder of temporary files) of --mode=demo; at the end the folder is empty."""
    pytest.importorskip('gradio')
    folder = tmp_path_factory.mktemp('server')
    config, temporary = folder / 'config.py', folder / 'temporary'
    temporary.mkdir()
    config.write_text(
        "from tests import tiny\ndef get_config(): return tiny.config('')\n"  # has the backbone
    )
    flags = [f'--config={config}', f'--workdir={workdir}', '--mode=demo']
    (process,) = start_processes(1, 'main.py', *flags, TMPDIR=temporary)
    before = set(ROOT.iterdir())
    try:
        line = process.stdout.readline()
        assert line.startswith('Demo: http://127.0.0.1:'), process.communicate()
        yield line.split()[1], temporary
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, process.communicate()
        assert not [path for path in temporary.rglob('*') if path.is_file()]
        assert set(ROOT.iterdir()) == before
    finally:
        process.kill()


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp('photos') / 'photo.png'
    Image.fromarray(smooth()).save(path)
    return path


def test_the_endpoint_gives_what_predict_writes(server, photo, predictor, tmp_path):
    client = pytest.importorskip('gradio_client')
    address, temporary = server
    demo_client = client.Client(address, verbose=False, download_files=str(tmp_path))
    content, labels = demo_client.predict(client.handle_file(str(photo)), api_name='/predict')
    expected = predictor(photo)
    assert content == {'image': 'photo.png'} | expected.content()
    np.testing.assert_array_equal(np.asarray(Image.open(labels)), expected.labels)
    assert {path.parts[len(temporary.parts)] for path in temporary.rglob('photo.png')} == {
        folder.name for folder in temporary.glob('rankseg_demo_*')
    }
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'nothing')
    with pytest.raises(Exception, match='^broken.jpg: UnidentifiedImageError'):
        demo_client.predict(client.handle_file(str(broken)), api_name='/predict')


def test_old_results_are_deleted(predictor, photo, tmp_path):
    served = demo.Demo(predictor, tmp_path)
    old, new = (served.predict(photo)[1] for _ in range(2))
    os.utime(old.parent, 2 * (time.time() - demo.KEPT_FOR - 1,))
    _, last = served.predict(photo)
    assert not old.parent.exists() and new.is_file() and last.is_file()


def drop(page, path):
    page.locator('input[type=file]').first.set_input_files(path)


def test_a_photo_in_the_browser(server, photo, predictor, chromium):
    result = predictor(photo)
    with browser.opened(chromium, server[0]) as page:
        page.locator('.hint').wait_for()
        drop(page, photo)
        canvas = page.locator('.stack canvas')
        canvas.wait_for()
        page.wait_for_function("document.querySelector('.stack canvas').width > 300")
        bars = page.locator('.ranked li')
        assert [line.split('\n')[1] for line in bars.all_inner_texts()] == [
            name for name, _ in result.categories
        ]
        assert 'forward pass' in page.locator('.about').inner_text()
        name, box = page.locator('.name'), canvas.bounding_box()
        for row, column in ((5, 5), (30, 45), (55, 80)):
            x = box['x'] + (column + 0.5) * box['width'] / 90
            page.mouse.move(x, box['y'] + (row + 0.5) * box['height'] / 60)
            assert name.inner_text() == NAMES[result.labels[row, column]]
        page.locator('.opacity').fill('25')
        assert canvas.evaluate('x => x.style.opacity') == '0.25'

        first = result.categories[0][0]
        changed = (result.labels != NAMES.index(first)).mean()
        ranks = page.get_by_label('range slider')
        ranks.fill('1')
        ranks.dispatch_event('pointerup')
        page.get_by_text('of the pixels change').wait_for()
        told = re.match(r'([\d.]+) %', page.locator('.about').inner_text())
        assert float(told[1]) == pytest.approx(100 * changed, abs=0.6)
        assert page.locator('.ranked .dropped').count() == 2
        regions = page.locator('.region').all_inner_texts()
        assert all(text.startswith(first) for text in regions)


def test_bad_files_in_the_browser(server, photo, chromium, tmp_path):
    broken, large = tmp_path / 'broken.png', tmp_path / 'large.png'
    broken.write_bytes(b'\x89PNG\r\n\x1a\nnothing')
    with open(large, 'wb') as file:
        file.truncate(demo.MOST_BYTES + 1)
    with browser.opened(chromium, server[0]) as page:
        hint = page.locator('.hint')
        hint.wait_for()
        drop(page, photo)
        page.locator('.stack canvas').wait_for()
        page.get_by_label('Clear').first.click()
        hint.get_by_text('Drop a photo').wait_for()
        drop(page, broken)
        hint.get_by_text('broken.png: UnidentifiedImageError: cannot identify').wait_for()
        assert not page.locator('.stack').is_visible()
        page.get_by_label('Clear').first.click()
        drop(page, large)
        page.get_by_text('exceed the maximum').wait_for()
    assert not list(server[1].rglob('large.png'))


def test_a_video_in_the_browser(server, chromium, tmp_path):
    wide, path = smooth((32, 120)), tmp_path / 'clip.mp4'
    with video_files.Writer(path, 10) as writer:
        for i in range(5):
            writer.write(wide[:, 3 * i : 3 * i + 48])
    with browser.opened(chromium, server[0], color_scheme='dark') as page:
        page.locator('.hint').wait_for()
        drop(page, path)
        number = page.locator('.number')
        number.get_by_text('1 of 5').wait_for()
        page.locator('.frame').fill('3')
        number.get_by_text('4 of 5').wait_for()
        page.get_by_role('button', name='Play').click()
        number.get_by_text('2 of 5').wait_for()
        page.get_by_role('button', name='Pause').click()
        assert 'a frame' in page.locator('.about').inner_text()
