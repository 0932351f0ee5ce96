"""Motion against closed forms, tracks against painting each object alone, records against both."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rankseg_jax.data import (
    PanopticSource,
    TrackSource,
    emoji_videos,
    get_source,
    moving_scenes,
    rle,
    scenes,
)

SIZE = 32


def small_config(directory, **overrides):
    values = {'num_classes': 40, 'image_size': SIZE, 'num_train': 3, 'dir': str(directory)}
    return SimpleNamespace(name='emoji_videos', **{**values, **overrides})


@pytest.fixture(scope='module')
def few_videos():
    """Small splits, so that no test waits for the default ones; a module generates them once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji_videos, 'VIDEOS', {'train': 5, 'validation': 2, 'test': 1})
        patch.setattr(emoji_videos, 'LONG', {'long': 1})
        yield


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp('videos')


@pytest.fixture
def source(few_videos, directory):
    return get_source(small_config(directory), 'train')


@pytest.fixture(scope='module')
def sample():
    """For 30 videos, bool [N, t, H, W] each: objects as the map has them, and painted alone."""
    drawn = []

    def spy(objects, background, artwork):
        drawn.append(objects)
        return render(objects, background, artwork)

    render = scenes.render
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, 'render', spy)
        for index in range(30):
            video = moving_scenes.make_video(40, SIZE, 'train', index)
            moved = drawn[-len(video.frames) :]  # the video may have been drawn more than once
            alone = np.zeros((len(video.categories), len(video.frames), SIZE, SIZE), bool)
            for frame, objects in enumerate(moved):
                for number, item in enumerate(objects):
                    patch_of_item, where = scenes.place(item, SIZE, 'twemoji')
                    alone[number, frame][where] = patch_of_item[..., 3] >= 0.5
            maps = np.stack([frame['panoptic'] for frame in video.frames])  # [t, H, W]
            visible = np.stack([maps == n for n in range(1, len(alone) + 1)])
            found.append(SimpleNamespace(video=video, moved=moved, alone=alone, visible=visible))
    return found


def test_swings():
    smooth = moving_scenes.Swing(reach=2.0, period=12.0)
    assert [smooth.at(t) for t in (0, 1, 3, 6, 9, 12)] == pytest.approx([0, 1, 2, 0, -2, 0])
    straight = moving_scenes.Swing(reach=2.0, period=8.0, bounces=True)
    assert [straight.at(t) for t in range(-2, 9)] == pytest.approx(
        [-2, -1, 0, 1, 2, 1, 0, -1, -2, -1, 0]
    )


def test_motion_turns_scales_and_follows_its_path():
    still = moving_scenes.Swing(0.0, 1.0)
    pose = scenes.Pose(0.5, 0.4, 0.3, 10.0, True, (1.0, 0.9, 0.8))
    item = scenes.SceneObject(7, pose)
    motion = moving_scenes.Motion(
        time=2.0,
        direction=np.pi / 2,  # down
        along=moving_scenes.Swing(0.2, 8.0, bounces=True),
        across=moving_scenes.Swing(0.1, 4.0),
        growth=moving_scenes.Swing(np.log(2), 4.0),
        turn=moving_scenes.Swing(30.0, 12.0),
    )
    moved = moving_scenes.move(item, motion, 2)
    assert moved == item
    moved = moving_scenes.move(item, motion, 3)  # an eighth, a quarter, a twelfth of a period later
    assert moved.category == 7 and moved.pose.flip and moved.pose.gain == pose.gain
    assert (moved.pose.x, moved.pose.y) == pytest.approx((0.4, 0.5))
    assert (moved.pose.size, moved.pose.angle) == pytest.approx((0.6, 25.0))
    motion = moving_scenes.Motion(0.0, 1.0, still, still, still, still)
    assert moving_scenes.move(item, motion, 17) == item


@pytest.mark.parametrize('num_classes', [40, 124, 300])
def test_videos_repeat_bit_by_bit(num_classes):
    first, again = (moving_scenes.make_video(num_classes, SIZE, 'test', 1) for _ in range(2))
    assert first.categories == again.categories
    for a, b in zip(first.frames, again.frames, strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)
        assert a['image'].shape == (SIZE, SIZE, 3) and a['image'].dtype == np.uint8
        assert a['label'].dtype == np.uint16 and a['label'].max() < num_classes


def test_splits_and_indices_differ():
    images = [
        moving_scenes.make_video(40, SIZE, split, index).frames[0]['image'].tobytes()
        for split in ('train', 'validation', 'test')
        for index in range(2)
    ]
    images.append(scenes.make_example(40, SIZE, 'train', 0)['image'].tobytes())
    assert len(set(images)) == 7


