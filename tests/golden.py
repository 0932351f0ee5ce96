"""Golden files: weights, inputs and outputs of the paper's released code; see golden/README.md.

RANKSEG_GOLDEN names another folder to read them from.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from configs import common
from rankseg_jax import tasks, train_step

FOLDER = Path(os.environ.get('RANKSEG_GOLDEN') or Path(__file__).with_suffix(''))


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of `<name>.npz` by their names."""
    path = FOLDER / f'{name}.npz'
    assert path.exists(), f"no golden file {path}: unset RANKSEG_GOLDEN to use the repository's own"
    with np.load(path) as file:
        return dict(file)


def state(golden) -> dict[str, np.ndarray]:
    """The parameters of a golden file under the released code's names."""
    return {
        key.removeprefix('param/'): value
        for key, value in golden.items()
        if key.startswith('param/')
    }


def rankseg(golden, **options):
    """`config.rankseg` as the released code has it, with a golden file's sizes."""
    config = common.get_config().rankseg
    config.update(
        num_selected=int(golden['hparam/num_selected']),
        train_selected=0,
        pool=int(golden['hparam/pool']),
        temperature='layer_norm',
        missed='ignore',
        score_prior=False,
        **options,
    )
    return FrozenConfigDict(config)


def check_loss(golden, output):
    """The two training losses of a golden file, as weighted and averaged by the released code."""
    parts = loss_parts(golden, output)
    for name, theirs in (('loss_multilabel', 'loss_img'), ('loss_pixel', 'loss_seg')):
        np.testing.assert_allclose(parts[name].value, golden[f'loss/{theirs}'], rtol=1e-4)


def loss_parts(golden, output):
    """The parts of our training loss, with the settings and the labels of a golden file."""
    config = common.get_config()
    config.loss.update(
        average_all=True,
        multilabel_weight=float(golden['hparam/class_loss_weight']),
        gamma_neg=float(golden['hparam/asl_gamma_neg']),
        gamma_pos=float(golden['hparam/asl_gamma_pos']),
        clip=float(golden['hparam/asl_clip']),
    )
    num_classes = int(golden['hparam/num_classes'])
    labels = jnp.asarray(np.where(golden['labels'] == 255, -1, golden['labels']))
    batch = {'label': labels, 'mask': jnp.ones(len(labels), bool)}
    task = tasks.build(config, [''] * num_classes)
    parts, _ = jax.jit(
        lambda output: train_step.loss_parts(
            None, output, batch, task.presence(batch), config, task
        )
    )(output)
    return parts
