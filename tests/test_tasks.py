"""A task written from scratch, in thirty lines, runs in all loops; and what the base class does."""

import json
from contextlib import nullcontext
from typing import ClassVar

import flax
import jax
import numpy as np
import pytest
from PIL import Image

from rankseg_jax import evaluate, export, losses, predict, tasks, train
from rankseg_jax.postprocessing import label_maps
from rankseg_jax.prediction_files import predict_split
from rankseg_jax.ranking import to_ranks
from rankseg_jax.tasks.result import Result
from tests import tiny


@flax.struct.dataclass
class Share:
    right: jax.Array | int = 0
    total: jax.Array | int = 0

    def merge(self, other):
        return Share(self.right + int(other.right), self.total + int(other.total))


class Foreground(tasks.Task):
    """Tells objects from the background, which is class 0; scores the share of right pixels."""

    columns, best_by = ('Acc',), 'accuracy'
    written: ClassVar[list] = []

    def loss(self, key, output, batch):
        ranks = to_ranks(
            batch['label'], output.selection, num_classes=self.num_classes, ignore_label=-1
        )
        return {'loss_pixel': losses.pixel_cross_entropy(output.logits, ranks)}, {}

    def postprocess(self, views, selection, size, canvas):
        return {'labels': label_maps(views, selection, size, canvas).clip(-1, 1)}

    def result(self, image, found, categories):
        return Result(image, found['labels'], categories, ('background', 'object'))

    def empty_statistics(self):
        return {'pixels': Share()}

    def statistics(self, batch, prediction):
        right = batch['label'].clip(-1, 1) == prediction.maps['labels']
        known = batch['label'] >= 0
        return {'pixels': Share((right & known).sum(), known.sum())}

    def scores(self, statistics):
        accuracy = statistics['pixels'].right / statistics['pixels'].total
        rows = [{'name': 'pixels', 'Acc': accuracy, 'pixels': statistics['pixels'].total}]
        return {'accuracy': accuracy, 'classes': rows}

    def writer(self, output, source):
        return nullcontext(self.written)  # empty, and a writer all the same

    def write(self, writer, source, index, found):
        writer.append((index, found['labels'].shape))


def test_a_new_task_trains_evaluates_predicts_and_exports(data_dir, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(tasks.TASKS, 'foreground', f'{__name__}:Foreground')
    config = tiny.config(data_dir, steps=2, eval_every=2, task='foreground')
    scores = train.train(config, tmp_path / 'run')
    assert 0 < scores['accuracy'] < 1
    found = evaluate.run(config, tmp_path / 'run', tmp_path / 'maps')
    assert found['accuracy'] == scores['accuracy'] and 'accuracy' in capsys.readouterr().out
    indices, shapes = zip(*Foreground.written, strict=True)
    assert list(indices) == list(range(len(indices))) and set(shapes) == {(32, 32)}
    rows = json.loads((tmp_path / 'maps/scores_validation_2.json').read_text())
    assert rows['accuracy'] == found['accuracy']

    predictor = predict.load(tmp_path / 'run', 'best')
    grid = predict_split(predictor, config, tmp_path / 'drawings')
    with Image.open(grid) as drawn:
        assert drawn.width > 384
    image = np.random.default_rng(0).integers(0, 256, (32, 20, 3), np.uint8)
    labels = predictor(image).labels
    assert labels.shape == (32, 20) and set(np.unique(labels)) <= {0, 1}
    exported = predict.load(export.run(config, tmp_path / 'run', tmp_path / 'export'))
    np.testing.assert_array_equal(exported(image).labels, labels)


def test_table_without_categories():
    assert evaluate.table({'accuracy': 0.5, 'classes': []}, ()).split() == ['accuracy', '50.0']


@pytest.mark.parametrize('name', tasks.TASKS)
def test_every_task_says_what_it_is(name):
    task = tasks.task_class(name)
    assert issubclass(task, tasks.Task)
    assert task.columns and task.best_by and task.__doc__
