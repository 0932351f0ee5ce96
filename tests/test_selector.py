"""The category selector over groups of images: windows, mirror images, frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs import common
from rankseg_jax import selector
from rankseg_jax.decoders.pixel_classifier import PixelClassifier
from rankseg_jax.ranking import Selection
from rankseg_jax.selector import Choice
from tests.helpers import apply, random_variables

K = 7


def options(**changes):
    config = common.get_config().rankseg
    config.update({'num_selected': 3, 'train_selected': 0, 'stride': 8} | changes)
    return FrozenConfigDict(config)


def test_presence_logits_are_pooled_by_group():
    logits = np.random.default_rng(0).normal(size=(2 * 3 * 4, K)).astype(np.float32)
    pooled, selection = selector.choose(
        options(), jnp.asarray(logits), Choice(views=(3, 4)), train=False
    )
    for i, group in enumerate(np.split(logits, 2)):
        mirrors = np.split(group, 3)
        expected = np.mean([windows.max(0) for windows in mirrors], 0)
        np.testing.assert_allclose(pooled[i], expected, rtol=1e-6)
        assert selection.labels[i].tolist() == np.argsort(-expected)[:3].tolist()


def test_a_group_shares_one_selection():
    """Windows and frames get the logits of each image alone over the group's selection."""
    model = PixelClassifier(K, options())
    pixels = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4, 5, 8)), jnp.float32)
    variables = random_variables(model, pixels, {8: pixels})
    choice = Choice(views=(1, 3))
    output = apply(model, variables, pixels, {8: pixels}, train=False, choice=choice)
    assert output.presence_logits.shape == (2, K) and output.selection.labels.shape == (2, 3)
    forward = jax.jit(
        lambda image, selection: model.apply(
            variables, image, {8: image}, train=False, choice=Choice(selection=selection)
        )
    )
    for i in range(6):
        chosen = slice(i // 3, i // 3 + 1)
        selection = Selection(output.selection.labels[chosen], output.selection.scores[chosen])
        alone = forward(pixels[i][None], selection)
        np.testing.assert_allclose(output.logits[i], alone.logits[0], rtol=1e-5, atol=1e-6)


def test_a_clip_has_one_more_axis():
    """Pixel embeddings [B, t, h, w, D] get the same logits as the frames one by one."""
    model = PixelClassifier(K, options())
    clip = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 4, 5, 8)), jnp.float32)
    variables = random_variables(model, clip, {8: clip})
    output = apply(model, variables, clip, {8: clip}, train=False)
    assert output.logits.shape == (2, 3, 4, 5, 3)
    choice = Choice(selection=output.selection)
    forward = jax.jit(
        lambda frame: model.apply(variables, frame, {8: frame}, train=False, choice=choice)
    )
    for t in range(3):
        alone = forward(clip[:, t])
        np.testing.assert_allclose(output.logits[:, t], alone.logits, rtol=1e-5, atol=1e-6)


def test_ranked_categories_follow_the_head():
    """Even the oracle and a model without selection rank by the multi-label head."""
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(2, K)), jnp.float32)
    presence = jnp.zeros((2, K), bool).at[:, :2].set(True)
    for changes in ({'oracle': True}, {'select': False}, {}):
        _, selection = selector.choose(
            options(**changes), logits, Choice(presence=presence), train=False
        )
        ranked = selector.ranked_categories(options(**changes), logits, selection)
        np.testing.assert_array_equal(ranked.labels, np.argsort(-logits, -1)[:, :3])


def test_the_oracle_needs_the_truth():
    with pytest.raises(ValueError, match='config.rankseg.oracle = True .* give `presence`'):
        selector.choose(options(oracle=True), jnp.zeros((1, K)), Choice(), train=False)
