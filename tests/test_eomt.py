"""EoMT against Hugging Face's, its masks and their annealing, and RankSeg on it."""

import dataclasses
import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging
from ml_collections import FrozenConfigDict

from configs import common
from rankseg_jax import models, pretrained
from rankseg_jax.backbones.vit import ViT
from rankseg_jax.frameworks.eomt import EoMT
from rankseg_jax.layers import REMAT_POLICIES
from rankseg_jax.pretrained import hf
from rankseg_jax.selector import Choice
from tests.helpers import (
    mend_torchvision,
    numpy_state,
    random_parameters,
    random_variables,
    relative_error,
)

SIZE = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_blocks=2,
    num_queries=7,
    num_labels=5,
    patch_size=16,
    image_size=80,
    attn_implementation='eager',
)
KINDS = {
    'eomt': ('Eomt', {}),
    'giant': ('Eomt', dict(use_swiglu_ffn=True)),
    'patch14': ('Eomt', dict(patch_size=14, image_size=56, num_upscale_blocks=1)),
    'dinov3': ('EomtDinov3', dict(intermediate_size=48, layer_norm_eps=1e-3)),
    '7b': (
        'EomtDinov3',
        dict(
            intermediate_size=48,
            query_bias=False,
            value_bias=False,
            use_gated_mlp=True,
            hidden_act='silu',
        ),
    ),
    'unbiased': ('EomtDinov3', dict(intermediate_size=48, proj_bias=False, mlp_bias=False)),
}


def hugging_face(kind='eomt', probability=(1.0, 1.0)):
    """A model with large random weights, so that each part shows."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    mend_torchvision()
    name, options = KINDS[kind]
    config = getattr(transformers, f'{name}Config')(**SIZE | options)
    model = getattr(transformers, f'{name}ForUniversalSegmentation')(config)
    model = random_parameters(torch, model, 0.3)
    set_probability(model, probability)
    return model


def set_probability(model, probability):
    """Sets the probability of masks in each joint block."""
    torch = pytest.importorskip('torch')
    model.attn_mask_probs.copy_(torch.tensor(probability))


def images_of(model, count=2):
    side = model.config.image_size
    return np.random.default_rng(0).normal(size=(count, side, side, 3)).astype(np.float32)


def theirs(model, images):
    """All predictions, first to last: (class logits, mask logits)."""
    torch = pytest.importorskip('torch')
    predictions, predict = [], model.predict

    def recorded(x):
        masks, classes = predict(x)
        predictions.append((classes.numpy(), masks.numpy()))
        return masks, classes

    model.predict = recorded
    with torch.no_grad():
        model(torch.tensor(images).permute(0, 3, 1, 2))
    model.predict = predict
    return predictions


def assert_same(output, expected):
    for ours, other in zip(output, expected, strict=True):
        for x, y in zip(ours, other, strict=True):
            assert relative_error(x, y) < 1e-5


def apply(model, variables, images, choice=Choice(), train=False):
    """The output and the variables that training updates."""
    rngs, mutable = {'dropout': jax.random.key(0)}, ['batch_stats'] if train else []
    return jax.jit(partial(model.apply, train=train, mutable=mutable))(
        variables, images, choice=choice, rngs=rngs
    )


@pytest.mark.parametrize('kind', KINDS)
def test_predictions_are_hugging_faces(tmp_path, kind):
    """With masks in all blocks, in the last, and in none, by one program."""
    model = hugging_face(kind)
    model.save_pretrained(tmp_path)
    ours, variables = hf.load_hf(tmp_path)
    images = images_of(model)
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), images, train=False))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
    forward = jax.jit(partial(ours.apply, train=False))
    found = []
    for probability in ((1.0, 1.0), (0.0, 1.0), (0.0, 0.0)):
        set_probability(model, probability)
        statistics = {'mask_probability': np.array(probability, np.float32)}
        output = forward(variables | {'batch_stats': statistics}, images)
        found.append(np.asarray(output.class_logits))
        assert_same([(output.class_logits, output.mask_logits)], theirs(model, images)[-1:])
        assert not output.auxiliary
    assert relative_error(found[0], found[1]) > 1e-3 and relative_error(found[1], found[2]) > 1e-3


@pytest.mark.parametrize('kind', ['eomt', 'dinov3'])
def test_training_predicts_before_each_joint_block_and_at_the_end(tmp_path, kind):
    model = hugging_face(kind)
    model.save_pretrained(tmp_path)
    ours, variables = hf.load_hf(tmp_path)
    ours = ours.clone(backbone=ours.backbone.clone(rescale=1.0))
    images = images_of(model)
    expected = theirs(model, images)
    output, _ = apply(ours, variables, images, train=True)
    found = [*output.auxiliary, (output.class_logits, output.mask_logits)]
    assert len(found) == 3
    assert_same(found, expected)


def test_a_mask_ends_with_its_block(tmp_path):
    """Hugging Face keeps the mask of the first block in the second; the authors' code does not."""
    model = hugging_face(probability=(1.0, 0.0))
    model.save_pretrained(tmp_path)
    ours, variables = hf.load_hf(tmp_path)
    images = images_of(model)
    output, _ = apply(ours, variables, images)
    theirs_last = theirs(model, images)[-1][0]
    forward = model.layers[2].forward
    model.layers[2].forward = lambda x, mask: forward(x, None)
    assert relative_error(output.class_logits, theirs(model, images)[-1][0]) < 1e-5
    assert relative_error(output.class_logits, theirs_last) > 1e-3


