"""What a config leaves to the training images."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs import common, folder
from rankseg_jax import from_data
from rankseg_jax.data.report import Report


def report(categories=(3, 5), sizes=((830, 550), (830, 550), (40, 400))):
    return Report(class_names=('a',) * 9, categories=np.array(categories), sizes=np.array(sizes))


def test_kappa_is_the_99th_percentile():
    # 1 of 100 images holds 9 categories: leaving out 1 % of them, 7 suffice.
    few = [7] * 100 + [9]
    assert from_data.complete(folder.get_config('light'), report(few)).rankseg.num_selected == 7
    more = [7] * 100 + [9] * 2
    assert from_data.complete(folder.get_config('light'), report(more)).rankseg.num_selected == 9


@pytest.mark.parametrize(
    'sizes, shape',
    [
        ([(830, 550)] * 2 + [(40, 400)], (256, 160)),  # 169.6 wide
        ([(550, 830)] * 2 + [(400, 40)], (160, 256)),
        ([(9, 9)], (256, 256)),
        ([(1, 1000)], (32, 256)),
    ],
)
def test_sizes_are_the_usual_shape(sizes, shape):
    config = from_data.complete(folder.get_config('light_baseline'), report(sizes=sizes))
    assert config.augment.crop_size == config.eval.size == shape
    assert config.augment.base_size == tuple(sorted(shape))
    assert from_data.is_complete(config)


def test_a_trained_run_fills_in_what_is_left_open_alone(tmp_path, monkeypatch):
    trained = from_data.complete(folder.get_config('light'), report())
    run = SimpleNamespace(config=trained)
    monkeypatch.setattr(from_data.checkpoint, 'open_run', lambda workdir: run)
    assert from_data.as_trained(folder.get_config('light'), tmp_path) == trained
    config = folder.get_config('light').unlock()
    config.rankseg.num_selected = 2
    found = from_data.as_trained(config, tmp_path)
    assert found.rankseg.num_selected == 2 and found.eval.size == trained.eval.size == (256, 160)


@pytest.mark.parametrize('variant', ['', 'baseline'])
def test_large_photos_are_trained_and_scored_at_one_scale(variant):
    config = from_data.complete(folder.get_config(variant), report(sizes=[(4032, 3024)]))
    assert config.augment.base_size == (384, 512)
    assert config.augment.crop_size == config.eval.size == (512, 384)


def test_a_complete_config_stays_as_it_is():
    config = common.get_config()
    assert from_data.complete(config, Report()) is config


def test_data_that_are_not_counted_are_refused():
    config = folder.get_config('light').unlock()
    config.data.name = 'emoji_scenes'
    with pytest.raises(ValueError, match="'emoji_scenes' is not: set κ"):
        from_data.complete(config, Report())


def test_kappa_of_clips_is_not_that_of_images():
    config = folder.get_config('light')
    config.task = 'video_semantic'
    with pytest.raises(ValueError, match='num_selected = 0 .* selects those of clips: set κ'):
        from_data.complete(config, report([3, 4]))
