"""Label maps and segments from queries, against HF transformers and a loop over queries."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax import postprocessing, windows
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.postprocessing import View
from rankseg_jax.ranking import from_ranks, gather, select
from rankseg_jax.tasks import panoptic

SIDE = 384  # HF transformers upsamples masks to this size
panoptic_segments = jax.jit(panoptic.panoptic_segments, static_argnames='keep_unsure')
resize = jax.jit(jax.image.resize, static_argnums=(1, 2))
softmax, sigmoid = jax.jit(jax.nn.softmax), jax.jit(jax.nn.sigmoid)


@jax.jit
def best_ranks(views):
    """Those of images that fill the canvas."""
    rows, columns = views[0].rows, views[0].columns
    return postprocessing.best_ranks(
        views, jnp.full((len(rows), 2), jnp.array([rows.shape[1], columns.shape[1]]))
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def resizing(length, cells, batch):
    """Weights [B, length, cells] of a bilinear resize."""
    whole = jnp.full(batch, length)
    return windows.interpolation(
        length=length,
        size=whole,
        content=whole,
        starts=jnp.zeros((batch, 1), int),
        window=length,
        stride=length,
        cells=cells,
        mirror=False,
    )


def random_outputs(batch=4, num_queries=12, num_classes=5, size=(12, 10), seed=0):
    """Logits [B, Q, K + 1] and [B, Q, h, w] of smooth blobs; half of the queries are confident."""
    rng = np.random.default_rng(seed)
    sharpness = rng.choice([1, 12], (batch, num_queries, 1))
    class_logits = (rng.normal(size=(batch, num_queries, num_classes + 1)) * sharpness).astype(
        np.float32
    )
    coarse = rng.normal(-0.5, 8, (batch, num_queries, 3, 3))
    masks = resize(coarse, (batch, num_queries, *size), 'bilinear')
    return class_logits, np.asarray(masks + rng.normal(size=masks.shape), np.float32)


def view(outputs, rows=SIDE, columns=SIDE):
    batch, _, height, width = outputs[1].shape
    rows, columns = resizing(rows, height, batch), resizing(columns, width, batch)
    return View(QueryOutput(*outputs), rows, columns)


def hf(outputs):
    """HF's image processor, and `outputs` as its model returns them."""
    torch = pytest.importorskip('torch')
    module = pytest.importorskip('transformers.models.mask2former.image_processing_mask2former')
    class_logits, mask_logits = (torch.from_numpy(np.array(x)) for x in outputs)
    processor = module.Mask2FormerImageProcessor
    return processor, SimpleNamespace(
        class_queries_logits=class_logits, masks_queries_logits=mask_logits
    )


def test_semantic_maps_equal_transformers():
    outputs = random_outputs(batch=2)
    processor, output = hf(outputs)
    results = processor.post_process_semantic_segmentation(
        None, output, return_segmentation_scores=True
    )
    labels = np.asarray(best_ranks([view(outputs)]))
    for ours, result in zip(labels, results, strict=True):
        best, second = result.segmentation_scores.topk(2, 0).values
        clear = (best - second > 1e-5).numpy()
        assert clear.mean() > 0.999 and len(np.unique(ours)) > 1
        np.testing.assert_array_equal(ours[clear], result.segmentation.numpy()[clear])


def test_the_mean_of_views_in_rank_space():
    """Two views of different resolutions, against all scores over K at once."""
    one, other = random_outputs(seed=1), random_outputs(seed=2, size=(5, 7), num_queries=6)
    selection = select(jnp.asarray(np.random.default_rng(0).normal(size=(4, 5))), 3)
    views, expected = [], 0
    for class_logits, mask_logits in (one, other):
        ranked = gather(jnp.asarray(class_logits), selection, keep_last=True)
        views.append(view((ranked, mask_logits), 70, 90))
        probabilities = softmax(ranked)[..., :-1]
        masks = sigmoid(resize(mask_logits, (*mask_logits.shape[:2], 70, 90), 'bilinear'))
        expected = expected + np.einsum('bqk,bqrc->bkrc', probabilities, masks)
    labels = np.asarray(from_ranks(best_ranks(views), selection))
    _, second, best = np.sort(expected, 1).swapaxes(0, 1)
    clear = best - second > 1e-5
    assert clear.mean() > 0.99 and len(np.unique(labels)) > 2
    np.testing.assert_array_equal(
        labels[clear], np.asarray(from_ranks(expected.argmax(1), selection))[clear]
    )


