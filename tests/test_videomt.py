"""VidEoMT against Hugging Face's, its clips and what they hand on, and RankSeg on it."""

import dataclasses
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs import common
from rankseg_jax import models, pretrained
from rankseg_jax.backbones.vit import ViT
from rankseg_jax.frameworks.eomt import EoMT
from rankseg_jax.frameworks.videomt import VidEoMT
from rankseg_jax.pretrained import hf
from rankseg_jax.selector import Choice
from tests.helpers import mend_torchvision, random_parameters, random_variables, relative_error

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


def hugging_face(**options):
    """A model with large random weights, so that each part shows."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    mend_torchvision()
    config = transformers.VideomtConfig(**SIZE | options)
    return random_parameters(torch, transformers.VideomtForUniversalSegmentation(config), 0.3)


def clips_of(count, length, side=80):
    return np.random.default_rng(0).normal(size=(count, length, side, side, 3)).astype(np.float32)


def theirs(model, clips):
    """Class logits [B, t, Q, K + 1] and mask logits [B, Q, t, h, w]; theirs are in order of time,
    the first frames of all clips before the second ones."""
    torch = pytest.importorskip('torch')
    with torch.no_grad():
        output = model(torch.tensor(clips).permute(0, 1, 4, 2, 3))
    classes, masks = (
        x.numpy().reshape(clips.shape[1], clips.shape[0], *x.shape[1:])
        for x in (output.class_queries_logits, output.masks_queries_logits)
    )
    return classes.swapaxes(0, 1), np.moveaxis(masks, 0, 2)


@partial(jax.jit, static_argnames=('model', 'train'))
def apply(model, variables, clips, choice=Choice(), train=False):
    """The output for clips [B · views, t, H, W, 3]."""
    choice = dataclasses.replace(choice, frames=clips.shape[1])
    images = clips.reshape(-1, *clips.shape[2:])
    rngs = {'dropout': jax.random.key(0)}
    return model.apply(variables, images, train=train, choice=choice, rngs=rngs)


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('options', [{}, dict(use_swiglu_ffn=True)])
def test_clips_are_hugging_faces(tmp_path, count, options):
    """Each frame's class logits, their mean, and masks, without masked attention."""
    model = hugging_face(**options)
    model.save_pretrained(tmp_path)
    ours, variables = hf.load_hf(tmp_path)
    clips = clips_of(count, 4)
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), clips[0], train=False))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
    classes, masks = theirs(model, clips)
    output = apply(ours, variables, clips, Choice(average_over='frame'))
    assert relative_error(output.class_logits, classes) < 1e-5
    assert relative_error(output.mask_logits, masks) < 1e-5
    output = apply(ours, variables, clips)
    assert relative_error(output.class_logits, classes.mean(1)) < 1e-5
    assert relative_error(output.mask_logits, masks) < 1e-5
    output = apply(ours, variables, clips, Choice(average_over='past'))
    running = np.cumsum(classes, 1) / np.arange(1, 5)[:, None, None]
    assert relative_error(output.class_logits, running) < 1e-5
    model.attn_mask_probs.zero_()
    assert relative_error(output.mask_logits, theirs(model, clips)[1]) < 1e-5


BACKBONE = ViT(4, 16, 3, 2, image_size=(16, 24), codes='patches', num_registers=2, layer_scale=1.0)
RANKSEG = common.get_config().rankseg
CLIPS = np.random.default_rng(0).normal(size=(2, 6, 16, 24, 3)).astype(np.float32)


def small(rankseg=None, framework=VidEoMT, **fields):
    """A VidEoMT of 8 categories and its variables."""
    if rankseg is not None:
        rankseg = (
            RANKSEG.to_dict() | dict(num_selected=3, train_selected=0, stride=4, layer=0) | rankseg
        )
        rankseg = FrozenConfigDict(rankseg)
    model = framework(BACKBONE, 8, num_queries=5, num_joint=2, rankseg=rankseg, **fields)
    return model, random_variables(model, CLIPS[0])