def test_maps_are_what_is_on_top(sample):
    for found in sample:
        covered = np.zeros(found.alone.shape[1:], bool)  # [t, H, W]
        for n in reversed(range(len(found.alone))):  # from the nearest to the farthest
            np.testing.assert_array_equal(found.visible[n], found.alone[n] & ~covered)
            covered |= found.alone[n]
        for t, frame in enumerate(found.video.frames):
            label = np.zeros((SIZE, SIZE), int)
            for n, category in enumerate(found.video.categories):
                label[found.visible[n, t]] = category
            np.testing.assert_array_equal(frame['label'], label)


def test_objects_enter_leave_hide_and_come_back(sample):
    counts = dict.fromkeys(('objects', 'enter', 'leave', 'return', 'covered', 'hidden'), 0)
    for found in sample:
        for visible, alone in zip(found.visible, found.alone, strict=True):
            area, full = visible.sum((1, 2)), alone.sum((1, 2))  # [t]
            inside, shown = full > 0, area > 0
            assert shown.any()
            first, last = np.flatnonzero(shown)[[0, -1]]
            counts['objects'] += 1
            counts['enter'] += (~inside[:-1] & inside[1:]).any()
            counts['leave'] += (inside[:-1] & ~inside[1:]).any()
            counts['return'] += not shown[first:last].all()
            counts['covered'] += (area < 0.7 * full).any()
            counts['hidden'] += (inside & ~shown).any()
    assert counts['objects'] > 100
    shares = {key: count / counts['objects'] for key, count in counts.items()}
    assert shares['enter'] > 0.2 and shares['leave'] > 0.2
    assert shares['return'] > 0.08
    assert shares['covered'] > 0.35 and shares['hidden'] > 0.02


def test_objects_move_smoothly_and_change(sample):
    for found in sample:
        poses = [[item.pose for item in objects] for objects in found.moved]
        places = np.array([[(pose.x, pose.y) for pose in frame] for frame in poses])  # [t, N, 2]
        steps = np.linalg.norm(np.diff(places, axis=0), axis=-1)
        assert steps.max() < 0.13 and (steps.max(0) > 0.002).all()
        sizes = np.array([[pose.size for pose in frame] for frame in poses])  # [t, N]
        assert np.abs(np.diff(np.log(sizes), axis=0)).max() < 0.11
        assert (np.ptp(sizes, axis=0) > 0).all()
        angles = np.array([[pose.angle for pose in frame] for frame in poses])
        assert 0 < np.abs(np.diff(angles, axis=0)).max() < 20


def test_lookalikes_share_videos(sample):
    repeated = [len(set(f.video.categories)) < len(f.video.categories) for f in sample]
    assert np.mean(repeated) > 0.4
    assert {len(f.video.categories) for f in sample} <= set(range(2, 9))


def test_source_equals_direct_generation(source, few_videos, directory, capsys):
    assert isinstance(source, TrackSource) and isinstance(source, PanopticSource)
    assert source.class_names == scenes.class_names(40)
    assert source.things == (False, *[True] * 39)
    assert len(source) == len(source.ids) == 3 * 24 and source.ids[30] == 'train/00001/00006'
    assert source.videos == [(f'train/0000{v}', range(24 * v, 24 * v + 24)) for v in range(3)]
    for v, (_, indices) in enumerate(source.videos):
        want = moving_scenes.make_video(40, SIZE, 'train', v)
        for index, frame in zip(indices, want.frames, strict=True):
            got = source.load(index)
            assert got['label'].dtype == np.int32
            np.testing.assert_array_equal(got['image'], frame['image'])
            np.testing.assert_array_equal(got['label'], frame['label'])
            np.testing.assert_array_equal(source.panoptic(index), frame['panoptic'])
        tracks = source.tracks(v)
        assert [track['category_id'] for track in tracks] == want.categories
        assert [track['id'] for track in tracks] == list(range(1, len(tracks) + 1))
    assert len(get_source(small_config(directory), 'validation')) == 48
    assert capsys.readouterr().out == ''  # nothing is generated twice


