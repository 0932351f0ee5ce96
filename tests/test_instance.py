"""The task on objects of images: a short run, scored by pycocotools from its files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rankseg_jax import evaluate, predict, tasks, train
from rankseg_jax.data import InstanceSource, rle
from rankseg_jax.tasks import instance
from tests import tiny
from tests.test_panoptic import QUERIES

INSTANCE = QUERIES | dict(
    task='instance', augment__max_category_ratio=1.0, eval__max_objects=5, rankseg__layer=1
)


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
    config = tiny.config(data_dir, steps=4, eval_every=4, **INSTANCE)
    workdir = tmp_path_factory.mktemp('instance')
    scores = train.train(config, workdir)
    assert {'AP', 'AP50', 'APs', 'AR100', 'category_recall@3'} <= set(scores)
    return config, workdir


def test_scores_are_those_of_pycocotools_on_the_files(run, tmp_path, capsys):
    config, workdir = run
    scores = evaluate.run(config, workdir, tmp_path)
    source = tasks.open_source(config, 'validation')
    assert isinstance(source, InstanceSource) and len(source.class_names) == 7
    annotations = []
    for index in range(len(source)):
        for found in source.instances(index):
            number = len(annotations) + 1
            annotations.append(found | {'id': number, 'image_id': source.image_ids[index]})
    truth = COCO()
    truth.dataset = {
        'info': {},
        'images': [{'id': i, 'height': 32, 'width': 32} for i in source.image_ids],
        'categories': [{'id': i} for i in source.category_ids],
        'annotations': [
            x | {'category_id': source.category_ids[x['category_id']]} for x in annotations
        ],
    }
    truth.createIndex()
    results = json.loads((tmp_path / 'results.json').read_text())
    assert len(results) <= 5 * len(source)
    evaluation = COCOeval(truth, truth.loadRes(results), 'segm')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR100')
    for name, value in zip(names, evaluation.stats, strict=False):
        expected = np.nan if value == -1 else value
        np.testing.assert_allclose(scores[name], expected, rtol=1e-9, err_msg=name)

    # The score of an image weighs the recall of its categories by their objects.
    rated = json.loads((tmp_path / 'report.json').read_text())['image_scores']
    assert rated['name'] == 'AR'
    name, score = rated['ids'][-1], rated['scores'][-1]
    evaluation.params.imgIds = [source.image_ids[source.ids.index(name)]]
    evaluation.evaluate()
    evaluation.accumulate()
    recall = evaluation.eval['recall'][:, :, 0, -1].mean(0)  # [K], -1 without an object
    held = [x['category_id'] for x in source.instances(source.ids.index(name))]
    assert score == pytest.approx(np.mean([recall[c] for c in held]))


def test_prediction_draws_and_writes_objects(run, tmp_path):
    config, workdir = run
    predictor = predict.load(workdir)
    predictor.task.config.eval.threshold = 0.0
    source = tasks.open_source(config, 'validation')
    result = predictor(source.load(0)['image'])
    scores = [score for _, score in result.objects]
    assert scores == sorted(scores, reverse=True) and result.masks.shape[1:] == (32, 32)
    result.save(tmp_path / 'a', 'a.png')
    ids = np.array(Image.open(tmp_path / 'a.png'))
    content = json.loads((tmp_path / 'a.json').read_text())
    assert len(content['objects']) == len(result.objects) > 0
    best = content['objects'][0]
    mask = rle.decode(best['segmentation'])
    assert (ids[mask] == best['id']).all() and best['category'] in source.class_names
    assert Image.open(tmp_path / 'a_overlay.png').size[0] >= 32
    assert result.frame_overlay().size[0] >= 32
    predictor.task.config.eval.threshold = 1.0
    assert 'lower it' in predictor(source.load(0)['image']).summary()


def test_targets_are_the_largest_objects(data_dir):
    config = tiny.config(data_dir, **INSTANCE)
    config.data.max_targets = 2
    source = tasks.open_source(config, 'validation')
    task = tasks.from_source(config, source)
    index = next(i for i in range(len(source)) if len(source.instances(i)) > 2)
    example = task.example(source, index, np.random.default_rng(0))
    objects = sorted(source.instances(index), key=lambda found: -found['area'])
    assert example['left_out'] == len(objects) - 2
    assert example['object_labels'].tolist() == [found['category_id'] for found in objects[:2]]
    for n, found in enumerate(objects[:2]):
        mask = (example['label'][0] >> n) & 1
        np.testing.assert_array_equal(mask, rle.decode(found['segmentation']))
    batch = {name: jnp.asarray(x)[None] for name, x in example.items()}
    np.testing.assert_array_equal(task.targets(batch).labels[0], example['object_labels'])


def test_crops_by_shares_of_categories_are_refused_before_an_image_is_read(data_dir):
    config = tiny.config(data_dir, **INSTANCE | dict(augment__max_category_ratio=0.75))
    with pytest.raises(ValueError, match='max_category_ratio = 0.75: the objects .* may overlap'):
        tasks.from_source(config, tasks.open_source(config, 'train'))


def test_after_an_error_the_results_of_before_stay(tmp_path):
    path = tmp_path / 'results.json'
    path.write_text('before')
    writer = instance.ResultsWriter(path, lambda path, entries: path.write_text('partial'))
    with pytest.raises(OSError, match='full'), writer:
        raise OSError('full')
    assert path.read_text() == 'before'
    with writer:
        writer.entries.append((1, []))
    assert path.read_text() == 'partial'


def test_data_without_objects_are_refused(tmp_path):
    (tmp_path / 'images/train').mkdir(parents=True)
    (tmp_path / 'labels/train').mkdir(parents=True)
    for kind, mode in (('images', 'RGB'), ('labels', 'L')):
        Image.new(mode, (8, 8)).save(tmp_path / kind / 'train/a.png')
    (tmp_path / 'classes.txt').write_text('a\nb\n')
    config = tiny.config(tmp_path, **INSTANCE | dict(data__name='folder', data__num_classes=0))
    source = tasks.open_source(config, 'train')
    with pytest.raises(ValueError, match="'instance' needs data with objects, which folder"):
        tasks.from_source(config, source)
