"""The panoptic task from data to files.

One short run is scored against panopticapi, and inputs that must not break it are tried.
"""

import json
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rankseg_jax import (
    checkpoint,
    data,
    evaluate,
    export,
    inference,
    models,
    optimizers,
    predict,
    sharding,
    tasks,
    train,
    train_step,
)
from rankseg_jax.data import CorruptExample, PanopticSource, Source, coco, pipeline, reading
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.prediction_files import predict_split
from tests import tiny
from tests.helpers import random_state

NUM_CLASSES = 8
QUERIES = dict(
    task='panoptic',
    model__framework='mask2former',
    model__backbone='tiny_pyramid',
    model__channels=32,
    model__decoder_heads=2,
    model__pixel_layers=1,
    model__decoder_layers=1,
    model__num_queries=6,
    rankseg__layer=0,
    loss__num_points=64,
    data__max_targets=4,
    augment__photometric=False,
    eval__threshold=0.0,
    eval__overlap=0.0,
)


@pytest.fixture(scope='module')
def trained(data_dir, tmp_path_factory):
    """(config, workdir, validation source) of a run long enough to learn the background."""
    config = tiny.config(
        data_dir, steps=40, log_every=13, eval_every=40, checkpoint_every=40, **QUERIES
    )
    workdir = tmp_path_factory.mktemp('run')
    scores = train.train(config, workdir)
    assert 0 < scores['PQ'] < 1 and 0 < scores['mIoU'] < 1
    return config, workdir, data.get_source(config.data, 'validation')


def test_every_loss_and_the_omitted_targets_are_logged(trained):
    rows = [json.loads(line) for line in (trained[1] / 'metrics.jsonl').read_text().splitlines()]
    losses = [row for row in rows if 'train/loss' in row]
    assert [row['step'] for row in losses] == [1, 13, 26, 39, 40]
    for row in losses:
        parts = [
            row[f'train/loss_{name}'] for name in ('class', 'mask', 'dice', 'cells', 'multilabel')
        ]
        assert row['train/loss'] == pytest.approx(sum(parts), rel=1e-5)
        assert row['train/targets_left_out'] >= 0
    assert max(row['train/targets_left_out'] for row in losses) > 0
    assert rows[-1]['eval/PQ'] >= 0 and rows[-1]['eval/mIoU'] >= 0


def test_scores_and_files_agree_with_panopticapi(trained, tmp_path):
    evaluation = pytest.importorskip('panopticapi.evaluation')
    config, workdir, source = trained
    scores = evaluate.run(config, workdir, tmp_path / 'coco')
    predictions = json.loads((tmp_path / 'coco/predictions.json').read_text())
    assert [category['isthing'] for category in predictions['categories']] == [0] + 7 * [1]
    truth = tmp_path / 'truth'
    truth.mkdir()
    pairs = []
    for annotation in predictions['annotations']:
        ids, segments = source.segments(annotation['image_id'])
        red, green = ids % 256, ids // 256
        Image.fromarray(np.stack([red, green, 0 * ids], -1).astype(np.uint8)).save(
            truth / annotation['file_name']
        )
        infos = [
            segment | {'iscrowd': 0, 'area': int((ids == segment['id']).sum())}
            for segment in segments
        ]
        pairs.append((annotation | {'segments_info': infos}, annotation))
    assert len(pairs) == len(source)
    categories = {category['id']: category for category in predictions['categories']}
    counts = evaluation.pq_compute_single_core(
        0, pairs, truth, tmp_path / 'coco/predictions', categories
    )
    for suffix, isthing in (('', None), ('_things', True), ('_stuff', False)):
        expected, rows = counts.pq_average(categories, isthing)
        for name in ('PQ', 'SQ', 'RQ'):
            assert scores[name + suffix] == pytest.approx(expected[name.lower()], rel=1e-9)
    assert scores['PQ_stuff'] > 0.1
    assert 'PQ' in evaluate.table(scores, tasks.task_class('panoptic').columns).splitlines()[0]
    figures = json.loads((tmp_path / 'coco/report.json').read_text())
    rated = figures['image_scores']
    pair = pairs[source.ids.index(rated['ids'][0])]
    alone = evaluation.pq_compute_single_core(
        0, [pair], truth, tmp_path / 'coco/predictions', categories
    )
    assert rated['name'] == 'PQ'
    assert rated['scores'][0] == pytest.approx(alone.pq_average(categories, None)[0]['pq'])
    assert {'PQ', 'IoU', 'recall@3', 'images'} <= set(figures['classes'][0])


