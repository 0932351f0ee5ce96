import jax.numpy as jnp
import numpy as np

from rankseg_jax.outputs import PixelOutput
from rankseg_jax.ranking import select, to_ranks
from rankseg_jax.tasks import semantic


def test_loss_in_rank_space_equals_the_loss_over_selected_categories():
    """Pixels of other categories are left out; the rest see a softmax over the κ selected."""
    from configs import common

    config = common.get_config()
    rng = np.random.default_rng(0)
    num_classes, labels = 12, rng.integers(-1, 12, (2, 8, 8))
    selection = select(jnp.asarray(rng.normal(size=(2, 12)), jnp.float32), 5)
    logits = rng.normal(size=(2, 8, 8, 5)).astype(np.float32)
    batch = {'label': jnp.asarray(labels), 'mask': jnp.ones(2, bool)}
    output = PixelOutput(jnp.asarray(logits), selection)
    task = semantic.Semantic(config, [''] * num_classes)
    parts, figures = task.loss(None, output, batch)
    assert not figures
    terms = []
    for b in range(2):
        chosen = np.asarray(selection.labels[b]).tolist()
        for i in range(8):
            for j in range(8):
                if labels[b, i, j] in chosen:
                    x = logits[b, i, j].astype(np.float64)
                    terms.append(np.log(np.exp(x).sum()) - x[chosen.index(labels[b, i, j])])
    np.testing.assert_allclose(parts['loss_pixel'].value, np.mean(terms), rtol=1e-5)
    assert list(parts) == ['loss_pixel']
    ranks = to_ranks(batch['label'], selection, num_classes=12, ignore_label=-1)
    assert (np.asarray(ranks) >= 0).sum() == len(terms)