@pytest.mark.parametrize('framework', [EoMT, VidEoMT])
def test_an_exported_model_takes_any_number_of_images(framework):
    model, variables = small({}, framework)
    images = np.asarray(CLIPS[0])
    (count,) = jax.export.symbolic_shape('b')
    forward = jax.jit(lambda images: model.apply(variables, images, train=False).class_logits)
    shape = jax.ShapeDtypeStruct((count, *images.shape[1:]), images.dtype)
    exported = jax.export.export(forward)(shape)
    np.testing.assert_allclose(exported.call(images), forward(images), rtol=1e-4, atol=1e-4)


def alike(found, expected):
    """Compares outputs, but for what they hand on."""
    for name in ('class_logits', 'mask_logits', 'queries', 'presence_logits'):
        if (x := getattr(expected, name)) is not None:
            np.testing.assert_allclose(getattr(found, name), x, rtol=1e-4, atol=1e-4)
    if expected.selection is not None:
        np.testing.assert_array_equal(found.selection.labels, expected.selection.labels)


@pytest.mark.parametrize('rankseg', [None, {}, dict(tokens='class'), dict(layer=2)])
@pytest.mark.parametrize('length', [1, 4])
def test_a_video_in_pieces_is_the_video_at_once(rankseg, length):
    """Frames have the same masks, classes and categories; the last clip those of all frames."""
    model, variables = small(rankseg)
    whole = apply(model, variables, CLIPS, Choice(average_over='past'))
    for over in ('past', 'clip'):
        memory, found = model.memory(2), []
        for start in range(0, 6, length):
            choice = Choice(memory=memory, average_over=over)
            output = apply(model, variables, CLIPS[:, start : start + length], choice)
            memory = output.memory
            found.append(output)
        masks = jnp.concatenate([x.mask_logits for x in found], 2)
        if over == 'clip':
            joined = found[-1].replace(mask_logits=masks)
            alike(joined, apply(model, variables, CLIPS))
        else:
            joined = jax.tree.map(
                lambda *x: jnp.concatenate(x, 1),
                *[x.replace(mask_logits=None, memory=None) for x in found],
            )
            alike(joined.replace(mask_logits=masks), whole)
    np.testing.assert_array_equal(memory.frames, 6)
    last = jax.tree.map(lambda x: x[:, -1], whole.replace(mask_logits=None, memory=None))
    alike(last.replace(mask_logits=masks), apply(model, variables, CLIPS))


