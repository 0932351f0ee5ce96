from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax import losses
from tests import golden as golden_files


def test_golden_asymmetric_loss_and_gradient():
    g = golden_files.load('losses_metrics')
    settings = [name.removeprefix('asl/') for name in g if name.startswith('asl/')]
    assert settings
    for setting in settings:
        gamma_neg, gamma_pos, clip = map(float, setting.split('_'))
        loss = partial(
            losses.asymmetric_loss,
            presence=g['targets'],
            gamma_neg=gamma_neg,
            gamma_pos=gamma_pos,
            clip=clip,
        )
        value, slope = jax.jit(jax.value_and_grad(loss))(g['logits'])
        np.testing.assert_allclose(value, g[f'asl/{setting}'], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(slope, g[f'asl_grad/{setting}'], rtol=1e-4, atol=1e-7)


def test_golden_binary_cross_entropy():
    g = golden_files.load('losses_metrics')
    np.testing.assert_allclose(
        losses.binary_cross_entropy(g['logits'], g['targets']), g['bce'], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('loss', [losses.asymmetric_loss, losses.binary_cross_entropy])
def test_multilabel_losses_stay_finite_and_respect_the_mask(loss):
    logits = jnp.array([[-1e4, -50.0, 0.0, 50.0, 1e4]] * 2)
    targets = jnp.array([[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]], bool)
    loss, slopes = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    value, slope = slopes(logits, targets)
    assert np.isfinite(value) and np.isfinite(slope).all()
    first = loss(logits, targets, mask=jnp.array([True, False]))
    np.testing.assert_allclose(first, loss(logits[:1], targets[:1]), rtol=1e-6)
    assert loss(logits, targets, mask=jnp.zeros(2, bool)) == 0


@pytest.mark.parametrize('upsample', [True, False])
@pytest.mark.parametrize('average_all', [True, False])
def test_pixel_cross_entropy_against_torch(upsample, average_all):
    torch = pytest.importorskip('torch')
    rng = np.random.default_rng(0)
    logits, labels = (
        rng.normal(size=(2, 4, 5, 6)).astype(np.float32),
        rng.integers(-1, 6, (2, 16, 20)),
    )
    options = dict(upsample=upsample, average_all=average_all)
    ours = jax.jit(partial(losses.pixel_cross_entropy, **options))(logits, labels)
    theirs, target = torch.from_numpy(logits).permute(0, 3, 1, 2), torch.from_numpy(labels)
    if upsample:
        theirs = torch.nn.functional.interpolate(
            theirs, (16, 20), mode='bilinear', align_corners=False
        )
    else:
        target = target[:, 2::4, 2::4]
    expected = torch.nn.functional.cross_entropy(
        theirs, target, ignore_index=-1, reduction='none' if average_all else 'mean'
    ).mean()
    np.testing.assert_allclose(ours.value, expected, rtol=1e-4)


def test_all_ignored_pixels_cost_nothing():
    def loss(logits):
        return losses.pixel_cross_entropy(logits, jnp.full((1, 8, 8), -1)).value

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.ones((1, 2, 2, 3)))
    assert value == 0 and (slope == 0).all()


@pytest.mark.parametrize('shape', [(3, 5), (1, 1), (7, 11)])
def test_subsample_takes_the_nearest_label(shape):
    labels = np.arange(2 * 13 * 11).reshape(2, 13, 11)
    out = losses.subsample(jnp.asarray(labels), shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            row, column = int((i + 0.5) * 13 / shape[0]), int((j + 0.5) * 11 / shape[1])
            np.testing.assert_array_equal(out[:, i, j], labels[:, row, column])
