"""Targets of queries, as sets of masks, and their loss in rank space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from rankseg_jax import losses
from rankseg_jax.outputs import QueryOutput
from rankseg_jax.ranking import Selection
from rankseg_jax.tasks import panoptic, queries

K = 9


def as_masks(labels, segments):
    """The targets of an image as a set of (class id, mask)."""
    return {
        (int(label), (np.asarray(segments) == place).tobytes())
        for place, label in enumerate(labels)
        if label >= 0
    }


def random_segments(rng, crowds=True):
    """Ids [12, 16] as in COCO, some of them void, and their segments.

    One segment is missing from the map, and one id is missing from the segments.
    """
    ids = rng.choice([0, 7, 9, 300, 301, 70_000, 80_000], (12, 16))
    segments = [
        {'id': i, 'category_id': int(rng.integers(0, K)), 'iscrowd': int(crowds and i == 9)}
        for i in (80_000, 9, 300, 301, 7, 55)
    ]
    return ids, segments


def test_categories_of_a_label_map():
    labels = np.random.default_rng(0).integers(-1, K, (4, 10, 12)).astype(np.int32)
    labels[0] = -1
    labels[1, labels[1] > 3] = 2
    for max_targets in (K + 3, K, 3):
        targets = jax.jit(queries.category_targets, static_argnums=(1, 2))(labels, K, max_targets)
        assert targets.labels.shape == (4, min(max_targets, K))
        for i, label in enumerate(labels):
            classes, areas = np.unique(label[label >= 0], return_counts=True)
            largest = classes[np.argsort(-areas, kind='stable')][:max_targets]
            assert as_masks(targets.labels[i], targets.segments[i]) == {
                (c, (label == c).tobytes()) for c in largest.tolist()
            }
        held = [len(np.unique(label[label >= 0])) for label in labels]
        np.testing.assert_array_equal(targets.left_out, np.maximum(np.array(held) - max_targets, 0))


def test_segments_without_void_and_crowds():
    rng = np.random.default_rng(0)
    for _ in range(10):
        ids, segments = random_segments(rng)
        expected = {
            (s['category_id'], (ids == s['id']).tobytes())
            for s in segments
            if s['id'] not in (9, 55)
        }
        labels, places, left_out = panoptic.targets(ids, segments, 6)
        assert labels.shape == (6,) and left_out == 0 and as_masks(labels, places) == expected
        labels, places, left_out = panoptic.targets(ids, segments, 3)
        assert left_out == 1 and as_masks(labels, places) < expected
        areas = [(places == place).sum() for place in range(3)]
        assert min(areas) >= min(
            (ids == s['id']).sum() for s in segments if s['id'] not in (9, 55)
        ) and areas[0] == max(areas)
    labels, places, left_out = panoptic.targets(np.zeros((3, 3), int), [], 2)
    assert (labels == -1).all() and (places == -1).all() and left_out == 0


def test_a_segment_outside_the_crop_is_not_a_target():
    labels, places, _ = panoptic.targets(*random_segments(np.random.default_rng(1)), 6)
    cropped = np.where(places == 2, -1, places)
    targets = queries.visible_targets(labels[None], cropped[None], np.zeros(1, int))
    assert targets.labels[0, 2] == -1
    np.testing.assert_array_equal(np.delete(targets.labels[0], 2), np.delete(labels, 2))


@pytest.mark.parametrize('selected', [False, True])
def test_the_loss_in_rank_space(selected):
    rng = np.random.default_rng(0)
    found = [panoptic.targets(*random_segments(rng), 6) for _ in range(3)]
    segment_labels, segments, left_out = (np.stack(x) for x in zip(*found, strict=True))
    targets = queries.visible_targets(segment_labels, segments, left_out)
    chosen = np.stack([rng.permutation(K)[:4] for _ in range(3)])
    selection = Selection(jnp.asarray(chosen), jnp.zeros((3, 4))) if selected else None
    outputs = [
        (rng.normal(size=(3, 7, (4 if selected else K) + 1)), rng.normal(size=(3, 7, 3, 4)))
        for _ in range(2)
    ]
    config = common.get_config()
    config.loss.num_points, config.loss.no_object = 40, 0.3
    config.loss.class_weight, config.loss.mask_weight, config.loss.dice_weight = 1.5, 3.0, 4.0
    first, last = outputs
    targets = targets.replace(left_out=np.array([0, 3, 0]))
    output = QueryOutput(*last, selection, auxiliary=(first,))
    mask = np.ones(3, bool)
    loss = jax.jit(
        lambda *inputs: queries.loss(
            jax.random.key(0), *inputs, mask=mask, config=config, num_classes=K
        )
    )
    parts, figures = loss(output, targets)
    assert figures['targets_left_out'] == 1
    labels = np.asarray(targets.labels)
    if selected:
        labels = np.array(
            [
                [row.tolist().index(c) if c in row else -1 for c in image]
                for row, image in zip(chosen, labels, strict=True)
            ]
        )
        assert (labels < 0).sum() > (targets.labels < 0).sum()
    expected = jax.jit(
        lambda outputs, labels, targets: losses.query_losses(
            jax.random.key(0),
            outputs,
            labels,
            targets.sample,
            weights=(1.5, 3.0, 4.0),
            num_points=40,
            no_object_weight=0.3,
        )
    )(outputs, labels, targets)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts, expected)


def test_categories_of_pixels():
    """Those of the target that holds a pixel, of the first one where masks overlap."""
    rng = np.random.default_rng(0)
    labels = np.array([[3, -1, 8], [-1, -1, -1], [5, 5, 0]], np.int32)
    segments = rng.integers(-1, 3, (3, 4, 5)).astype(np.int32)
    masks = rng.random((3, 3, 4, 5)) < 0.4  # [B, N, H, W]
    of_segments, of_masks = np.full((2, 3, 4, 5), -1)
    for b, i, j in np.ndindex(3, 4, 5):
        if segments[b, i, j] >= 0:
            of_segments[b, i, j] = labels[b, segments[b, i, j]]
        held = [n for n in range(3) if masks[b, n, i, j]]
        of_masks[b, i, j] = labels[b, held[0]] if held else -1
    none = np.zeros(3, np.int32)
    targets = queries.Targets(jnp.array(labels), jnp.array(segments), none)
    np.testing.assert_array_equal(targets.category_map(), of_segments)
    bits = jnp.array([queries.pack(mask, 3) for mask in masks])
    targets = queries.OverlappingTargets(jnp.array(labels), bits, none)
    np.testing.assert_array_equal(targets.category_map(), of_masks)
