"""Runs of version 0.1 still predict what they did, go on training, and give their weights away.

golden/README.md says how they came about.
"""

import json
import operator
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util

from configs import common
from rankseg_jax import checkpoint, predict, train
from tests import tiny

FOLDER = Path(__file__).parent / 'golden/old_runs'


@pytest.fixture
def workdir(tmp_path):
    """A function that unpacks a run and returns its folder."""

    def unpack(name):
        with zipfile.ZipFile(FOLDER / f'{name}.zip') as file:
            file.extractall(tmp_path / name)
        return tmp_path / name

    return unpack


def recorded(name):
    with np.load(FOLDER / f'{name}.npz') as file:
        return dict(file)


def assert_predicts(predictor, image, expected, atol):
    """The labels and the presence logits of the selected categories are as recorded."""
    result = predictor(image)
    names, confidences = zip(*result.categories, strict=True)
    found = [predictor.class_names.index(name) for name in names]
    np.testing.assert_array_equal(found, expected['categories'])
    logits = np.log(confidences) - np.log1p(np.negative(confidences))
    np.testing.assert_allclose(logits, expected['presence_logits'], rtol=1e-5, atol=atol)
    np.testing.assert_array_equal(result.labels, expected['labels'])
    return result


@pytest.mark.parametrize('name', ['semantic', 'panoptic'])
def test_old_configs_have_all_keys(workdir, name):
    keys = traverse_util.flatten_dict(common.get_config().to_dict()).keys()
    assert (
        keys
        <= traverse_util.flatten_dict(checkpoint.open_run(workdir(name)).config.to_dict()).keys()
    )


def test_semantic_run_predicts_as_before(workdir):
    expected = recorded('semantic')
    assert_predicts(predict.load(workdir('semantic')), expected['image'], expected, atol=1e-5)


def test_panoptic_run_predicts_as_before(workdir):
    expected = recorded('panoptic')
    predictor = predict.load(workdir('panoptic'))
    result = assert_predicts(predictor, expected['image'], expected, atol=1e-5)
    np.testing.assert_array_equal(result.segment_ids, expected['segment_ids'])
    labels, scores = zip(*result.segments, strict=True)
    np.testing.assert_array_equal(labels, expected['segment_labels'])
    np.testing.assert_allclose(scores, expected['segment_scores'], rtol=1e-5)


def config(data_dir, **overrides):
    """The config of the semantic run."""
    return tiny.config(
        data_dir,
        **dict(
            model__framework='upernet',
            model__backbone='tinier',
            optimizer__learning_rate=0.01,
            ema=0.5,
            rankseg__num_selected=5,
            rankseg__temperature='layer_norm',
            loss__cell_weight=0.0,
            log_every=1,
            **overrides,
        ),
    )


def losses(workdir):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [row['train/loss'] for row in map(json.loads, lines) if 'train/loss' in row]


def test_keys_that_a_run_lacks_have_values_of_its_time(workdir):
    found = checkpoint.open_run(workdir('semantic')).config
    for key, value in checkpoint.LATER_KEYS.items():
        get = operator.attrgetter(key)
        assert get(found) == value
        # What earlier models do not have is off.
        assert get(common.get_config()) == value or not value


def test_semantic_run_goes_on_as_before(workdir, data_dir):
    """Two more steps, with the optimizer's state, averaged parameters and order of the data."""
    run, expected = workdir('semantic'), recorded('semantic')
    train.train(config(data_dir, steps=402, eval_every=402, checkpoint_every=400), run)
    np.testing.assert_allclose(losses(run), expected['resumed/loss'], rtol=1e-3)
    resumed = {
        key.removeprefix('resumed/'): value for key, value in expected.items() if 'resumed/' in key
    }
    assert_predicts(predict.load(run), expected['image'], resumed, atol=1e-2)


def test_a_run_starts_from_the_weights_of_an_old_one(workdir, data_dir):
    """Before its first step it predicts what the old one did."""
    setup = train.set_up(config(data_dir, model__pretrained=str(workdir('semantic'))))
    variables = train.fresh_state(setup).model
    for params in (variables['params'], variables['ema']):
        started = {'params': params, 'batch_stats': variables['batch_stats']}
        predictor = predict.from_model(setup.model, started, setup.config, task=setup.task)
        expected = recorded('semantic')
        assert_predicts(predictor, expected['image'], expected, atol=1e-5)