def test_chances_between_0_and_1_are_taken_as_1_with_a_warning(tmp_path):
    model = hugging_face(probability=(0.3, 0.6))
    model.save_pretrained(tmp_path)
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    absl_logging.get_absl_logger().addHandler(handler)
    try:
        ours, variables = hf.load_hf(tmp_path)
    finally:
        absl_logging.get_absl_logger().removeHandler(handler)
    assert any('attn_mask_probs' in line for line in lines)
    images = images_of(model, 1)
    found, _ = apply(ours, variables, images)
    variables['batch_stats']['mask_probability'] = np.ones(2, np.float32)
    np.testing.assert_array_equal(found.mask_logits, apply(ours, variables, images)[0].mask_logits)


BACKBONE = ViT(4, 16, 3, 2, image_size=(16, 24), codes='patches', num_registers=2, layer_scale=1.0)
RANKSEG = common.get_config().rankseg
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)


def small(rankseg=None, **fields):
    """An EoMT of 8 categories and its variables."""
    if rankseg is not None:
        rankseg = (
            RANKSEG.to_dict() | dict(num_selected=3, train_selected=0, stride=4, layer=0) | rankseg
        )
        rankseg = FrozenConfigDict(rankseg)
    model = EoMT(BACKBONE, 8, num_queries=5, num_joint=2, rankseg=rankseg, **fields)
    return model, random_variables(model, IMAGES)


def test_masks_are_annealed_by_the_step_and_stay_with_the_checkpoint():
    """As the authors' MaskAnnealing: 1 until the start, then (1 - progress)^0.9, 0 from the end."""
    model, variables = small(anneal_start=(2, 4), anneal_end=(6, 14))
    for step, now in [(0, (1, 1)), (3, (0.75**0.9, 1)), (5, (0.25**0.9, 0.9**0.9)), (20, (0, 0))]:
        # What holds after a step is that of the next one.
        _, updates = apply(
            model, variables, IMAGES, Choice(step=jnp.int32(max(step - 1, 0))), train=True
        )
        if step:
            found = updates['batch_stats']['mask_probability']
            np.testing.assert_allclose(found, now, rtol=1e-6)
    _, updates = apply(model, variables, IMAGES, train=True)
    np.testing.assert_array_equal(
        updates['batch_stats']['mask_probability'], variables['batch_stats']['mask_probability']
    )


def test_blocks_that_run_again_have_the_same_gradients_and_keep_less():
    """With the same masks, which are drawn."""
    model, variables = small()

    def kept(policy):
        """The sum over the output, and how many numbers its backward pass keeps."""
        again = model.clone(backbone=model.backbone.clone(remat=policy))

        def total(params):
            output, _ = apply(again, variables | {'params': params}, IMAGES, train=True)
            return sum(jnp.square(x).mean() for x in output.mask_logits)

        found = jax.eval_shape(lambda params: jax.vjp(total, params)[1], variables['params'])
        return total, sum(x.size for x in jax.tree.leaves(found))

    (plain, most), (again, least), (_, some) = map(kept, (None, *REMAT_POLICIES))
    assert least < some < most
    expected, found = (jax.jit(jax.grad(x))(variables['params']) for x in (plain, again))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found, expected)


def test_each_query_draws_whether_its_mask_is_used():
    model, variables = small()
    embedding, pixels = (
        np.random.default_rng(i).normal(size=shape).astype(np.float32)
        for i, shape in enumerate([(400, 5, 16), (400, 8, 12, 16)])
    )

    def attention_mask(probability):
        return np.asarray(
            model.apply(
                variables,
                embedding,
                pixels,
                probability,
                method='attention_mask',
                rngs={'dropout': jax.random.key(0)},
            )
        )

    masked, some, opened = map(attention_mask, (1.0, 0.3, 0.0))
    assert opened.all() and masked.shape == (400, 5 + 3 + 24, 5 + 3 + 24)
    assert masked[:, 5:].all() and masked[:, :, :8].all() and 0.4 < masked[:, :5, 8:].mean() < 0.6
    used = (some == masked)[:, :5].all(-1)
    assert some[:, :5][~used].all() and 0.27 < used.mean() < 0.33


