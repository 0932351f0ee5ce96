"""--mode=analyze on videos: what clips and frames hold, and what a model of clips keeps of them."""

import json

import numpy as np
import pytest
from PIL import Image

from rankseg_jax import analysis, data, evaluate, models, predict, sharding, tasks
from rankseg_jax.analysis import cost
from rankseg_jax.analysis import model as model_analysis
from tests import tiny
from tests.test_model_analysis import no_cost

CLIPS = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)], [(0, 1), (1, 2)]  # of both videos


def make_config(root, task, **overrides):
    options = dict(
        task=task,
        data__name='video_folder',
        data__num_classes=0,
        eval__clip_length=2,
        eval__clip_overlap=1,
        eval__batch_size=3,
        rankseg__num_selected=2,
    )
    return tiny.queries_config(root, **options | overrides)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('videos') / 'data'
    tiny.write_videos(root)
    return root


def test_what_videos_hold(folder, tmp_path, capsys):
    reports = analysis.run(make_config(folder, 'video_instance'), tmp_path)
    assert json.loads((tmp_path / 'analysis_data/analysis.json').read_text()) == reports
    found = reports['validation']['over_time']
    # Frames hold 1, 2, 3, 3, 3, 3 and 1, 2, 3 categories, each one that of a track.
    per_clip = [2, 3, 3, 3, 3, 2, 3]
    for name in ('categories_per_clip', 'tracks_per_clip'):
        assert found[name]['histogram'] == [per_clip.count(n) for n in range(4)]
    assert found['tracks_per_video']['histogram'] == [0, 0, 0, 2]
    assert reports['validation']['categories_per_image']['histogram'] == [0, 2, 2, 5]
    shares = [6 / 6, 5 / 6, 4 / 6, 3 / 3, 2 / 3, 1 / 3]
    assert found['stay']['mean'] == pytest.approx(np.mean(shares))
    assert found['stay']['median'] == pytest.approx(np.median(shares))
    assert found['stay']['always'] == pytest.approx(2 / 6)
    assert found['stay']['histogram'] == [0, 0, 0, 1, 0, 0, 2, 0, 1, 2]
    assert min(Image.open(tmp_path / 'analysis_data/over_time.png').size) > 200
    text = capsys.readouterr().out
    assert 'in clips of 2 frames, categories per clip: min 2' in text
    assert 'in all of them 33.3% of the time' in text and 'tracks per video: min 3' in text
    assert 'κ: 3 holds all categories of 99 % of the clips' in text


def test_a_task_on_videos_needs_videos(data_dir, tmp_path):
    with pytest.raises(ValueError, match='needs videos, which emoji_scenes does not have'):
        analysis.run(tiny.queries_config(data_dir, task='video_semantic'), tmp_path)


@pytest.mark.parametrize('task', ['video_semantic', 'video_instance'])
def test_what_a_model_of_clips_keeps(task, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_analysis, 'prediction_cost', no_cost)
    config = make_config(folder, task)
    variables = tiny.save_run(config, tmp_path, 'abcd')
    report = analysis.run(config, tmp_path)
    output = tmp_path / 'analysis_validation_0'
    assert json.loads((output / 'analysis.json').read_text()) == evaluate.without_nan(report)
    source = data.get_source(config.data, 'validation')
    labels = [source.load(i)['label'] for i in range(9)]
    held = [set(np.unique(label).tolist()) - {-1} for label in labels]
    assert (report['unit'], report['images'], report['frames']['number']) == ('clip', 7, 9)
    pixels = [sum((label == c).sum() for label in labels) for c in range(4)]
    assert [row['pixels'] for row in report['categories']] == pixels
    assert report['errors']['labeled_pixels'] == sum(pixels)  # those of each frame once
    per_frame = [len(classes) for classes in held]
    assert report['frames']['categories_per_frame']['mean'] == pytest.approx(np.mean(per_frame))
    per_clip = [
        set.union(*(held[indices[frame]] for frame in frames))
        for clips, (_, indices) in zip(CLIPS, source.videos, strict=True)
        for frames in clips
    ]
    per_clip = [len(classes) for classes in per_clip]
    assert report['categories_per_image']['mean'] == pytest.approx(np.mean(per_clip))

    predictor, kept = predict.load(tmp_path), []
    for _, indices in source.videos:
        results = predictor.video([source.load(index)['image'] for index in indices])
        for index, result in zip(indices, results, strict=True):
            ranked = {'abcd'.index(name) for name, _ in result.categories}
            kept.append(len(held[index] & ranked) / len(held[index]))
    assert report['frames']['recall']['category_recall'][1] == pytest.approx(np.mean(kept))

    mesh = sharding.make_mesh(1)
    config.task = 'video_semantic'
    judge = tasks.from_source(config, source)
    step = evaluate.make_eval_step(models.build(config, 4), config, judge, mesh)
    scores = evaluate.evaluate(step, variables, source, config=config, task=judge, mesh=mesh)
    assert report['recall']['category_recall'][1] == pytest.approx(scores['category_recall@2'])
    errors = report['errors']
    assert 1 - errors['wrong_pixels'] / sum(pixels) == pytest.approx(scores['aAcc'])
    for name in ('kappa', 'frames', 'ranks', 'confusion', 'categories', 'categories_per_clip'):
        assert min(Image.open(output / f'{name}.png').size) > 200
    text = capsys.readouterr().out
    assert 'of a frame' in text and 'time/clip' in text and '7 clips. Written to' in text


def test_objects_of_images_are_seen_as_a_label_map(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(model_analysis, 'prediction_cost', no_cost)
    config = tiny.queries_config(data_dir, task='instance')
    source = tasks.open_source(config, 'validation')
    tiny.save_run(config, tmp_path, source.class_names)
    report = analysis.run(config, tmp_path)
    assert report['unit'] == 'image' and 'frames' not in report
    assert [row['name'] for row in report['categories']] == list(source.class_names)
    assert report['errors']['labeled_pixels'] > 0


def test_the_cost_of_a_clip_grows_with_its_length(folder):
    def cost_of(length):
        config = make_config(folder, 'video_semantic', eval__clip_length=length)
        return cost.prediction_cost(config, 4, 2)

    short, long = cost_of(2), cost_of(6)
    assert short['milliseconds'] > 0
    assert long['temporary_bytes'] > 2 * short['temporary_bytes']
