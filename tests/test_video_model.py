"""Mask2Former on clips, against the released code, and with frames that are padding."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs import common
from rankseg_jax import inference, losses, matching, models, tasks, windows
from rankseg_jax.data import rle
from rankseg_jax.decoders.query_decoder import QueryDecoder
from rankseg_jax.layers import sine_code, sine_positions
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.pretrained.torch_layers import norm, part
from rankseg_jax.ranking import to_ranks
from rankseg_jax.selector import Choice
from rankseg_jax.tracking import Tracker
from tests import golden as golden_files
from tests import released, tiny
from tests.helpers import apply, random_variables

close = dict(rtol=1e-4, atol=1e-5)


def inputs(g, prefix=''):
    """Maps and pixel embeddings of a golden file, channels last."""
    maps = {
        stride: g[f'in/{prefix}maps_{i}'].transpose(0, 2, 3, 1)
        for i, stride in enumerate((32, 16, 8))
    }
    return maps, g[f'in/{prefix}mask_features'].transpose(0, 2, 3, 1)


def clip_choice(length, **choice):
    return Choice(frames=length, **choice)


def predictions(output):
    """(class_logits, mask_logits) of all predictions, first to last."""
    return [*output.auxiliary, (output.class_logits, output.mask_logits)]


def sizes(g):
    """The sizes of a golden decoder, the length of its clips apart."""
    names = {
        'num_classes': 'classes',
        'num_queries': 'queries',
        'channels': 'hidden',
        'num_layers': 'layers',
        'num_heads': 'heads',
        'mlp_dim': 'ffn',
    }
    return {name: int(g[f'hparam/{theirs}']) for name, theirs in names.items()}


def plain_decoder(g):
    params = released.query_decoder(golden_files.state(g), int(g['hparam/heads']))
    return QueryDecoder(**sizes(g)), {'params': params}


def check_predictions(found, g, prefix):
    """Compares (class_logits, mask_logits) of all predictions, first to last."""
    for i, (class_logits, mask_logits) in enumerate(found):
        np.testing.assert_allclose(class_logits, g[f'out/{prefix}class_logits_{i}'], **close)
        if f'out/{prefix}mask_logits_{i}' in g:
            np.testing.assert_allclose(mask_logits, g[f'out/{prefix}mask_logits_{i}'], **close)
    assert len(found) == int(g['hparam/layers']) + 1


@pytest.mark.parametrize('prefix', ['', 'long_'])
def test_golden_decoder(prefix):
    g = golden_files.load('video_decoder')
    length = int(g['hparam/eval_frames' if prefix else 'hparam/frames'])
    decoder, variables = plain_decoder(g)
    maps, pixels = inputs(g, prefix)
    output = apply(decoder, variables, maps, pixels, train=False, choice=clip_choice(length))
    check_predictions(predictions(output), g, prefix)


@pytest.mark.parametrize('prefix', ['', 'long_'])
def test_golden_decoder_of_the_benchmark(prefix):
    """The PyTorch decoder that benchmarks/video_forward.py compares with is the released one."""
    torch = pytest.importorskip('torch')
    from benchmarks.torch_video_decoder import VideoDecoder

    g = golden_files.load('video_decoder')
    length = int(g['hparam/eval_frames' if prefix else 'hparam/frames'])
    decoder = VideoDecoder(**sizes(g)).eval()
    state = golden_files.state(g)
    decoder.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    maps = [torch.tensor(g[f'in/{prefix}maps_{i}']) for i in range(3)]
    with torch.inference_mode():
        found = decoder(maps, torch.tensor(g[f'in/{prefix}mask_features']), length)
    check_predictions(found, g, prefix)


@pytest.mark.parametrize('level', [0, 1])
def test_golden_positions(level):
    g = golden_files.load('video_decoder')
    expected = g[f'out/long_position_{level}'].transpose(0, 2, 3, 1)  # [t, h, w, D]
    length, *shape, dim = expected.shape
    time = sine_code(np.arange(1, length + 1) / (length + 1e-6), dim)
    positions = sine_positions(*shape, dim) + time[:, None, None]
    np.testing.assert_allclose(positions, expected, **close)


def test_frames_that_are_padding_change_nothing():
    g = golden_files.load('video_decoder')
    decoder, variables = plain_decoder(g)
    maps, pixels = inputs(g)
    rng = np.random.default_rng(0)

    def padded(x):  # two clips of 3 frames, to 5 with noise
        x = x.reshape(2, 3, *x.shape[1:])
        noise = rng.normal(size=(2, 2, *x.shape[2:])).astype(np.float32)
        return np.concatenate([x, noise], 1).reshape(-1, *x.shape[2:])

    choice = clip_choice(5, shown=jnp.arange(5) < jnp.array([[3], [3]]))
    noisy = jax.tree.map(padded, maps), padded(pixels)
    output = apply(decoder, variables, *noisy, train=False, choice=choice)
    for i, (class_logits, mask_logits) in enumerate(predictions(output)):
        np.testing.assert_allclose(class_logits, g[f'out/class_logits_{i}'], **close)
        if f'out/mask_logits_{i}' in g:
            np.testing.assert_allclose(mask_logits[:, :, :3], g[f'out/mask_logits_{i}'], **close)


def ranked_decoder(g):
    config = common.get_config().rankseg
    config.update(
        num_selected=int(g['hparam/num_selected']),
        train_selected=0,
        temperature='layer_norm',
        score_prior=False,
        missed='ignore',
        head='encoder',
        layer=int(g['hparam/ml_layer']),
        hidden=g['param/ml_head.proj_dec.weight'].shape[0],
        mlp_dim=g['param/ml_head.block.mlp.fc1.weight'].shape[0],
        num_heads=int(g['hparam/num_ml_heads']),
    )
    state = golden_files.state(g)
    params = released.query_decoder(part(state, 'predictor.'), int(g['hparam/num_heads']))
    params['head'] = released.encoder_head(state, 'ml_head.', int(g['hparam/num_ml_heads']))
    params['rank'] = {'temperature': {'norm': norm(state, 'ml_norm')}}
    decoder = QueryDecoder(
        num_classes=int(g['hparam/num_classes']),
        num_queries=int(g['hparam/num_queries']),
        channels=params['queries'].shape[1],
        num_layers=int(g['hparam/num_layers']),
        num_heads=int(g['hparam/num_heads']),
        mlp_dim=params['layer0']['mlp']['Dense_0']['bias'].shape[0],
        cosine=True,
        rankseg=FrozenConfigDict(config),
    )
    return decoder, {'params': params}


def sampled(maps, points):
    """`losses.sample` of [..., h, w] at points [..., P, 2] of their own."""
    flat = jax.vmap(losses.sample)(
        maps.reshape(-1, *maps.shape[-2:]), points.reshape(-1, *points.shape[-2:])
    )
    return flat.reshape(*maps.shape[:-2], -1)


@jax.jit
def matched_losses(class_logits, mask_logits, ranks, masks, match_points, loss_points):
    """Queries of the targets and the unweighted losses, at recorded points.

    Args:
      masks: [B, M, T, H, W], match_points: [B, P, 2], loss_points: [B, M, T, P, 2].
    """

    def at_match_points(maps):  # [B, N, T, h, w] → [B, N, T · P]
        points = jnp.broadcast_to(
            match_points[:, None, None], (*maps.shape[:3], *match_points.shape[1:])
        )
        return sampled(maps, points).reshape(*maps.shape[:2], -1)

    arguments = class_logits, at_match_points(mask_logits), ranks, at_match_points(masks)
    valid = ranks >= 0
    queries = matching.assign(matching.costs(*arguments, weights=(2.0, 5.0, 5.0)), valid)
    index = jnp.maximum(queries, 0)[:, :, None, None, None]
    chosen = jnp.take_along_axis(mask_logits, index, axis=1)  # [B, M, T, h, w]
    logits, truth = sampled(chosen, loss_points), sampled(masks, loss_points)  # [B, M, T, P]
    pixels, dice = losses.mask_losses(logits, truth, jnp.ones_like(logits))  # [B, M, T]
    classes = losses.query_cross_entropy(class_logits, ranks, queries)
    sums = [jnp.where(valid[..., None], x, 0).sum() / valid.sum() for x in (pixels, dice)]
    return arguments, queries, (classes, *sums)


@pytest.mark.parametrize('kind', ['all', 'rank'])
def test_golden_criterion(kind):
    g = golden_files.load('video_criterion')
    labels = jnp.asarray(g['in/target_labels'], jnp.int32)
    logits = g['in/class_logits']
    if kind == 'rank':
        logits, labels = g['in/rank_logits'], jnp.asarray(g['out/rank/target_ranks'], jnp.int32)
    arguments, queries, parts = matched_losses(
        logits,
        g['in/mask_logits'],
        labels,
        g['in/target_masks'].astype(np.float32),
        g[f'in/{kind}/match_points'],
        g[f'in/{kind}/loss_points'],
    )
    valid = np.asarray(labels)[:, None] >= 0
    for i, name in enumerate(('class', 'mask', 'dice')):
        weights = np.eye(3)[i]
        costs = np.where(valid, matching.costs(*arguments, weights=weights), 0)
        np.testing.assert_allclose(costs, g[f'out/{kind}/cost_{name}'], **close)
    np.testing.assert_array_equal(queries, g[f'out/{kind}/query'])
    for part_, name in zip(parts, ('ce', 'mask', 'dice'), strict=True):
        np.testing.assert_allclose(part_, g[f'out/{kind}/loss_{name}'], **close)


def test_golden_rankseg_training():
    """Presence, selection, rank logits, deletion of targets, all losses of a training step."""
    g = golden_files.load('video_rankseg')
    decoder, variables = ranked_decoder(g)
    length = int(g['hparam/num_frames'])
    maps, pixels = inputs(g)
    # Dropout of the head is off in the file.
    output = apply(decoder, variables, maps, pixels, train=False, choice=clip_choice(length))
    np.testing.assert_allclose(output.presence_logits, g['out/presence_logits'], **close)
    np.testing.assert_array_equal(output.selection.labels, g['out/selected_with_no_object'][:, :-1])
    np.testing.assert_allclose(output.mask_logits, g['out/mask_logits'], **close)
    labels = jnp.asarray(g['in/target_labels'], jnp.int32)
    num_classes = int(g['hparam/num_classes'])
    ranks = to_ranks(labels, output.selection, num_classes=num_classes, ignore_label=-1)
    np.testing.assert_array_equal(ranks, g['out/target_ranks'])
    masks = np.zeros((*g['in/target_masks'].shape[:3], 64, 96), np.float32)
    masks[..., :60, :90] = g['in/target_masks']
    total = 0.0
    for i, (class_logits, mask_logits) in enumerate(predictions(output)):
        np.testing.assert_allclose(class_logits, g[f'out/rank_logits_{i}'], **close)
        _, queries, parts = matched_losses(
            class_logits, mask_logits, ranks, masks, g['in/match_points'][i], g['in/loss_points'][i]
        )
        np.testing.assert_array_equal(queries, g['out/query'][i])
        for part_, name, weight in zip(parts, ('ce', 'mask', 'dice'), (2, 5, 5), strict=True):
            np.testing.assert_allclose(part_, g[f'out/loss_{name}'][i], **close)
            total += weight * part_
    presence = np.zeros((len(labels), num_classes), bool)
    for row, found in zip(presence, np.asarray(labels), strict=True):
        row[found[found >= 0]] = True
    multilabel = 10 * losses.asymmetric_loss(output.presence_logits, presence)
    np.testing.assert_allclose(multilabel, g['out/loss_ml_weighted'], **close)
    np.testing.assert_allclose(total + multilabel, g['out/loss_total'], **close)


def frames_found(task, config, output, selection, *, image_size, padded_size, original_size):
    """What the task finds in each frame of a clip of logits at stride 4."""
    length = output.mask_logits.shape[2]
    view = {
        'image': jnp.zeros((1, length, *padded_size, 3)),
        'content': jnp.asarray(image_size)[None],
    }
    cut, _ = windows.cut_windows(view, config.eval)
    seen = inference.Seen([cut], [output], selection, None)
    size, canvas = jnp.asarray(original_size)[None], (64, 128)

    @jax.jit
    def frame(number):
        views = inference.assemble(seen.frame(number), size, canvas)
        return task.postprocess(views, selection, size, canvas)

    for number in range(length):
        found = {name: np.asarray(x[0]) for name, x in frame(number).items()}
        yield task.cut(found, original_size)


def track_task(num_classes, name='video_instance'):
    config = common.get_config()
    config.task, config.rankseg = name, None
    config.eval.max_objects, config.eval.size = 10, (0, 0)
    names = [str(i) for i in range(num_classes)]
    return config, tasks.build(config, names, [True] * num_classes)


def tracks_of(task, frames):
    """The best tracks of a video that is one window."""
    found = [task.encode(None, 0, n, frame) for n, frame in enumerate(frames)]
    tracker = Tracker()
    masks = [frame['masks'] for frame in found]
    tracker.add(range(len(found)), masks, found[0]['probabilities'], found[0]['embeddings'])
    return tracker.best(10)


def same_masks(track, expected):
    """All but pixels whose logit may round to either side."""
    for number, mask in enumerate(expected):
        found = np.zeros(mask.shape, bool)
        if number in track['masks']:
            found = rle.decode(track['masks'][number])
        assert (found != mask).sum() <= 1


def test_golden_postprocessing():
    g = golden_files.load('video_postprocess')
    sizes = {
        name: tuple(g[f'hparam/{name}'].tolist())
        for name in ('image_size', 'padded_size', 'original_size')
    }
    class_logits, mask_logits = g['in/class_logits'], g['in/mask_logits']
    num_classes = class_logits.shape[-1] - 1
    queries = jnp.zeros((1, class_logits.shape[1], 4))
    output = QueryOutput(jnp.asarray(class_logits), jnp.asarray(mask_logits), queries=queries)
    config, task = track_task(num_classes)
    tracks = tracks_of(task, frames_found(task, config, output, None, **sizes))
    np.testing.assert_allclose([x['score'] for x in tracks], g['out/scores'], **close)
    assert [x['category_id'] for x in tracks] == g['out/labels'].tolist()
    width = sizes['original_size'][1]
    for track, packed in zip(tracks, g['out/masks_packed'], strict=True):
        same_masks(track, np.unpackbits(packed, axis=-1, count=width).astype(bool))
    entries = json.loads(str(g['out/results_json']))
    assert [x['segmentations'][0]['counts'] for x in entries] == [
        x['masks'][0]['counts'] for x in tracks
    ]

    config, task = track_task(num_classes, 'video_semantic')
    labels = [x['labels'] for x in frames_found(task, config, output, None, **sizes)]
    np.testing.assert_array_equal(labels, g['out/semantic'])


def test_golden_rankseg_prediction():
    g = golden_files.load('video_rankseg')
    decoder, variables = ranked_decoder(g)
    maps, pixels = inputs(g, 'long_')
    choice = clip_choice(len(pixels))
    output = apply(decoder, variables, maps, pixels, train=False, choice=choice)
    np.testing.assert_allclose(output.presence_logits, g['out/long_presence_logits'], **close)
    num_classes = int(g['hparam/num_classes'])
    full = released.full_logits(output.class_logits[..., :-1], output.selection, num_classes)
    full = jnp.concatenate([full, output.class_logits[..., -1:]], -1)
    np.testing.assert_allclose(full[0], g['out/long_full_class_logits'], **close)
    sizes = {
        'image_size': tuple(g['hparam/image_size'].tolist()),
        'padded_size': (64, 96),
        'original_size': tuple(g['hparam/original_size'].tolist()),
    }
    config, task = track_task(num_classes)
    tracks = tracks_of(task, frames_found(task, config, output, output.selection, **sizes))
    np.testing.assert_allclose([x['score'] for x in tracks], g['out/long_top10_scores'], **close)
    assert [x['category_id'] for x in tracks] == g['out/long_top10_labels'].tolist()
    width = sizes['original_size'][1]
    for track, packed in zip(tracks, g['out/long_top10_masks_packed'], strict=True):
        same_masks(track, np.unpackbits(packed, axis=-1, count=width).astype(bool))
    config, task = track_task(num_classes, 'video_semantic')
    frames = frames_found(task, config, output, output.selection, **sizes)
    np.testing.assert_array_equal([x['labels'] for x in frames], g['out/long_semantic'])


def test_a_per_pixel_model_pools_its_categories_over_the_frames_shown():
    """The logits of each frame are those of an image over the categories of the clip."""
    config = tiny.config('', rankseg__num_selected=3)
    model = models.build(config, 8)
    rng = np.random.default_rng(0)
    clips = rng.normal(size=(2, 3, 32, 32, 3)).astype(np.float32)
    variables = {'batch_stats': {}} | random_variables(model, clips[:, 0])
    shown = jnp.array([[True, True, False], [True, True, True]])
    forward = jax.jit(lambda images, choice: models.forward(model, variables, images, choice))
    output = forward(clips, Choice(shown=shown))
    alone = forward(clips.reshape(6, 32, 32, 3), Choice(all_classes=True))
    presence = np.array(alone.presence_logits).reshape(2, 3, 8)
    presence[0, 2] = -np.inf
    np.testing.assert_allclose(output.presence_logits, presence.max(1), rtol=1e-5)
    assert output.logits.shape[:2] == (2, 3)
    again = jax.tree.map(lambda x: x.repeat(3, 0), output.selection)
    expected = forward(clips.reshape(6, 32, 32, 3), Choice(selection=again))
    np.testing.assert_allclose(
        output.logits.reshape(expected.logits.shape), expected.logits, rtol=1e-4, atol=1e-4
    )