@pytest.mark.parametrize('train', [False, True])
def test_any_input_size(train):
    model, variables = small()
    for size in [(16, 24), (18, 33), (8, 8)]:
        images = jnp.zeros((2, *size, 3))
        output, _ = jax.eval_shape(partial(apply, model, variables, train=train), images)
        cells = 2 * -(-size[0] // 4), 2 * -(-size[1] // 4)
        assert output.mask_logits.shape == (2, 5, *cells)
        assert output.class_logits.shape == (2, 5, 9) and len(output.auxiliary) == 2 * train


@pytest.mark.parametrize(
    'options', [dict(), dict(tokens='class'), dict(tokens='registers'), dict(layer=2)]
)
def test_rankseg_ranks_the_class_logits_of_every_prediction(options):
    """With every scale of ranks off they are those of the baseline, gathered."""
    scales = dict(temperature='none', score_prior=False)
    model, variables = small(rankseg=options | scales)
    choice = Choice(presence=np.eye(8, dtype=bool)[[3, 6]])
    output, _ = apply(model, variables, IMAGES, choice, train=True)
    assert output.presence_logits.shape == (2, 8)
    labels = np.asarray(output.selection.labels)
    assert (labels == [[3], [6]]).any(1).all()  # forced in
    params = variables['params']
    decoder = {'classes': params['decoder']['classes']}
    baseline, _ = apply(
        model.clone(rankseg=None),
        variables | {'params': params | {'decoder': decoder}},
        IMAGES,
        train=True,
    )
    columns = np.concatenate([labels, np.full((2, 1), 8)], 1)[:, None]
    for found, expected in zip(
        [*output.auxiliary, (output.class_logits, output.mask_logits)],
        [*baseline.auxiliary, (baseline.class_logits, baseline.mask_logits)],
        strict=True,
    ):
        np.testing.assert_allclose(
            found[0], np.take_along_axis(np.asarray(expected[0]), columns, -1), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(stride=8), r'rankseg.stride = 8 must be one of \[4\]'),
        (dict(layer=3), 'rankseg.layer = 3 must be 0 or one of the 2 layers'),
        (dict(tokens='class', head='decoder'), "set config.rankseg.tokens = 'patches'"),
        (dict(tokens='query'), "rankseg.tokens = 'query' must be"),
    ],
)
def test_inputs_of_the_head_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(rankseg=options)


def test_clips_are_refused():
    model, variables = small()
    with pytest.raises(ValueError, match='eomt sees single images'):
        model.apply(variables, IMAGES, train=False, choice=Choice(frames=2))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(joint_blocks=13), 'joint_blocks = 13 must be at most the 12 blocks of dinov2'),
        (dict(anneal_start=(1, 2)), 'must each hold a step for each of the 4 joint blocks'),
        (dict(anneal_start=(1, 2, 3, 4), anneal_end=(1, 3, 4, 5)), 'the end after the start'),
    ],
)
def test_impossible_blocks_are_refused(changes, message):
    config = common.get_config()
    config.rankseg = None
    config.model.update(framework='eomt', backbone='dinov2_reg_s16', **changes)
    with pytest.raises(ValueError, match=message):
        models.build(config, 60)


@pytest.mark.parametrize(
    'key, value',
    [
        ('hidden_act', 'silu'),
        ('hidden_act', 'relu'),
        ('use_gated_mlp', True),
        ('num_upscale_blocks', 1),
        ('rope_parameters', {'rope_type': 'default', 'rope_theta': 50.0}),
    ],
)
def test_configs_of_other_models_are_refused(key, value):
    config = dict(
        model_type='eomt_dinov3', patch_size=16, hidden_size=32, image_size=80, **{key: value}
    )
    with pytest.raises(ValueError, match=key):
        hf.build(hf.Keys(config), {'class_predictor.bias': np.zeros(6)})


def test_gated_mlps_of_older_files_are_read(tmp_path):
    model = hugging_face('giant')
    model.save_pretrained(tmp_path)
    state, older = numpy_state(model), {}
    for key, value in state.items():
        if '.gate_proj.' in key:
            up = state[key.replace('gate_proj', 'up_proj')]
            older[key.replace('gate_proj', 'weights_in')] = np.concatenate([value, up])
        elif '.up_proj.' not in key:
            older[key.replace('down_proj', 'weights_out')] = value
    config, _ = hf.read_folder(tmp_path)
    found, expected = hf.variables(config, older), hf.variables(config, state)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_model_starts_from_a_published_one_of_other_categories_and_size(tmp_path):
    """And from its raw backbone, whose parts alone are replaced."""
    model = hugging_face()
    model.save_pretrained(tmp_path)
    state = numpy_state(model)
    ours, _ = hf.load_hf(tmp_path)
    ours = dataclasses.replace(
        ours, num_classes=9, backbone=ours.backbone.clone(image_size=(96, 64))
    )
    variables = random_variables(ours, np.zeros((1, 96, 64, 3), np.float32))
    loaded = pretrained.load(tmp_path, variables)
    assert loaded['params']['backbone']['position'].shape == (6, 4, 32)
    np.testing.assert_array_equal(loaded['params']['queries'], state['query.weight'])
    np.testing.assert_array_equal(
        loaded['params']['decoder']['classes']['bias'],
        variables['params']['decoder']['classes']['bias'],
    )
