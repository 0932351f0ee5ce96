"""Exported models of videos and of objects give what their runs give."""

import json

import numpy as np
import pytest
from PIL import Image

from rankseg_jax import export, predict
from rankseg_jax.data import video_files
from tests import tiny
from tests.helpers import run_example

SIZE = (32, 48)  # of what the model sees
FRAMES = 7  # a clip of 4 frames, one that overlaps it, and a shorter one


@pytest.fixture(scope='module', params=['video_semantic', 'video_instance', 'instance'])
def exported(request, tmp_path_factory):
    """The task, its run, the folder of its export, and the predictor of these files."""
    workdir = tmp_path_factory.mktemp(request.param)
    config = tiny.queries_config('', task=request.param, eval__size=SIZE)
    tiny.save_run(config, workdir)
    folder = export.run(config, workdir, workdir / 'export')
    return request.param, workdir, folder, predict.load(folder)


def frames(count=FRAMES, size=SIZE):
    """Smooth colors that move."""
    rng = np.random.default_rng(0)
    colors = Image.fromarray(rng.integers(0, 256, (6, 30, 3), np.uint8))
    wide = np.asarray(colors.resize((size[1] * 3, size[0]), Image.Resampling.BICUBIC))
    return [wide[:, 3 * i : 3 * i + size[1]] for i in range(count)]


def same(found, expected):
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert [name for name, _ in found.categories] == [name for name, _ in expected.categories]
    scores = [[score for _, score in result.categories] for result in (found, expected)]
    np.testing.assert_allclose(*scores, rtol=1e-4)
    if hasattr(found, 'masks'):
        np.testing.assert_array_equal(found.masks, expected.masks)
        assert found.ids == expected.ids
        assert [label for label, _ in found.objects] == [label for label, _ in expected.objects]
        scores = [[score for _, score in result.objects] for result in (found, expected)]
        np.testing.assert_allclose(*scores, rtol=1e-4)


def test_an_export_predicts_as_its_run(exported):
    task, workdir, _, served = exported
    ours = predict.load(workdir)
    videos = [predictor.video(frames()) for predictor in (ours, served)]
    expected, found = map(list, videos)
    assert len(found) == FRAMES
    for pair in zip(found, expected, strict=True):
        same(*pair)
    maps = 'segment_ids' if 'instance' in task else 'labels'
    assert len(np.unique([getattr(result, maps) for result in expected])) > 1
    same(served(frames()[0]), ours(frames()[0]))
    tracks = [video.content().get('tracks', []) for video in videos]
    assert [x['segmentations'] for x in tracks[0]] == [x['segmentations'] for x in tracks[1]]


def test_maps_have_the_size_of_their_frames(exported):
    task, _, _, predictor = exported
    video = predictor.video(frames(2, (50, 41)))
    found = list(video)
    for result in found:
        assert result.labels.shape == (50, 41)
        assert 'instance' not in task or result.masks.shape[1:] == (50, 41)
    for track in video.content().get('tracks', []):
        assert all(mask['size'] == [50, 41] for mask in track['segmentations'] if mask)


def test_the_files_state_the_clips(exported):
    task, _, folder, _ = exported
    about = json.loads((folder / 'labels.json').read_text())
    clips = {'clip_length': 4, 'clip_overlap': 1} if 'video' in task else {}
    objects = {'threshold': 0.05, 'max_objects': 6} if 'instance' in task else {}
    options = export.CLIP_OPTIONS + export.OBJECT_OPTIONS
    assert {name: about[name] for name in options if name in about} == clips | objects


@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_the_example_runs_without_this_package(exported, tmp_path, kind):
    task, _, folder, predictor = exported
    source = tmp_path / 'input.mp4'
    if task == 'instance':
        source = tmp_path / ('input.png' if kind == 'file' else 'input.bmp')
        Image.fromarray(frames()[0]).save(source)
    elif kind == 'folder':
        source = tmp_path / 'input'
        source.mkdir()
        for i, frame in enumerate(frames(12)):
            Image.fromarray(frame).save(source / f'{i}.png')
    else:
        with video_files.Writer(source, 10) as writer:
            for frame in frames():
                writer.write(frame)
    assert 'rankseg' not in (folder / 'example.py').read_text()
    printed = run_example(folder, source, tmp_path)
    predictor = predict.load(folder)
    if task == 'instance':
        expected = [predictor(source)]
        written = [tmp_path / 'objects.png']
        first = expected[0].objects[0]
        assert f'1: {predictor.class_names[first[0]]}, score {first[1]:.2f}' in printed
    else:
        expected = list(predictor.video(source))
        written = sorted((tmp_path / 'frames').iterdir())
        assert f'{len(expected)} frames written' in printed
    for path, other in zip(written, expected, strict=True):
        np.testing.assert_array_equal(Image.open(path), other.map_image())