@pytest.fixture(scope='module')
def score(trained):
    """A function that scores the run on so many devices."""
    config, workdir, source = trained
    model, task = models.build(config, NUM_CLASSES), tasks.from_source(config, source)

    @cache
    def compiled(num_devices):
        mesh = sharding.make_mesh(num_devices)
        variables = models.restore(checkpoint.open_run(workdir), model, config, mesh)
        return evaluate.make_eval_step(model, config, task, mesh), variables, mesh

    def score(num_devices=1):
        step, variables, mesh = compiled(num_devices)
        return evaluate.evaluate(step, variables, source, config=config, task=task, mesh=mesh)

    return score


def test_eight_devices_score_the_same_as_one(score):
    one, eight = score(), score(8)
    for name in ('PQ', 'SQ_stuff', 'mIoU', 'aAcc'):
        assert one[name] == pytest.approx(eight[name], abs=2e-3)


def test_images_with_unreadable_segments_are_not_scored(trained, score, monkeypatch):
    source = trained[2]
    read = type(source).segments

    def segments(self, index):
        if index == 3:
            raise CorruptExample('3: no segments')
        return read(self, index)

    counts = [row['segments'] for row in score()['panoptic_classes']]
    held = np.bincount(
        [segment['category_id'] for segment in source.segments(3)[1]], minlength=NUM_CLASSES
    )
    monkeypatch.setattr(type(source), 'segments', segments)
    fewer = [row['segments'] for row in score()['panoptic_classes']]
    np.testing.assert_array_equal(np.subtract(counts, fewer), held)


def test_a_run_and_its_export_predict_the_same(trained, tmp_path):
    config, workdir, source = trained
    image = np.random.default_rng(0).integers(0, 256, (32, 24, 3), np.uint8)
    image[4:20, 4:20] = source.load(0)['image'][4:20, 4:20]
    predictor = predict.load(workdir)
    result = predictor(image)
    assert result.segment_ids.shape == (32, 24)
    assert len(result.segments) == result.segment_ids.max() > 0
    classes = np.array([-1, *(label for label, _ in result.segments)])[result.segment_ids]
    names = {name for name, _ in result.categories}
    assert {source.class_names[c] for c in np.unique(classes) if c >= 0} <= names
    if (classes == 0).any():  # stuff is one segment
        assert sum(label == 0 for label, _ in result.segments) == 1
    result.save(tmp_path / 'a')
    ids = coco.rgb_to_ids(np.array(Image.open(tmp_path / 'a_panoptic.png')))
    np.testing.assert_array_equal(ids, result.segment_ids)
    infos = json.loads((tmp_path / 'a.json').read_text())['segments_info']
    assert [info['id'] for info in infos] == np.unique(ids[ids > 0]).tolist()
    assert all(
        (ids == info['id']).sum() == info['area'] and 0 < info['score'] <= 1 for info in infos
    )
    assert Image.open(tmp_path / 'a_overlay.png').mode == 'RGB'

    served = predict.load(export.run(config, workdir, tmp_path / 'export'))(image)
    np.testing.assert_array_equal(served.segment_ids, result.segment_ids)
    np.testing.assert_allclose(served.segments, result.segments, rtol=1e-4)
    assert served.categories[0][0] == result.categories[0][0]
    grid = predict_split(predictor, config, tmp_path / 'pictures')
    assert Image.open(grid).width > 3 * 384


