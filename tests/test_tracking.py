"""Links between windows of a video, on objects whose tracks are known."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rankseg_jax.data import rle, videos
from rankseg_jax.tracking import Tracker

SIZE, LENGTH, K = (24, 36), 17, 5


def moving_squares(count=4, seed=0):
    """Masks bool [count, LENGTH, *SIZE] of squares that cross each other, classes, embeddings."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, LENGTH, *SIZE), bool)
    for n in range(count):
        start, end = rng.uniform(2, [20, 32], (2, 2))
        for t in range(LENGTH):
            row, column = (start + (end - start) * t / LENGTH).astype(int)
            masks[n, t, row : row + 4, column : column + 4] = True
    return masks, rng.permutation(K)[:count], rng.normal(size=(count, 8))


def link(masks, labels, embeddings, size, overlap, seed=0):
    """Windows in which the objects come in another order each time."""
    rng, tracker, orders = np.random.default_rng(seed), Tracker(), []
    for frames, _ in videos.windows(LENGTH, size, overlap):
        order = rng.permutation(len(masks))
        probabilities = np.full((len(masks), K), 0.02)
        probabilities[np.arange(len(masks)), labels[order]] = 0.5 + 0.1 * order / len(masks)
        encoded = [[rle.encode(masks[n, t]) for n in order] for t in frames]
        noise = 0.2 * rng.normal(size=embeddings.shape)
        tracks = tracker.add(frames, encoded, probabilities, embeddings[order] + noise)
        orders.append({int(n): track.id for n, track in zip(order, tracks, strict=True)})
    return tracker, orders


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 20), st.integers(0, 6), st.integers(0, 3))
def test_objects_keep_their_track_whatever_the_windows(size, overlap, seed):
    if overlap >= size:
        return
    masks, labels, embeddings = moving_squares(seed=seed)
    tracker, orders = link(masks, labels, embeddings, size, overlap, seed)
    assert all(ids == orders[0] for ids in orders)
    best = tracker.best(4)
    assert [track['category_id'] for track in best] == labels[::-1].tolist()
    for track, mask in zip(best, masks[::-1], strict=True):
        found = [rle.decode(track['masks'][t]) for t in range(LENGTH)]
        np.testing.assert_array_equal(found, mask)


def test_an_object_that_resembles_none_begins_a_track():
    masks, labels, embeddings = moving_squares()
    tracker = Tracker()
    for frames, chosen in ((range(0, 6), [0, 1]), (range(4, 10), [1, 2])):
        encoded = [[rle.encode(masks[n, t]) for n in chosen] for t in frames]
        tracker.add(frames, encoded, np.eye(K)[labels[chosen]], embeddings[chosen])
    assert [track.id for track in tracker.current] == [2, 3]
    assert sorted(tracker.tracks[1].masks) == list(range(10))
    assert sorted(tracker.tracks[0].masks) == list(range(6))


def test_class_probabilities_are_averaged_over_windows():
    masks, _, embeddings = moving_squares(1)
    tracker = Tracker()
    for frames, p in ((range(0, 6), [0.6, 0.4, 0, 0, 0]), (range(4, 10), [0.1, 0.7, 0.2, 0, 0])):
        encoded = [[rle.encode(masks[0, t])] for t in frames]
        tracker.add(frames, encoded, np.array([p]), embeddings)
    best = tracker.best(10)
    assert [(x['id'], x['category_id']) for x in best[:3]] == [(1, 1), (1, 0), (1, 2)]
    np.testing.assert_allclose([x['score'] for x in best[:3]], [0.55, 0.35, 0.1])


def test_an_empty_video_has_no_tracks():
    assert Tracker().best(10) == []


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 11))
def test_windows_hold_every_frame_and_streams_cut_alike(length, size, overlap):
    if overlap >= size:
        return
    found = list(videos.windows(length, size, overlap))
    new = [frame for frames, first_new in found for frame in frames if frame >= first_new]
    assert new == list(range(length))
    for (before, _), (after, first_new) in zip(found, found[1:], strict=False):
        assert len(before) == size and before[-1] + 1 == first_new
        assert first_new - after[0] == overlap
    streamed = [
        (window.frames, window.first_new, [int(frame) for frame in held])
        for window, held in videos.stream_windows(map(np.array, range(length)), size, overlap)
    ]
    assert streamed == [(frames, first_new, list(frames)) for frames, first_new in found]