def test_tracks_are_exact(source):
    for v in range(len(source.videos)):
        clip = source.clip(v, range(24))
        assert clip['image'].shape == (24, SIZE, SIZE, 3) and clip['image'].dtype == np.uint8
        assert clip['label'].shape == (24, SIZE, SIZE) and clip['label'].dtype == np.int32
        tracks = source.tracks(v)
        masks = rle.decode_tracks(tracks, clip['label'].shape)  # [N, t, H, W]
        assert masks.any((1, 2, 3)).all() and masks.sum(0).max() == 1
        label = sum(track['category_id'] * mask for track, mask in zip(tracks, masks, strict=True))
        np.testing.assert_array_equal(clip['label'], label)
        for track, mask in zip(tracks, masks, strict=True):
            assert track['iscrowd'] == 0 and 1 <= track['category_id'] < 40
            assert [s is not None for s in track['segmentations']] == mask.any((1, 2)).tolist()
        for t, index in enumerate(source.videos[v][1]):
            ids, segments = source.segments(index)
            seen = {segment['id'] - 1: segment['category_id'] for segment in segments}
            assert seen.pop(0, 0) == 0  # the background
            assert seen == {
                track['id']: track['category_id'] for track in tracks if track['segmentations'][t]
            }


def test_a_clip_has_the_tracks_of_the_video(source):
    frames = [3, 4, 11, 23]
    whole, clip = source.clip(1, range(24)), source.clip(1, frames)
    for key in clip:
        np.testing.assert_array_equal(clip[key], whole[key][frames])
    for track, part in zip(source.tracks(1), source.tracks(1, frames), strict=True):
        assert part['segmentations'] == [track['segmentations'][frame] for frame in frames]
        assert {**part, 'segmentations': ()} == {**track, 'segmentations': ()}


def test_long_videos_are_generated_on_demand(source, few_videos, directory, monkeypatch, capsys):
    monkeypatch.setitem(moving_scenes.LENGTHS, 'long', 50)
    assert not list(directory.glob('**/*long*'))
    long = get_source(small_config(directory), 'long')
    assert 'generating 1 long videos' in capsys.readouterr().out
    assert len(long) == 50 and long.ids[-1] == 'long/00000/00049'
    assert long.videos == [('long/00000', range(50))]
    assert len(long.tracks(0)[0]['segmentations']) == 50


def test_labels_above_255(few_videos, tmp_path, capsys):
    source = get_source(small_config(tmp_path, num_classes=300, num_train=2), 'train')
    labels = np.concatenate([source.clip(v, [0, 12, 23])['label'] for v in range(2)])
    want = [
        moving_scenes.make_video(300, SIZE, 'train', v).frames[t]['label']
        for v in range(2)
        for t in (0, 12, 23)
    ]
    np.testing.assert_array_equal(labels, want)
    categories = {track['category_id'] for v in range(2) for track in source.tracks(v)}
    assert 255 < max(categories) < 300


def test_num_train(few_videos, tmp_path, capsys):
    source = get_source(small_config(tmp_path, num_train=1), 'train')
    assert (
        'emoji_videos: generating 1 train, 2 validation, 1 test videos' in capsys.readouterr().out
    )
    assert len(source.videos) == 1
    assert len(get_source(small_config(tmp_path, num_train=1), 'validation').videos) == 2
    config = emoji_videos.EmojiVideosConfig(num_classes=40, image_size=SIZE)
    assert config.examples == emoji_videos.VIDEOS and config.name == f'k40_{SIZE}'


def test_bad_values(few_videos, tmp_path):
    with pytest.raises(ValueError, match="emoji_videos has no split 'val'; .* test, long"):
        get_source(small_config(tmp_path), 'val')
    with pytest.raises(ValueError, match='image_size is 8; choose 16..2048'):
        get_source(small_config(tmp_path, image_size=8), 'train')
    with pytest.raises(ValueError, match='num_classes is 1285; choose 2..1284'):
        get_source(small_config(tmp_path, num_classes=1285), 'train')
    with pytest.raises(ValueError, match='num_classes is 1;'):
        get_source(small_config(tmp_path, num_classes=1), 'train')


def test_builder_is_found_by_name():
    builder = tfds.builder('emoji_videos/k124_96', data_dir='unused')
    assert builder.builder_config.num_classes == 124
    assert builder.builder_config.examples == {'train': 400, 'validation': 60, 'test': 60}
    assert 'objects' in builder.info.features


def test_workers_give_what_one_process_gives(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    together = list(moving_scenes.generate(40, 16, 'train', 5))
    alone = [frame for v in range(5) for frame in moving_scenes.encode_video(40, 16, 'train', v)]
    assert together == alone
    monkeypatch.setattr(sys, 'executable', '/bin/false')
    with pytest.raises(RuntimeError, match='worker that makes train video 0 ended early'):
        list(moving_scenes.generate(40, 16, 'train', 5))


def test_workers_import_little():
    program = (
        'import sys; import rankseg_jax.data.moving_scenes; '
        'assert not {"tensorflow", "jax", "pycocotools"} & sys.modules.keys()'
    )
    subprocess.run(
        [sys.executable, '-c', program], check=True, cwd=Path(scenes.__file__).parents[2]
    )
