"""The tasks on videos, from data to files: perfect predictions score 1, and a short run goes on."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from rankseg_jax import evaluate, export, models, predict, sharding, tasks, train
from rankseg_jax.data import (
    IGNORE_LABEL,
    CorruptExample,
    batching,
    emoji_videos,
    pipeline,
    rle,
    video_files,
    videos,
)
from rankseg_jax.metrics.video import ConsistencyStream
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.prediction_files import predict_files, predict_split
from rankseg_jax.tasks import queries
from tests import tiny
from tests.helpers import random_like
from tests.test_panoptic import QUERIES

SHARED = QUERIES | dict(
    data__name='emoji_videos',
    data__num_train=4,
    data__max_targets=8,
    data__clip_reach=3,
    augment__max_category_ratio=1.0,
    batch_size=2,
    eval__batch_size=2,
    eval__clip_length=8,
    eval__max_objects=3,
)
VIDEOMT = SHARED | dict(
    model__framework='videomt',
    model__backbone='tinier_dino',
    model__joint_blocks=1,
    rankseg__stride=8,
)
KINDS = {
    'video_instance': SHARED | dict(task='video_instance', eval__clip_overlap=2),
    'video_semantic': SHARED | dict(task='video_semantic'),
    'videomt_instance': VIDEOMT | dict(task='video_instance'),
    'videomt_semantic': VIDEOMT | dict(task='video_semantic', eval__average_over='past'),
    'per_pixel': {
        name: value
        for name, value in SHARED.items()
        if not name.startswith(('model', 'rankseg', 'loss'))
    }
    | dict(task='video_semantic', rankseg__num_selected=3),
}

OWN_VIDEOS = dict(data__name='video_folder', data__num_classes=0)


@pytest.fixture(scope='module', autouse=True)
def few_videos():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji_videos, 'VIDEOS', {'train': 4, 'validation': 2, 'test': 1})
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('videos')


def opened(config, split='validation'):
    source = tasks.open_source(config, split)
    return source, tasks.from_source(config, source)


@pytest.mark.parametrize('overlap', [0, 3])
@pytest.mark.parametrize('batch', [1, 3])
def test_perfect_tracks_score_1_in_any_windows_and_batches(folder, overlap, batch):
    """Each window lists the tracks in another order; linking must find them again."""
    config = tiny.config(folder, **KINDS['video_instance'])
    config.rankseg = None
    config.eval.clip_overlap, config.eval.batch_size, config.eval.max_objects = overlap, batch, 12
    source, task = opened(config)
    examples = task.examples(source)
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(20, 8)).astype(np.float32)

    def perfect(variables, batch):
        for number in range(batch['shown'].shape[1]):
            found = []
            for index in batch['index']:
                window = examples.windows[max(int(index), 0)]
                order = np.random.default_rng(max(int(index), 0)).permutation(20)
                masks = np.zeros((20, *batch['label'].shape[-2:]), bool)
                probabilities = np.full((20, 7), 0.01, np.float32)
                tracks = source.tracks(window.video)
                for track in tracks:
                    place = order[track['id']]
                    probabilities[place, track['category_id']] = 0.9 - 0.01 * track['id']
                    frame = window.frames[min(number, len(window.frames) - 1)]
                    if mask := track['segmentations'][frame]:
                        rows, columns = mask['size']
                        masks[place, :rows, :columns] = rle.decode(mask)
                arrays = {
                    'masks': masks,
                    'probabilities': probabilities,
                    'ranked': np.arange(7),
                    'embeddings': embeddings[np.argsort(order)],
                }
                found.append(arrays)
            yield {}, {name: np.stack([x[name] for x in found]) for name in found[0]}

    mesh = sharding.make_mesh(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'local_part', np.asarray)
        scores = evaluate.evaluate(perfect, None, source, config=config, task=task, mesh=mesh)
    assert scores['AP'] == scores['AP50'] == scores['AR10'] == 1
    assert {row['name'] for row in scores['classes']} == set(source.class_names)
    assert 'background' not in source.class_names


@pytest.mark.parametrize('read', [(0, 1), (0,), (1,)])
def test_frames_of_unreadable_clips_are_not_scored(tmp_path, read):
    tiny.write_videos(tmp_path, lengths=(12,))
    config = tiny.queries_config(
        tmp_path,
        task='video_instance',
        data__name='video_folder',
        data__num_classes=0,
        eval__clip_length=6,
        eval__clip_overlap=0,
    )
    config.rankseg = None
    source, task = opened(config)
    examples, tracks = task.examples(source), source.tracks(0)
    items = [
        (
            place,
            number,
            {
                'masks': [track['segmentations'][frame] for track in tracks],
                'probabilities': np.eye(task.num_classes)[[x['category_id'] for x in tracks]],
                'embeddings': np.eye(len(tracks)),
            },
        )
        for place in read
        for number, frame in enumerate(examples.windows[place].frames)
    ]
    total = task.empty_statistics()
    for index, found in task.join(examples, items):
        total = evaluate.merge(total, task.image_statistics(source, index, found))
    assert task.scores(total)['AP'] == pytest.approx(1)


def test_perfect_labels_score_1_and_windows_join(folder):
    config = tiny.config(folder, **KINDS['per_pixel'])
    config.rankseg = None
    source, task = opened(config)

    def perfect(variables, batch):
        for number in range(batch['shown'].shape[1]):
            labels = np.where(
                batch['counted'][:, number, None, None], batch['label'][:, number], -1
            )
            prediction = type('Prediction', (), {'maps': {'labels': jnp.asarray(labels)}})
            statistics = task.statistics({'label': jnp.asarray(labels)}, prediction)
            yield statistics, prediction.maps

    scores = evaluate.evaluate(
        perfect, None, source, config=config, task=task, mesh=sharding.make_mesh(1)
    )
    assert scores['mIoU'] == scores['VC8'] == scores['VC16'] == 1
    pixels = sum(row['pixels'] for row in scores['classes'])
    assert pixels == sum((source.load(i)['label'] >= 0).sum() for i in range(len(source)))


@pytest.fixture(scope='module', params=KINDS)
def run(request, folder, tmp_path_factory):
    """(kind, config, workdir) of a run of a few steps, stopped and resumed on the way."""
    config = tiny.config(folder, steps=4, checkpoint_every=2, eval_every=4, **KINDS[request.param])
    config.num_pictures = 1
    workdir = tmp_path_factory.mktemp(request.param)
    scores = train.train(config, workdir)
    expected = {'AP', 'AR10'} if 'instance' in request.param else {'mIoU', 'VC8', 'VC16'}
    assert expected <= set(scores) and np.isfinite(scores['category_recall@3'])
    first = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[0])
    assert 'clips/s' in first
    return request.param, config, workdir


@pytest.fixture(scope='module')
def evaluated(run, tmp_path_factory):
    """The scores of the run and the folder of its results."""
    _, config, workdir = run
    output = tmp_path_factory.mktemp('results')
    return evaluate.run(config, workdir, output), output


@pytest.fixture(scope='module')
def loaded(run):
    return predict.load(run[2])


@pytest.fixture
def predictor(loaded):
    """The predictor of the run, which finds all objects, however low they score."""
    options = loaded.task.config.eval
    threshold, options.threshold = options.threshold, 0.0
    yield loaded
    options.threshold = threshold


def test_a_run_scores_the_same_again_whatever_the_batch_and_the_devices(run, evaluated, tmp_path):
    kind, config, workdir = run
    again, results = evaluated
    config = config.copy_and_resolve_references()
    config.eval.batch_size, config.mesh.data = 3, 2
    others = evaluate.run(config, workdir, tmp_path)
    for name, value in evaluate.totals(again).items():
        np.testing.assert_allclose(value, others[name], rtol=1e-6, err_msg=name)
    source, task = opened(config)
    if 'instance' in kind:
        entries = json.loads((results / 'results.json').read_text())
        assert {x['video_id'] for x in entries} == {1, 2}
        for entry in entries:
            assert len(entry['segmentations']) == 24 and entry['category_id'] in range(8)
            assert all(x['size'] == [32, 32] for x in entry['segmentations'])
            coco_mask.decode(entry['segmentations'])
    else:
        written = list(results.rglob('*.png'))
        assert len(written) == len(source)


@pytest.fixture(scope='module')
def film(folder):
    source, _ = opened(tiny.config(folder, **KINDS['video_semantic']))
    frames = [source.load(index)['image'] for index in source.videos[0][1]][:11]
    (folder / 'frames').mkdir(exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f'frames/{number:03}.png')
    return folder / 'frames'


def test_prediction_of_videos_photos_and_what_cannot_be_read(
    run, predictor, film, tmp_path, capsys
):
    kind = run[0]
    (tmp_path / 'broken.mp4').write_text('no video')
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / 'photo.png')
    with video_files.Writer(tmp_path / 'film.mp4', 5) as writer:
        for frame in video_files.read_frames(film):
            writer.write(frame)
    inputs = [film, tmp_path / 'film.mp4', tmp_path / 'photo.png', tmp_path / 'broken.mp4']
    output = predict_files(predictor, inputs, tmp_path / 'out')
    assert 'broken.mp4' in capsys.readouterr().out
    for name in ('frames', 'film'):
        assert len(list((output / name).glob('*.png'))) == 11
        content = json.loads((output / f'{name}.json').read_text())
        assert content['frames'] == 11
        drawn = list(video_files.read_frames(output / f'{name}.mp4'))
        assert len(drawn) == 11 and drawn[0].shape[0] >= 32
        ids = np.array(Image.open(output / name / '00000.png'))
        assert ids.shape == (32, 32)
        if 'instance' in kind:
            assert len(content['tracks']) == 3
            for track in content['tracks']:
                assert len(track['segmentations']) == 11
        else:
            assert ids.max() < 8
    assert Image.open(output / 'photo.png').size == (30, 40)
    assert not (output / 'broken').exists() and not (output / 'broken.mp4').exists()


def test_streamed_results_are_those_of_evaluation(run, predictor, evaluated):
    """Frame by frame, `Predictor.video` finds what the batched evaluation finds."""
    (kind, config, _), (_, output) = run, evaluated
    source, task = opened(config)
    frames = [source.load(index)['image'] for index in source.videos[0][1]]
    streamed = predictor.video(iter(frames))
    results = list(streamed)
    assert len(results) == 24
    if 'instance' in kind:
        written = json.loads((output / 'results.json').read_text())
        written = [x for x in written if x['video_id'] == 1]
        tracks = streamed.content()['tracks']
        assert len(tracks) == len(written) == 3
        for track, entry in zip(tracks, written, strict=True):
            assert source.category_ids[track['category_id']] == entry['category_id']
            assert track['score'] == pytest.approx(entry['score'], abs=1e-5)
            for ours, theirs in zip(track['segmentations'], entry['segmentations'], strict=True):
                assert ours == theirs or not ours and not coco_mask.area(theirs)
    else:
        for index, result in zip(source.videos[0][1], results, strict=True):
            path = (output / source.ids[index]).with_suffix('.png')
            np.testing.assert_array_equal(result.labels, np.array(Image.open(path)))


def test_videos_of_the_split_are_drawn_beside_the_truth(run, predictor, tmp_path):
    config = run[1]
    config = config.copy_and_resolve_references()
    if config.rankseg:  # the oracle needs the truth of whole clips
        config.rankseg.oracle = True
        assert predict_split(predictor, config, tmp_path / 'oracle') is None
        assert not (tmp_path / 'oracle').exists()
        config.rankseg.oracle = False
    grid = predict_split(predictor, config, tmp_path)
    name = opened(config)[0].videos[0][0]
    assert Image.open(grid).size == Image.open(tmp_path / f'{name}_panel.png').size
    assert len(list((tmp_path / name).glob('*.png'))) == 24
    assert len(list(video_files.read_frames(tmp_path / f'{name}.mp4'))) == 24


def test_the_report_shows_videos(run, evaluated):
    figures = json.loads((evaluated[1] / 'report.json').read_text())
    assert figures['unit'] == 'video' and figures['images'] == len(opened(run[1])[0])
    names = [name for name, _ in opened(run[1])[0].videos]
    assert sorted(figures['image_scores']['ids']) == sorted(names)
    page = (evaluated[1] / 'report.html').read_text('utf-8')
    data = json.loads(re.search('id="data">(.*?)</script>', page, re.S)[1])
    item = data['items'][str(figures['gallery']['worst'][0])]
    assert len(item['frames']) == 24
    assert all(url.startswith('data:') for url in item['frames'][5].values())
    for track in item['tracks']:
        assert len(track['frames']) == 24 and any(track['frames'])


def test_empty_videos_and_frames_of_two_sizes_are_named(predictor, tmp_path):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / '0.png')
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(tmp_path / '1.png')
    with pytest.raises(CorruptExample, match='1.png'):
        list(predictor.video(tmp_path))
    with pytest.raises(CorruptExample, match='the video: frame 1 has 32 x 40'):
        list(predictor.video([np.zeros((32, width, 3), np.uint8) for width in (32, 40)]))
    assert list(predictor.video([])) == []


def test_training_clips_repeat_and_hold_what_the_source_says(folder):
    config = tiny.config(folder, **KINDS['video_instance'])
    source, task = opened(config, 'train')
    samples = task.samples(source)
    first, again = (
        next(pipeline.train_batches(samples, config, task, start_step=3)) for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first['image'].shape == (2, 2, 32, 32, 3) and first['label'].shape == (2, 2, 32, 32)
    targets = task.targets(first)
    assert targets.bits.shape == (2, 1, 2, 32, 32)
    presence = np.asarray(task.presence(first))
    for row, labels in zip(presence, np.asarray(targets.labels), strict=True):
        assert set(np.flatnonzero(row)) == set(labels[labels >= 0])


def test_tracks_of_any_frame_of_a_clip_are_targets_and_others_are_not(folder):
    """V1: a track that is gone in the last frame keeps its class. V2: one never seen is none."""
    config = tiny.config(folder, **KINDS['video_instance'])
    _, task = opened(config)
    masks = np.zeros((4, 2, 6, 6), bool)
    masks[0, :, :2], masks[1, 0, 2:4], masks[2, 1, 1:5] = True, True, True  # both, first, last
    example = task.packed(masks, np.array([3, 6, 5, 4], np.int32))
    assert sorted(example['object_labels'][:3]) == [3, 5, 6]
    assert (example['object_labels'][3:] == IGNORE_LABEL).all() and example['left_out'] == 0
    batch = {name: jnp.asarray(x)[None] for name, x in example.items()}
    batch['image'] = jnp.zeros((1, 2, 6, 6, 3))
    points = (np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2) + 0.5) / 6
    sampled = np.asarray(task.targets(batch).sample(points)).reshape(8, 2, 6, 6)
    order = [int(np.flatnonzero(example['object_labels'] == label)[0]) for label in (3, 6, 5)]
    np.testing.assert_allclose(sampled[order], masks[:3], atol=1e-5)
    np.testing.assert_array_equal(sampled[3:], 0)


def test_bits_hold_more_targets_than_a_word(folder):
    rng = np.random.default_rng(0)
    masks = rng.random((70, 2, 5, 4)) < 0.5
    bits = queries.pack(masks, 70)
    assert bits.shape == (3, 2, 5, 4) and bits.dtype == np.int32 and bits.min() >= 0
    labels = jnp.asarray(rng.integers(0, 9, (1, 70)), jnp.int32)
    targets = queries.overlapping_targets(labels, jnp.asarray(bits)[None], jnp.zeros(1, int))
    points = (np.stack(np.meshgrid(np.arange(4), np.arange(5)), -1).reshape(-1, 2) + 0.5) / [4, 5]
    sampled = np.asarray(targets.sample(points)).reshape(70, 2, 5, 4)
    np.testing.assert_allclose(sampled, masks, atol=1e-5)


def test_what_a_video_task_cannot_use_is_named(folder, data_dir):
    config = tiny.config(data_dir, task='video_semantic')
    with pytest.raises(ValueError, match="'video_semantic' needs videos, which emoji_scenes"):
        opened(config)
    config.task = 'video_instance'
    with pytest.raises(ValueError, match='needs videos with tracks, which emoji_scenes'):
        opened(config)
    config = tiny.config(folder, **KINDS['video_instance'])
    config.augment.max_category_ratio = 0.5
    with pytest.raises(ValueError, match='max_category_ratio = 0.5'):
        opened(config)


def test_clips_are_padded_to_few_lengths():
    assert [videos.padded_length(n, 20) for n in (1, 2, 3, 5, 9, 17, 20)] == [
        1,
        2,
        4,
        8,
        16,
        20,
        20,
    ]
    clip = videos.pad(
        {'image': np.ones((3, 4, 5, 3), np.uint8), 'label': np.ones((3, 4, 5), int)}, 4
    )
    assert clip['shown'].tolist() == [True, True, True, False]
    assert (clip['label'][3] == IGNORE_LABEL).all() and (clip['image'] == 1).all()


def test_hosts_share_videos_not_windows(folder):
    config = tiny.config(folder, **KINDS['video_semantic'])
    source, task = opened(config)
    examples = task.examples(source)
    shares = [examples.share(place, 2) for place in range(2)]
    assert sorted(sum(shares, [])) == list(range(len(examples)))
    of_video = [{examples.windows[i].video for i in share} for share in shares]
    assert not of_video[0] & of_video[1]
    assert batching.batch_size(config, 1) == 2


def test_scales_and_mirror_images_of_clips_add_up(folder):
    """Categories are chosen once from all views, and frames are cut from each."""
    config = tiny.config(folder, **KINDS['per_pixel'])
    config.eval.scales, config.eval.flip, config.eval.clip_length = (1.0, 0.5), True, 4
    source, task = opened(config)
    model = models.build(config, 8)
    shapes = jax.eval_shape(lambda: models.init(model, 8, 0, (32, 32)))
    predictor = predict.from_model(model, random_like(shapes), config, task=task)
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (4, 4, 3), np.uint8) for _ in range(6)]
    frames = [x.repeat(8, 0).repeat(8, 1) for x in coarse]
    results = list(predictor.video(frames))
    assert len(results) == 6 and results[0].labels.shape == (32, 32)
    assert max(len(np.unique(result.labels)) for result in results) > 1
    mirrored = list(predictor.video([frame[:, ::-1] for frame in frames]))
    same = [(a.labels == b.labels[:, ::-1]).mean() for a, b in zip(results, mirrored, strict=True)]
    assert min(same) > 0.98


def test_a_video_whose_last_clip_cannot_be_read_keeps_its_tracks(folder):
    config = tiny.config(folder, **KINDS['video_instance'])
    source, task = opened(config)
    examples = task.examples(source)
    places = [i for i, window in enumerate(examples.windows) if window.video == 0]
    found = {
        'masks': [rle.encode(np.ones((4, 4), bool))],
        'probabilities': np.eye(7)[:1],
        'embeddings': np.ones((1, 3)),
    }
    items = [
        (place, number, found)
        for place in places[:-1]
        for number in range(len(examples.windows[place].frames))
    ]
    ((video, result),) = task.join(examples, items)
    assert video == 0
    assert len(result['tracks'][0]['masks']) == examples.windows[places[-2]].frames[-1] + 1


def test_consistency_ends_at_a_clip_that_cannot_be_read(tmp_path):
    tiny.write_videos(tmp_path, lengths=(20,))
    config = tiny.config(tmp_path, **KINDS['video_semantic'] | OWN_VIDEOS)
    source, task = opened(config)
    examples = task.examples(source)
    codes, labels = np.random.default_rng(0).integers(0, 2, (2, 20, 4, 4))
    places = 0, len(examples.windows) - 1
    assert len(examples.windows) == 3
    items = [
        (place, number, {'place': frame, 'codes': codes[frame], 'labels': labels[frame]})
        for place in places
        for number, frame in enumerate(examples.windows[place].frames)
    ]
    found = [result['consistency'] for _, result in task.join(examples, items)]
    expected = []
    for place in places:
        stream, window = ConsistencyStream(), examples.windows[place]
        new = [frame for frame in window.frames if frame >= window.first_new]
        expected += [stream.add(codes[frame], labels[frame]) for frame in new]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_splits_with_other_categories_are_refused(tmp_path):
    tiny.write_videos(tmp_path)
    path = tmp_path / 'validation.json'
    content = json.loads(path.read_text())
    for category in content['categories']:
        category['name'] = {'a': 'b', 'b': 'a'}.get(category['name'], category['name'])
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="'validation' must have the categories of split 'train'"):
        train.set_up(tiny.config(tmp_path, **KINDS['video_instance'] | OWN_VIDEOS))


@pytest.mark.parametrize('name', ['videomt_instance', 'videomt_semantic'])
def test_a_stream_does_not_depend_on_its_clips(folder, name):
    """Seen frame by frame, in threes and at once, and while another video is predicted."""
    results, contents = [], []
    config = tiny.config(folder, **KINDS[name])
    config.eval.average_over, config.eval.threshold = 'past', 0.0
    source, task = opened(config)
    model = models.build(config, task.num_classes)
    variables = random_like(
        jax.eval_shape(lambda: models.init(model, task.num_classes, 0, (32, 32)))
    )
    classes = variables['params']['decoder']['classes']  # queries of several classes
    classes['embedding'], classes['bias'] = 30 * classes['embedding'], 0 * classes['bias']
    for config.eval.clip_length in (1, 3, 11):
        predictor = predict.from_model(model, variables, config, task=task)
        streams = [
            predictor.video(source.load(index)['image'] for index in list(video)[:11])
            for _, video in source.videos[:2]
        ]
        found, _ = zip(*zip(*streams, strict=True), strict=True)
        results.append(found)
        contents.append(streams[0].content())
    for found, content in zip(results[1:], contents[1:], strict=True):
        for result, expected in zip(found, results[0], strict=True):
            np.testing.assert_array_equal(result.labels, expected.labels)
            assert getattr(result, 'ids', None) == getattr(expected, 'ids', None)
            for ours, theirs in zip(result.categories, expected.categories, strict=True):
                assert ours[0] == theirs[0] and ours[1] == pytest.approx(theirs[1], abs=1e-5)
        for ours, theirs in zip(
            content.get('tracks', []), contents[0].get('tracks', []), strict=True
        ):
            assert ours.pop('score') == pytest.approx(theirs['score'], abs=1e-5)
            assert ours == {name: x for name, x in theirs.items() if name != 'score'}
    assert len({tuple(np.unique(result.labels)) for result in results[0]}) > 1


def test_clips_that_go_on_from_each_other_keep_their_place_in_batches(folder):
    config = tiny.config(folder, **KINDS['videomt_semantic'] | dict(eval__clip_length=5))
    source, task = opened(config)
    examples = task.examples(source)
    lanes = examples.lanes(range(len(examples)), 2)
    assert sorted(sum(lanes, [])) == list(range(len(examples)))
    followed, seen = {}, []
    for batch in batching.video_batches(examples, config, 1):
        for place in np.flatnonzero(batch['mask']):
            index = int(batch['index'][place])
            video, frames, _ = examples.windows[index]
            assert batch['begins'][place] == (frames[0] == 0)
            assert frames[0] == 0 or followed[place] == (video, frames[0] - 1)
            followed[place] = video, frames[-1]
            seen.append(index)
    assert sorted(seen) == list(range(len(examples)))


@pytest.mark.parametrize('run', ['videomt_semantic'], indirect=True)
def test_a_model_that_goes_on_takes_no_overlap_and_no_export(folder, run, tmp_path):
    _, config, workdir = run
    with pytest.raises(ValueError, match='goes on from clip to clip, which an exported'):
        export.run(config, workdir, tmp_path / 'export')
    config = config.copy_and_resolve_references()
    config.eval.clip_overlap = 2
    with pytest.raises(ValueError, match='clip_overlap = 2: videomt carries its memory'):
        evaluate.run(config, workdir, tmp_path)


def test_tracks_need_an_average(folder):
    config = tiny.config(folder, **KINDS['videomt_instance'])
    config.eval.average_over = 'frame'
    _, task = opened(config)
    output = QueryOutput(jnp.zeros((1, 2, 8)), jnp.zeros((1, 2, 3, 4, 4)), follows=True)
    with pytest.raises(ValueError, match="average_over = 'frame': a track has one class"):
        task.check(output)