def test_pictures_can_be_drawn_from_data_without_segments(trained, tmp_path, monkeypatch):
    config, workdir, source = trained

    class LabelMaps(Source):
        class_names, ids, load = source.class_names, source.ids[:1], staticmethod(source.load)

    monkeypatch.setattr(data, 'get_source', lambda *_: LabelMaps())
    assert predict_split(predict.load(workdir), config, tmp_path).is_file()


def test_frames_of_the_same_name_have_files_of_their_own(tmp_path):
    source = SimpleNamespace(ids=['a/0.jpg', 'b/0.jpg', '000000000139'], image_ids=range(3))
    task = tasks.task_class('panoptic')(tiny.config('', **QUERIES), 'ab', (True, False))
    found = {'segment_ids': np.ones((4, 6), np.int32), 'segment_labels': np.zeros(1, np.int32)}
    with coco.Writer(tmp_path / 'predictions.json', [{'id': 0}, {'id': 1}]) as writer:
        for index in range(3):
            task.write(writer, source, index, found)
    names = ['000000000139.png', 'a_0.png', 'b_0.png']
    assert sorted(path.name for path in (tmp_path / 'predictions').iterdir()) == names


def test_segments_that_differ_in_size_from_their_image_are_refused():
    class Sideways(PanopticSource):
        class_names, things, ids = 'ab', (True, False), ['a']

        def load(self, index):
            return {'image': np.zeros((4, 6, 3), np.uint8), 'label': np.zeros((4, 6), np.int32)}

        def segments(self, index):
            return np.ones((6, 4), np.int32), [{'id': 1, 'category_id': 0}]

    config = tiny.config('', **QUERIES)
    source = Sideways()
    batches = pipeline.train_batches(
        source, config, tasks.from_source(config, source), start_step=0
    )
    with pytest.raises(ValueError, match='a: image .* differ in size'):
        next(batches)


def test_batches_hold_the_segments_of_the_source(trained):
    config, _, source = trained
    config = config.copy_and_resolve_references()
    config.augment.update(scale_range=(1.0, 1.0), flip=0.0, max_category_ratio=1.0)
    task = tasks.from_source(config, source)
    batch = next(pipeline.train_batches(source, config, task, start_step=5))
    targets, presence = task.targets(batch), task.presence(batch)
    for i, index in enumerate(
        reading.example_indices(len(source), config.seed, 5, config.batch_size)
    ):
        ids, segments = source.segments(index)
        category = {segment['id']: segment['category_id'] for segment in segments}
        areas = {i: int((ids == i).sum()) for i in category}
        kept = sorted(category, key=lambda i: -areas[i])[:4]
        assert batch['left_out'][i] == len(category) - len(kept)
        for place, label in enumerate(batch['segment_labels'][i]):
            mask = batch['label'][i] == place
            assert (label == -1) == (not mask.any()) and targets.labels[i][place] == label
            assert not mask.any() or any(
                (mask == (ids == j)).all() and category[j] == label for j in kept
            )
        inside = batch['label'][i] >= 0
        labels = source.load(index)['label'][inside]
        np.testing.assert_array_equal(batch['segment_labels'][i][batch['label'][i][inside]], labels)
        assert np.flatnonzero(presence[i]).tolist() == np.unique(labels).tolist()


def random_batch(rng, batch=4, num_targets=4):
    """Four images: without targets, with targets emptied by a crop, unreadable, complete."""
    segments = rng.integers(0, num_targets, (batch, 32, 32)).astype(np.int32)
    labels = rng.integers(0, NUM_CLASSES, (batch, num_targets)).astype(np.int32)
    labels[0], segments[0] = -1, -1
    segments[1] = -1
    return {
        'image': rng.normal(size=(batch, 32, 32, 3)).astype(np.float32),
        'label': segments,
        'mask': np.array([True, True, False, True]),
        'segment_labels': labels,
        'left_out': np.zeros(batch, np.int32),
    }


