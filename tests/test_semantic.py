import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax.data import IGNORE_LABEL
from rankseg_jax.decoders.pixel_classifier import PixelOutput
from rankseg_jax.ranking import Selection, full_logits, select, to_ranks
from rankseg_jax.tasks import semantic


def label_map(logits, size, *, content=None, image_shape=None, canvas=None, selection=None):
    batch = len(logits)
    image_shape = image_shape or (4 * logits.shape[1], 4 * logits.shape[2])
    return np.asarray(semantic.label_map(
        PixelOutput(jnp.asarray(logits), selection), jnp.array([content or image_shape] * batch),
        jnp.array([size] * batch), image_shape=image_shape, canvas=canvas or size))


@pytest.mark.parametrize('size', [(16, 20), (33, 17), (8, 100), (130, 5), (1, 1)])
def test_label_map_against_torch_interpolation(size):
    torch = pytest.importorskip('torch')
    logits = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(logits).permute(0, 3, 1, 2), size, mode='bilinear', align_corners=False)
    np.testing.assert_array_equal(label_map(logits, size), resized.argmax(1))


def test_padding_of_the_input_does_not_leak_into_the_picture():
    """Half of the network's input is padding: the map is that of the other half alone."""
    logits = np.random.default_rng(0).normal(size=(1, 8, 8, 5)).astype(np.float32)
    whole = label_map(logits, (24, 40), content=(16, 24), image_shape=(32, 32))
    alone = label_map(logits[:, :4, :6], (24, 40), content=(16, 24), image_shape=(16, 24))
    np.testing.assert_array_equal(whole, alone)


def test_canvas_beyond_the_image_is_ignored():
    logits = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    labels = label_map(logits, (30, 70), canvas=(64, 128))
    np.testing.assert_array_equal(labels[:, :30, :70], label_map(logits, (30, 70)))
    assert (labels[:, 30:] == IGNORE_LABEL).all() and (labels[:, :, 70:] == IGNORE_LABEL).all()


def test_ranks_become_class_ids():
    """Argmax in rank space, mapped back, is the argmax over all K with the others at -100."""
    rng = np.random.default_rng(0)
    selection = select(jnp.asarray(rng.normal(size=(3, 300)), jnp.float32), 7)
    logits = rng.normal(size=(3, 4, 4, 7)).astype(np.float32)
    full = np.asarray(full_logits(logits, selection, 300))
    np.testing.assert_array_equal(label_map(logits, (4, 4), image_shape=(16, 16), selection=selection), full.argmax(-1))


def test_no_tensor_of_all_categories_is_built():
    """At K = 20,000 the map needs no more memory than at κ."""
    logits = jnp.zeros((2, 16, 16, 8))
    selection = Selection(jnp.zeros((2, 8), jnp.int32), jnp.zeros((2, 8)))
    build = jax.jit(lambda logits, selection: semantic.label_map(
        PixelOutput(logits, selection), jnp.full((2, 2), 64), jnp.full((2, 2), 256), image_shape=(64, 64), canvas=(256, 256)))
    temporary = build.lower(logits, selection).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 2 * semantic.ROWS * 256 * 8 * 4 * 4  # four times the upsampled rows


def test_loss_in_rank_space_equals_the_loss_over_selected_categories():
    """Pixels of other categories are left out; the rest see a softmax over the κ selected."""
    from configs import common
    config = common.get_config()
    rng = np.random.default_rng(0)
    num_classes, labels = 12, rng.integers(-1, 12, (2, 8, 8))
    selection = select(jnp.asarray(rng.normal(size=(2, 12)), jnp.float32), 5)
    logits = rng.normal(size=(2, 8, 8, 5)).astype(np.float32)
    batch = {'label': jnp.asarray(labels), 'mask': jnp.ones(2, bool)}
    value, parts = semantic.loss(PixelOutput(jnp.asarray(logits), selection), batch, None, config, num_classes)
    terms = []
    for b in range(2):
        chosen = np.asarray(selection.labels[b]).tolist()
        for i in range(8):
            for j in range(8):
                if labels[b, i, j] in chosen:
                    x = logits[b, i, j].astype(np.float64)
                    terms.append(np.log(np.exp(x).sum()) - x[chosen.index(labels[b, i, j])])
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
    assert list(parts) == ['loss_pixel']
    ranks = to_ranks(batch['label'], selection, num_classes=12, ignore_label=-1)
    assert (np.asarray(ranks) >= 0).sum() == len(terms)