def test_frames_that_are_padding_change_nothing():
    model, variables = small({})
    shown = np.arange(6) < np.array([[4], [6]])
    output = apply(model, variables, CLIPS, Choice(shown=jnp.asarray(shown)))
    alone = apply(model, variables, CLIPS[:1, :4])
    first = jax.tree.map(lambda x: x[:1], output)
    first = first.replace(mask_logits=first.mask_logits[:, :, :4])
    alike(first, alone)
    for name in ('frames', 'next_queries', 'presence_logits'):
        found, expected = getattr(first.memory, name), getattr(alone.memory, name)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_categories_of_a_clip_are_chosen_by_mean_presence_and_ranked():
    """With every scale of ranks off, class logits are those of the baseline, gathered."""
    model, variables = small(dict(temperature='none', score_prior=False))
    output = apply(model, variables, CLIPS)
    alone = apply(model, variables, CLIPS.reshape(12, 1, 16, 24, 3))
    presence = np.asarray(alone.presence_logits).reshape(2, 6, 8).mean(1)
    np.testing.assert_allclose(output.presence_logits, presence, rtol=1e-4, atol=1e-5)
    labels = np.argsort(-presence, 1)[:, :3]
    np.testing.assert_array_equal(output.selection.labels, labels)
    params = variables['params']
    params = params | {'decoder': {'classes': params['decoder']['classes']}}
    baseline = apply(model.clone(rankseg=None), {'params': params}, CLIPS)
    columns = np.concatenate([labels, np.full((2, 1), 8)], 1)[:, None]
    expected = np.take_along_axis(np.asarray(baseline.class_logits), columns, -1)
    np.testing.assert_allclose(output.class_logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('over', ['clip', 'past', 'frame'])
def test_mirror_images_share_categories(over):
    """As clips of their own, of which presence logits are averaged."""
    model, variables = small({})
    views = np.stack([CLIPS, CLIPS[:, :, :, ::-1]], 1).reshape(4, *CLIPS.shape[1:])
    output = apply(model, variables, views, Choice(views=(2, 1), average_over=over))
    alone = apply(model, variables, views, Choice(average_over=over))
    presence = alone.presence_logits.reshape(2, 2, *alone.presence_logits.shape[1:]).mean(1)
    np.testing.assert_allclose(output.presence_logits, presence, rtol=1e-4, atol=1e-5)
    selection = jax.tree.map(lambda x: jnp.repeat(x, 2, 0), output.selection)
    again = apply(model, variables, views, Choice(selection=selection, average_over=over))
    np.testing.assert_allclose(output.class_logits, again.class_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output.mask_logits, again.mask_logits, rtol=1e-4, atol=1e-4)


def test_training_predicts_before_each_joint_block_and_at_the_end():
    """The first frame of a clip as an EoMT without masks predicts; the queries carry gradients."""
    model, variables = small({})
    output = apply(model, variables, CLIPS[:, :1], Choice(presence=jnp.ones((2, 8), bool)), True)
    assert len(output.auxiliary) == 1
    image_model = small({}, EoMT)[0]
    params = {name: x for name, x in variables['params'].items() if name != 'update'}
    statistics = {'mask_probability': np.zeros(2, np.float32)}
    expected, _ = jax.jit(partial(image_model.apply, train=True, mutable=['batch_stats']))(
        {'params': params, 'batch_stats': statistics},
        CLIPS[:, 0],
        choice=Choice(presence=jnp.ones((2, 8), bool)),
        rngs={'dropout': jax.random.key(0)},
    )
    for found, other in zip(
        [*output.auxiliary, (output.class_logits, output.mask_logits)],
        # Not learned from, as released: the prediction before the last block.
        [*expected.auxiliary[:-1], (expected.class_logits, expected.mask_logits)],
        strict=True,
    ):
        np.testing.assert_allclose(found[0], other[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[1][:, :, 0], other[1], rtol=1e-4, atol=1e-4)

    def last_masks(first_frame):
        clips = jnp.concatenate([first_frame, CLIPS[:, 1:3]], 1)
        return jnp.square(apply(model, variables, clips, train=True).mask_logits[:, :, -1]).sum()

    gradient = jax.grad(last_masks)(jnp.asarray(CLIPS[:, :1]))
    assert np.isfinite(gradient).all() and (gradient != 0).any()


def test_an_image_is_a_clip_of_one_frame():
    model, variables = small({})
    output = model.apply(variables, CLIPS[:, 0], train=False)
    expected = apply(model, variables, CLIPS[:, :1])
    alike(output, expected.replace(mask_logits=expected.mask_logits[:, :, 0]))


def test_a_model_starts_from_an_eomt_and_from_a_published_one(tmp_path):
    """An EoMT lacks the update of queries, which keeps its initial value."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    mend_torchvision()
    config = transformers.EomtConfig(**SIZE)
    eomt = random_parameters(torch, transformers.EomtForUniversalSegmentation(config))
    eomt.save_pretrained(tmp_path / 'eomt')
    video = hugging_face()
    video.save_pretrained(tmp_path / 'videomt')
    ours, _ = hf.load_hf(tmp_path / 'videomt')
    variables = {'batch_stats': {}} | random_variables(ours, np.zeros((1, 80, 80, 3), np.float32))
    loaded = pretrained.load(tmp_path / 'eomt', variables)
    np.testing.assert_array_equal(loaded['params']['queries'], eomt.query.weight.detach().numpy())
    np.testing.assert_array_equal(
        loaded['params']['update']['kernel'], variables['params']['update']['kernel']
    )
    loaded = pretrained.load(tmp_path / 'videomt', variables)
    np.testing.assert_array_equal(
        loaded['params']['update']['kernel'], video.query_updater.weight.detach().numpy().T
    )


def test_impossible_blocks_are_refused():
    config = common.get_config()
    config.rankseg = None
    config.model.update(framework='videomt', backbone='dinov2_reg_s16', joint_blocks=13)
    with pytest.raises(ValueError, match='joint_blocks = 13 must be at most the 12 blocks'):
        models.build(config, 60)