@pytest.mark.parametrize('threshold, overlap', [(0.5, 0.8), (0.3, 0.3), (0.8, 0.5)])
def test_panoptic_segments_equal_transformers(threshold, overlap):
    outputs = random_outputs(batch=16, num_classes=2, seed=int(10 * threshold))
    outputs[0][0] = 0 * outputs[0][0]  # no query is confident: an image without segments
    processor, output = hf(outputs)
    stuff = {1}
    results = processor.post_process_panoptic_segmentation(
        None,
        output,
        threshold=threshold,
        overlap_mask_area_threshold=overlap,
        label_ids_to_fuse=stuff,
    )
    things = np.array([[True, False]] * 16)
    segments = panoptic_segments(
        view(outputs),
        things,
        np.full((16, 2), SIDE),
        threshold=threshold,
        overlap=overlap,
        keep_unsure=True,
    )
    compared = fused = 0
    for i, result in enumerate(results):
        infos = result['segments_info']
        by_id = {info['id']: info['label_id'] for info in infos}
        distinct = len(
            {(info['label_id'], info['label_id'] in stuff or n) for n, info in enumerate(infos)}
        )
        if distinct > len(by_id):
            continue  # HF reuses an id after it has fused stuff
        compared += 1
        fused += len(infos) > distinct
        np.testing.assert_array_equal(segments.ids[i], result['segmentation'].clip(0))
        count = len(by_id)
        assert segments.labels[i].tolist() == [by_id[n + 1] for n in range(count)] + [-1] * (
            12 - count
        )
        scores = {info['id']: info['score'] for info in infos[::-1]}
        np.testing.assert_allclose(
            segments.scores[i][:count], [scores[n + 1] for n in range(count)], atol=1e-5
        )
    assert compared > 8 and fused and (segments.ids[0] == 0).all()


def segments_by_loop(class_logits, masks, things, threshold, overlap):
    """Ids [H, W] and labels of one image, query by query.

    Takes class_logits [Q, K + 1] and masks [Q, H, W], probabilities.
    """
    probabilities = np.asarray(softmax(class_logits))
    kept = [
        q for q, p in enumerate(probabilities) if p.argmax() < len(things) and p.max() > threshold
    ]
    ids, labels = np.zeros(masks.shape[1:], int), []
    if kept:
        winner = np.array(kept)[np.argmax([probabilities[q].max() * masks[q] for q in kept], 0)]
    for q in kept:
        own, sure = winner == q, masks[q] >= 0.5
        if not (own & sure).any() or own.sum() / sure.sum() < overlap:
            continue
        label = probabilities[q].argmax()
        if things[label] or label not in labels:
            labels.append(label)
        ids[own & sure] = len(labels) if things[label] else labels.index(label) + 1
    return ids, labels


def test_panoptic_segments_as_released_against_a_loop():
    """Images are smaller than the canvas, and blocks end inside it.

    Each image has different things, as in rank space.
    """
    outputs = random_outputs(batch=8, seed=5)
    rng = np.random.default_rng(0)
    things, sizes = rng.random((8, 5)) < 0.5, rng.integers(20, 90, (8, 2))
    whole = view(outputs, 100, 90)
    segments = panoptic_segments(whole, things, sizes, threshold=0.4, overlap=0.5)
    rows, columns = np.asarray(whole.rows), np.asarray(whole.columns)
    masks = np.asarray(sigmoid(np.einsum('brh,bqhw,bcw->bqrc', rows, outputs[1], columns)))
    void = merged = 0
    for i, (height, width) in enumerate(sizes):
        ids, labels = segments_by_loop(
            outputs[0][i], masks[i, :, :height, :width], things[i], 0.4, 0.5
        )
        ours = np.asarray(segments.ids[i])
        np.testing.assert_array_equal(ours[:height, :width], ids)
        assert not ours[height:].any() and not ours[:, width:].any()
        assert segments.labels[i].tolist() == labels + [-1] * (12 - len(labels))
        void, merged = void + (ids == 0).mean(), merged + len(labels)
    assert void > 0 and merged > 8


def test_no_map_of_all_queries_is_built():
    def temporary(function, rows):
        shapes = [(1, 50, 9), (1, 50, 32, 32), (1, rows, 32), (1, 64, 32)]
        classes, masks, *places = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        arguments = (
            View(QueryOutput(classes, masks), *places),
            jnp.ones((1, 8), bool),
            jnp.array([[rows, 64]]),
        )
        return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    for function in (
        lambda view, _, size: postprocessing.best_ranks([view], size),
        panoptic.panoptic_segments,
    ):
        assert temporary(function, 1024) < 1.5 * temporary(function, 128)
