"""Which frames clips take."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rankseg_jax.data import videos

lengths, reaches, seeds = st.integers(1, 60), st.integers(0, 25), st.integers(0, 2**32 - 1)


@given(lengths, st.integers(1, 30), reaches, seeds)
@settings(max_examples=300, deadline=None)
def test_sample(length, num_frames, reach, seed):
    frames = videos.sample(length, num_frames, reach, np.random.default_rng(seed))
    assert frames.shape == (num_frames,) and frames.dtype == np.int64
    assert (np.diff(frames) >= 0).all() and 0 <= frames[0] and frames[-1] < length
    # One of them has all the others within reach.
    references = [r for r in range(length) if r in frames and (abs(frames - r) <= reach).all()]
    assert references
    times = np.bincount(frames)
    assert times.max() - times[times > 0].min() <= 1
    if times.max() > 1:  # then everything within reach of a reference is there
        assert any(
            all(t in frames for t in range(max(r - reach, 0), min(r + reach + 1, length)))
            for r in references
        )
    np.testing.assert_array_equal(
        frames, videos.sample(length, num_frames, reach, np.random.default_rng(seed))
    )


@given(st.integers(1, 12), seeds)
@settings(deadline=None)
def test_a_video_of_one_frame_is_repeated(num_frames, seed):
    assert (
        videos.sample(1, num_frames, 20, np.random.default_rng(seed)).tolist() == [0] * num_frames
    )


def test_every_pair_within_reach_comes_up_and_as_often_as_by_the_rule():
    length, reach, draws = 6, 2, 20_000
    rng = np.random.default_rng(0)
    counts = np.zeros((length, length))
    for _ in range(draws):
        counts[tuple(videos.sample(length, 2, reach, rng))] += 1
    expected = np.zeros((length, length))
    for reference in range(length):
        near = [t for t in range(length) if t != reference and abs(t - reference) <= reach]
        for other in near:
            expected[min(reference, other), max(reference, other)] += 1 / length / len(near)
    np.testing.assert_allclose(counts / draws, expected, atol=0.012)
    assert (counts[expected == 0] == 0).all()


@given(st.integers(1, 100), st.integers(1, 30))
def test_chunks(length, size):
    pieces = [frames for frames, _ in videos.windows(length, size, 0)]
    assert [frame for piece in pieces for frame in piece] == list(range(length))
    assert all(len(piece) == size for piece in pieces[:-1]) and all(
        0 < len(piece) <= size for piece in pieces
    )


def test_chunks_of_20():
    found = [frames for frames, _ in videos.windows(45, 20, 0)]
    assert found == [range(20), range(20, 40), range(40, 45)]