@pytest.mark.parametrize(
    'change',
    [
        {'model__dtype': 'bfloat16', 'rankseg__num_selected': NUM_CLASSES},
        {'rankseg__missed': 'ignore', 'rankseg__num_selected': 1, 'model__num_queries': 2},
    ],
    ids=['bfloat16, all categories', 'one category, fewer queries than targets'],
)
def test_losses_stay_finite_for_any_targets(change):
    config = tiny.config('', optimizer__name='sgd', **QUERIES | change)
    model = models.build(config, NUM_CLASSES)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    state = random_state(
        jax.eval_shape(lambda: train_step.create_state(model, optimizer, config, NUM_CLASSES))
    )
    task = tasks.build(config, [''] * NUM_CLASSES, [True] * NUM_CLASSES)
    step = jax.jit(train_step.make_train_step(model, optimizer, config, task))
    batch = random_batch(np.random.default_rng(0))
    nothing = batch | {'mask': np.zeros(4, bool), 'label': np.full_like(batch['label'], -1)}
    for case in (batch, nothing, batch | {'image': 1e4 * batch['image']}):
        state, metrics = step(state, case)
        assert all(np.isfinite(value) for value in metrics.values()), metrics
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.model['params']))


def test_impossible_configs_are_refused_before_a_step(trained, tmp_path):
    config, workdir, source = trained
    pixels = tiny.config(config.data.dir, task='panoptic')
    with pytest.raises(
        ValueError,
        match="config.task = 'panoptic' needs a per-query framework such as mask2former, "
        'not segmenter',
    ):
        train.train(pixels, tmp_path)

    class LabelMaps(Source):
        class_names, load = source.class_names, None

    with pytest.raises(ValueError, match='data with segments'):
        tasks.from_source(config, LabelMaps())
    with pytest.raises(ValueError, match='the run was not trained for it'):
        tasks.build(config, source.class_names)
    semantic = tasks.from_source(tiny.config('', **QUERIES | {'task': 'semantic'}), source)
    with pytest.raises(ValueError, match='the run was not trained for it'):
        tasks.build(config, source.class_names, semantic.things)
    task = tasks.build(config, 'ab', np.array([0, 1]))  # as in COCO's files
    assert task.things == (False, True)
    with pytest.raises(ValueError, match="'panoptc' is unknown; did you mean 'panoptic'"):
        tasks.task_class('panoptc')
    model = models.build(config, NUM_CLASSES)
    variables = jax.eval_shape(lambda: models.init(model, NUM_CLASSES, 0, (32, 32)))
    size = jnp.array([[32, 32]])

    def segment(config, variables):
        views = ({'image': jnp.zeros((1, 32, 32, 3)), 'content': size},) * len(config.eval.scales)
        return inference.segment(
            model,
            variables,
            views,
            size,
            config,
            tasks.from_source(config, source),
            canvas=(32, 32),
        )

    for change, message in (
        (
            {'window': (16, 16), 'stride': (16, 16)},
            r"window = \(16, 16\): the masks of config.task = 'panoptic' come from one view",
        ),
        ({'flip': True}, 'come from one view'),
        ({'scales': (1.0, 2.0)}, 'come from one view'),
    ):
        changed = config.copy_and_resolve_references()
        changed.eval.update(change)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(segment, changed), variables)
        with pytest.raises(ValueError, match=message):
            task = tasks.from_source(changed, source)
            train_step.loss_parts(None, QueryOutput(None, None), {}, None, changed, task)
    semantic = config.copy_and_resolve_references()
    semantic.task = 'semantic'
    evaluate.run(semantic, workdir, tmp_path / 'out')
    written = sorted((tmp_path / 'out/validation').iterdir())
    assert len(written) > 2 and np.array(Image.open(written[0])).shape == (32, 32)
