"""YouTubeVIS-2019: tracks in the official format made here, and what pycocotools makes of them."""

import itertools
import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rankseg_jax.data import IGNORE_LABEL, CorruptExample, rle
from rankseg_jax.data import tracks as data_tracks
from rankseg_jax.data.published import files, youtube_vis_2019
from rankseg_jax.data.published.label_maps import read_classes
from rankseg_jax.data.videos import sample, windows
from tests import official_cases

SIZE = (20, 26)
NAMES = read_classes('youtube_vis_2019')['names']
# By split: videos (id, name, number of frames). Their order is that of neither ids nor names.
VIDEOS = {
    'train': [(7, 'dd', 6), (2, 'aa', 1), (3, 'cc', 22), (5, 'bb', 2)],
    'valid': [(1, 'ee', 3)],
    'test': [(1, 'ff', 2)],
}


def run_lengths(mask):
    """As in the official files: down the columns, beginning with zeros."""
    runs = [
        (bool(value), len(list(group)))
        for value, group in itertools.groupby(mask.ravel(order='F').tolist())
    ]
    return {
        'counts': [length for _, length in ([] if not runs[0][0] else [(False, 0)]) + runs],
        'size': list(mask.shape),
    }


def blob(rng):
    """A random rectangle with a hole, bool [H, W]."""
    mask = np.zeros(SIZE, bool)
    top, left = rng.integers(0, 12, 2)
    mask[top : top + rng.integers(2, 9), left : left + rng.integers(2, 15)] = True
    mask[top + 1, left + 1] = False
    return mask


def write_json(path, videos, tracks=None):
    """A JSON file; `tracks`: (id, video id, category id, iscrowd, masks: bool [H, W] or None)."""
    content = {
        'info': {'description': 'made for a test'},
        'licenses': [],
        'categories': [
            {'supercategory': 'object', 'id': i, 'name': name} for i, name in enumerate(NAMES, 1)
        ],
        'videos': [
            {
                'id': i,
                'height': SIZE[0],
                'width': SIZE[1],
                'length': length,
                'license': 1,
                'file_names': [f'{name}/{5 * t:05}.jpg' for t in range(length)],
            }
            for i, name, length in videos
        ],
    }
    if tracks is not None:
        content['annotations'] = [
            {
                'id': i,
                'video_id': video,
                'category_id': category,
                'iscrowd': crowd,
                'height': SIZE[0],
                'width': SIZE[1],
                'segmentations': [mask if mask is None else run_lengths(mask) for mask in masks],
                'areas': [mask if mask is None else int(mask.sum()) for mask in masks],
                'bboxes': [
                    mask
                    if mask is None
                    else coco_mask.toBbox(
                        coco_mask.encode(np.asfortranarray(mask, np.uint8))
                    ).tolist()
                    for mask in masks
                ],
            }
            for i, video, category, crowd, masks in tracks
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_tracks():
    """Overlapping ones, some unseen in some frames, one nowhere, a crowd; video 2 has none."""
    rng = np.random.default_rng(1)
    a, b, c, d, e = ([blob(rng) for _ in range(22)] for _ in range(5))
    a[2] = a[3] = b[0] = e[0] = None
    everywhere = [np.ones(SIZE, bool)] * 6
    return [
        (11, 7, 40, 0, a[:6]),
        (4, 3, 1, 0, d),
        (12, 7, 1, 0, b[:6]),
        (13, 7, 1, 0, everywhere),
        (20, 5, 7, 0, [None, None]),
        (14, 7, 9, 1, c[:6]),
        (15, 3, 3, 0, e),
    ]


def fill(root):
    """valid.json has null for annotations, test.json none; a mask in three is compressed."""
    root = root / 'ytvis_2019'
    for name, videos in VIDEOS.items():
        for _, video, length in videos:
            for t in range(length):
                official_cases.picture(
                    root / f'{name}/JPEGImages/{video}/{5 * t:05}.jpg', *SIZE, seed=t
                )
        write_json(root / f'{name}.json', videos, make_tracks() if name == 'train' else None)
    path = root / 'train.json'
    content = json.loads(path.read_text())
    masks = [mask for track in content['annotations'] for mask in track['segmentations'] if mask]
    for mask in masks[::3]:
        mask['counts'] = coco_mask.frPyObjects(mask, *SIZE)['counts'].decode()
    path.write_text(json.dumps(content))
    path = root / 'valid.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'annotations': None}))


class YoutubeVis2019Test(official_cases.Case):
    DATASET_CLASS = youtube_vis_2019.YoutubeVis2019
    SPLITS = {'train': 31, 'validation': 3, 'test': 2}
    fill = staticmethod(fill)


folder = official_cases.folder_fixture(fill)
open_split = partial(official_cases.open_split, youtube_vis_2019.YoutubeVis2019)


def change(folder, changes, name='train'):
    """Applies `changes` to the content of a JSON file."""
    path = folder / f'ytvis_2019/{name}.json'
    content = json.loads(path.read_text())
    changes(content)
    path.write_text(json.dumps(content))


def test_frames_of_videos_in_the_order_of_the_file(folder):
    source = open_split(folder)
    assert source.videos == [
        ('dd', range(6)),
        ('aa', range(6, 7)),
        ('cc', range(7, 29)),
        ('bb', range(29, 31)),
    ]
    assert source.ids[:7] == [*(f'dd/{5 * t:05}' for t in range(6)), 'aa/00000']
    assert [source.video_id(video) for video in range(4)] == [7, 2, 3, 5]
    assert source.published is None and source.published_videos == 2_238
    assert source.category_ids == tuple(range(1, 41)) and source.class_names == tuple(NAMES)


def test_tracks_are_those_of_the_file(folder):
    source = open_split(folder)
    for video, (video_id, _, length) in enumerate(VIDEOS['train']):
        wanted = [track for track in make_tracks() if track[1] == video_id]
        tracks = source.tracks(video)
        assert [(t['id'], t['category_id'] + 1, t['iscrowd']) for t in tracks] == [
            (i, c, crowd) for i, _, c, crowd, _ in wanted
        ]
        decoded = rle.decode_tracks(tracks, (length, *SIZE))
        assert decoded.shape == (len(wanted), length, *SIZE) and decoded.dtype == bool
        for n, (*_, masks) in enumerate(wanted):
            for t, mask in enumerate(masks):
                segmentation = tracks[n]['segmentations'][t]
                assert (segmentation is None) == (mask is None)
                np.testing.assert_array_equal(
                    decoded[n, t], np.zeros(SIZE, bool) if mask is None else mask
                )
                if mask is not None:
                    assert segmentation['size'] == list(SIZE) and isinstance(
                        segmentation['counts'], str
                    )
                    np.testing.assert_array_equal(coco_mask.decode(segmentation), mask)


def test_labels_are_the_class_of_the_smallest_track(folder):
    source = open_split(folder)
    covered = 0
    for index, name in enumerate(source.ids):
        video = next(i for i, directory, _ in VIDEOS['train'] if directory == name[:2])
        masks = [
            (masks[int(name[3:]) // 5], category)
            for _, of, category, _, masks in make_tracks()
            if of == video
        ]
        label = source.load(index)['label']
        for pixel in np.ndindex(SIZE):
            over = [
                (int(mask.sum()), -place, category - 1)
                for place, (mask, category) in enumerate(masks)
                if mask is not None and mask[pixel]
            ]
            assert label[pixel] == (min(over)[2] if over else IGNORE_LABEL)
            covered += len(over) > 1
    assert covered > 100


def test_splits_without_annotations_count_no_pixel(folder):
    for split, name in (('validation', 'valid'), ('test', 'test')):
        for annotations in ([], None):
            change(
                folder, lambda content, value=annotations: content.update(annotations=value), name
            )
            source = open_split(folder, split)
            assert not source.annotated
            assert all(
                (source.load(index)['label'] == IGNORE_LABEL).all() for index in range(len(source))
            )
            assert source.tracks(0) == source.tracks(0, [1, 0]) == []
            assert rle.decode_tracks([], (2, *SIZE)).shape == (0, 2, *SIZE)


def test_validation_may_have_annotations(folder):
    write_json(
        folder / 'ytvis_2019/valid.json',
        VIDEOS['valid'],
        [(1, 1, 5, 0, [None, np.ones(SIZE, bool), None])],
    )
    source = open_split(folder, 'validation')
    assert source.annotated
    assert (source.load(1)['label'] == 4).all() and (source.load(0)['label'] == IGNORE_LABEL).all()


def test_a_clip_reads_its_frames_and_nothing_else(folder, monkeypatch):
    source = open_split(folder)
    tracks, read, seen = source.tracks(2), youtube_vis_2019.YoutubeVis2019.read, []
    monkeypatch.setattr(
        youtube_vis_2019.YoutubeVis2019, 'read', lambda entry: seen.append(entry[0]) or read(entry)
    )
    clip = source.clip(2, [0, 4, 21])
    assert seen == ['cc/00000', 'cc/00020', 'cc/00105']
    assert (
        clip['image'].shape == (3, *SIZE, 3)
        and clip['image'].dtype == np.uint8
        and clip['label'].dtype == np.int32
    )
    chosen = source.tracks(2, [0, 4, 21])
    assert chosen == [
        track | {'segmentations': [track['segmentations'][t] for t in (0, 4, 21)]}
        for track in tracks
    ]
    assert chosen[1]['segmentations'][0] is None
    for place, t in enumerate((0, 4, 21)):
        np.testing.assert_array_equal(clip['label'][place], source.load(7 + t)['label'])


def test_clips_of_every_video(folder):
    """Also of a single frame, without a track, with a track that is seen nowhere."""
    source, rng = open_split(folder), np.random.default_rng(0)
    for video, (_, frames) in enumerate(source.videos):
        for chosen in (
            sample(len(frames), 2, 20, rng),
            *(x for x, _ in windows(len(frames), 20, 0)),
        ):
            clip = source.clip(video, chosen)
            masks = rle.decode_tracks(source.tracks(video, chosen), clip['label'].shape)
            assert masks.shape == (len(source.tracks(video)), len(chosen), *SIZE)
            np.testing.assert_array_equal(masks.any(0), clip['label'] >= 0)


def test_records_hold_what_the_folder_holds(folder, tmp_path):
    builder = official_cases.prepare(youtube_vis_2019.YoutubeVis2019, folder, tmp_path / 'records')
    assert (
        builder.name == 'youtube_vis_2019'
        and (tmp_path / 'records/youtube_vis_2019/1.0.0').is_dir()
    )
    official_cases.assert_same(
        youtube_vis_2019.YoutubeVis2019, folder, tmp_path / 'records', 'train', 'validation', 'test'
    )
    record = builder.as_data_source('train')[2]
    assert record['file_name'] == b'dd/00010' and record['video_id'] == 7
    tracks = record['tracks']
    assert [list(tracks[key]) for key in ('id', 'category_id', 'iscrowd')] == [
        [11, 12, 13, 14],
        [39, 0, 0, 8],
        [0, 0, 0, 1],
    ]
    assert tracks['counts'][0] == b''
    mask = coco_mask.decode(
        {'size': record['original_size'].tolist(), 'counts': tracks['counts'][1]}
    )
    np.testing.assert_array_equal(mask, make_tracks()[2][-1][2])


def average_precision(truth: dict, results: list) -> np.ndarray:
    """The nine scores of the benchmark by pycocotools, on the frames of a video in one column."""

    def as_coco(tracks):
        annotations = []
        for i, track in enumerate(tracks, 1):
            frames = [
                np.zeros(SIZE, np.uint8)
                if rle is None
                else coco_mask.decode(
                    coco_mask.frPyObjects(rle, *SIZE) if isinstance(rle['counts'], list) else rle
                )
                for rle in track['segmentations']
            ]
            areas = [frame.sum() for frame in frames if frame.any()]
            annotations.append(
                {
                    'id': i,
                    'image_id': track['video_id'],
                    'category_id': track['category_id'],
                    'iscrowd': track.get('iscrowd', 0),
                    'score': track.get('score'),
                    'area': float(np.mean(areas)) if areas else 0.0,
                    'segmentation': coco_mask.encode(np.asfortranarray(np.concatenate(frames))),
                }
            )
        coco = COCO()
        images = [
            {'id': video['id'], 'height': video['length'] * SIZE[0], 'width': SIZE[1]}
            for video in truth['videos']
        ]
        coco.dataset = {
            'images': images,
            'annotations': annotations,
            'categories': truth['categories'],
        }
        coco.createIndex()
        return coco

    evaluation = COCOeval(as_coco(truth['annotations']), as_coco(results), 'segm')
    evaluation.params.areaRng = [[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def test_written_truth_is_perfect_to_pycocotools(folder, tmp_path):
    """Once as the source has it, once from masks frame by frame, as a model would."""
    source = open_split(folder)
    # A track without a single pixel cannot be found by anyone.
    change(folder, lambda content: content['annotations'].pop(4))
    truth = json.loads((folder / 'ytvis_2019/train.json').read_text())

    def encode_again(video):
        frames = source.videos[video][1]
        tracks = [
            track | {'score': 1 - 0.1 * n, 'segmentations': []}
            for n, track in enumerate(source.tracks(video))
        ]
        for frame in range(len(frames)):
            masks = rle.decode_tracks(source.tracks(video, [frame]), (1, *SIZE))
            for track, mask in zip(tracks, masks, strict=True):
                track['segmentations'].append(rle.encode(mask[0]))
        return source.video_id(video), tracks

    as_read = [
        (source.video_id(video), [track | {'score': 0.5} for track in source.tracks(video)])
        for video in range(4)
    ]
    for predictions in (as_read, map(encode_again, range(4))):
        data_tracks.write_results(tmp_path / 'results.json', source, predictions)
        results = json.loads((tmp_path / 'results.json').read_text())
        assert all(
            result.keys() == {'video_id', 'category_id', 'segmentations', 'score'}
            for result in results
        )
        assert all(
            mask['size'] == list(SIZE) and isinstance(mask['counts'], str)
            for result in results
            for mask in result['segmentations']
        )
        assert sorted(
            (r['video_id'], r['category_id']) for r in results if r['video_id'] != 5
        ) == sorted((a['video_id'], a['category_id']) for a in truth['annotations'])
        stats = average_precision(truth, results)
        assert stats[0] == stats[1] == stats[2] == stats[3] == 1 and stats[8] == 1
    assert 0 < average_precision(truth, results[1:])[0] < 1
    moved = [result | {'segmentations': result['segmentations'][::-1]} for result in results]
    assert average_precision(truth, moved)[0] < 0.5


def test_frames_without_a_mask_are_empty_ones(folder, tmp_path):
    """The server refuses null."""
    source = open_split(folder)
    everywhere = rle.encode(np.ones(SIZE, bool))
    track = {'category_id': 39, 'score': np.float32(0.25), 'segmentations': [None, everywhere]}
    data_tracks.write_results(tmp_path / 'results.json', source, [(5, [track]), (2, [])])
    (result,) = json.loads((tmp_path / 'results.json').read_text())
    empty, full = result.pop('segmentations')
    assert result == {'video_id': 5, 'category_id': 40, 'score': 0.25}
    assert empty['size'] == [*SIZE] and not coco_mask.decode(empty).any() and full == everywhere


@pytest.mark.parametrize(
    'video_id, changes, message',
    [
        (
            9,
            {},
            r'the video 9, which is not in this split: its 4 videos have ids such as \[7, 2, 3',
        ),
        (
            5,
            {'category_id': 40},
            r'prediction 1 for the video 5: its category 40 is not in 0\.\.39',
        ),
        (5, {'category_id': -1}, r'its category -1 is not in 0\.\.39'),
        (5, {'score': float('nan')}, 'its score nan is not a number'),
        (5, {'segmentations': [None]}, 'has 1 segmentations, but the video has 2 frames'),
        (
            5,
            {'segmentations': [None, {'size': [26, 20], 'counts': '0'}]},
            r'masks of \[\(26, 20\)\] pixels .*, but the video has \(20, 26\)',
        ),
    ],
)
def test_results_that_the_benchmark_would_refuse(folder, tmp_path, video_id, changes, message):
    source = open_split(folder)
    track = {'category_id': 0, 'score': 0.5, 'segmentations': [None, None]}
    with pytest.raises(ValueError, match=message):
        data_tracks.write_results(
            tmp_path / 'results.json', source, [(video_id, [track, track | changes])]
        )
    assert not (tmp_path / 'results.json').exists()


def test_missing_files_are_named(folder, tmp_path):
    images = folder / 'ytvis_2019/train/JPEGImages'
    (images / 'dd/00010.jpg').unlink()
    for path in (images / 'bb').iterdir():
        path.unlink()
    (images / 'bb').rmdir()
    for attempt in (
        lambda: open_split(folder),
        lambda: youtube_vis_2019.YoutubeVis2019.prepare(folder, tmp_path / 'records'),
    ):
        with pytest.raises(FileNotFoundError, match='3 of 31 files are missing') as error:
            attempt()
        for name in (
            'dd/00010.jpg',
            'bb/00000.jpg',
            'bb/00005.jpg',
            '{train,valid,test}/JPEGImages',
            'docs/datasets.md',
        ):
            assert name in str(error.value)
    assert not [path for path in (tmp_path / 'records').rglob('*') if path.is_file()]


def test_each_folder_is_listed_once(folder, monkeypatch):
    listing, seen = files.listing, []
    monkeypatch.setattr(files, 'listing', lambda path: seen.append(path.name) or listing(path))
    open_split(folder)
    assert seen == ['dd', 'aa', 'cc', 'bb']


def test_only_the_training_split_must_be_there(folder, tmp_path):
    root = folder / 'ytvis_2019'
    for name in ('valid', 'test'):
        (root / f'{name}.json').unlink()
        (root / name).rename(tmp_path / name)
    builder = official_cases.prepare(youtube_vis_2019.YoutubeVis2019, folder, tmp_path / 'records')
    assert list(builder.info.splits) == ['train']
    with pytest.raises(
        FileNotFoundError, match=r"split 'validation': 1 of 1 files are missing: .*valid.json"
    ):
        open_split(folder, 'validation')
    (tmp_path / 'valid').rename(root / 'valid')  # half there
    with pytest.raises(
        FileNotFoundError, match=r"split 'validation': 1 of 1 files are missing: .*valid.json"
    ):
        youtube_vis_2019.YoutubeVis2019.prepare(folder, tmp_path / 'others')


def test_a_wrong_folder_leaves_nothing(tmp_path):
    (tmp_path / 'data/somewhere').mkdir(parents=True)
    for attempt in (
        lambda: open_split(tmp_path / 'data', 'train'),
        lambda: youtube_vis_2019.YoutubeVis2019.prepare(tmp_path / 'data', tmp_path / 'records'),
    ):
        with pytest.raises(
            FileNotFoundError,
            match='does not hold youtube_vis_2019: neither train.json nor valid.json nor test.json',
        ):
            attempt()
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['data', 'somewhere']


def test_the_categories_of_2021_are_refused_by_name(folder):
    def of_2021(content):
        for i, name in enumerate(('airplane', 'bear', 'bird'), 1):
            content['categories'][i - 1]['name'] = name

    change(folder, of_2021)
    with pytest.raises(
        ValueError,
        match='train.json is .*: 3 categories differ: '
        '1 is airplane, not person, 2 is bear, not giant',
    ):
        open_split(folder)
    change(folder, lambda content: content['categories'].pop())
    with pytest.raises(ValueError, match='40 is missing, not tennis_racket'):
        open_split(folder)


def test_names_with_spaces_are_the_same(folder):
    change(folder, lambda content: content['categories'][1].update(name='Giant panda'))
    assert open_split(folder).class_names[1] == 'giant_panda'


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{"videos": [',
        '\x00\x01',
        '[1, 2]',
        'null',
        '{}',
        '{"categories": 3}',
        '{"images": [], "categories": [], "annotations": []}',
    ],
)
def test_a_file_that_is_broken_or_of_another_kind(folder, text):
    (folder / 'ytvis_2019/train.json').write_text(text)
    with pytest.raises(
        ValueError, match='train.json is broken or not a JSON file of YouTubeVIS-2019: '
    ):
        open_split(folder)


@pytest.mark.parametrize(
    'changes, message',
    [
        (lambda c: c['videos'].clear(), 'each of its videos must have .* frames'),
        (lambda c: c['videos'][0].update(file_names=[]), 'each of its videos must have .* frames'),
        (
            lambda c: c['videos'][0]['file_names'].append('aa/00000.jpg'),
            'all of them in a unique folder',
        ),
        (
            lambda c: c['videos'][1].update(file_names=['dd/00000.jpg']),
            'all of them in a unique folder',
        ),
        (lambda c: c['videos'][1].update(id=7), 'each of its videos must have a unique id'),
        (lambda c: c['videos'][1].pop('height'), "train.json is broken.*KeyError: 'height'"),
        (lambda c: c.pop('annotations'), 'train.json has no annotations'),
        (
            lambda c: c['annotations'][0].update(video_id=99),
            'the track 11 has the video_id 99, which the file does not list',
        ),
        (
            lambda c: c['annotations'][0].update(category_id=0),
            'the track 11 has the category_id 0, which the file does not list',
        ),
        (
            lambda c: c['annotations'][0]['segmentations'].pop(),
            'the track 11 needs for each of 6 frames',
        ),
        (
            lambda c: c['annotations'][1]['segmentations'][4].update(size=[26, 20]),
            'the track 4 needs .* of 20 x 26 pixels',
        ),
        (
            lambda c: c['annotations'][1]['segmentations'][4].update(counts=[500, 19]),
            'the track 4: run lengths',
        ),
        (
            lambda c: c['annotations'][1]['segmentations'][4].update(counts=[530, -10]),
            'the track 4: run lengths',
        ),
        (
            lambda c: c['annotations'][1]['segmentations'][4].update(counts=[260.0, 260.0]),
            'the track 4: run lengths',
        ),
        (
            lambda c: c['annotations'][1]['segmentations'][4].update(counts=[]),
            'the track 4: run lengths',
        ),
        (
            lambda c: c['annotations'][1]['segmentations'][4].update(counts=''),
            'the track 4: run lengths',
        ),
        (
            lambda c: c['annotations'][1]['segmentations'][4].update(counts='54'),
            'the track 4: run lengths',
        ),
        (
            lambda c: c['annotations'][1]['segmentations'].__setitem__(4, [[1, 1, 9, 9, 1, 9]]),
            'train.json is broken',
        ),  # a polygon
    ],
)
def test_content_that_cannot_be(folder, changes, message):
    change(folder, changes)
    with pytest.raises(ValueError, match=message):
        open_split(folder)


def test_a_picture_of_another_size_is_corrupt(folder):
    official_cases.picture(folder / 'ytvis_2019/train/JPEGImages/aa/00000.jpg', 5, 6)
    with pytest.raises(CorruptExample, match='5 x 6'):
        open_split(folder).load(6)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_run_lengths_of_either_kind(height, width, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    plain = {'size': [height, width], 'counts': encoded['counts'].decode()}
    runs = [len(list(group)) for _, group in itertools.groupby(mask.ravel(order='F').tolist())]
    runs = [0, *runs] if mask[0, 0] else runs
    assert rle.compress(plain) == rle.compress({'size': [height, width], 'counts': runs}) == plain
    np.testing.assert_array_equal(rle.decode(plain), mask)
    assert rle.encode(mask) == (plain if mask.any() else None)


def test_long_runs_and_runs_of_nothing():
    """Numbers of several digits, and a difference below zero."""
    mask = np.zeros((720, 1280), bool)
    mask[3, 5] = mask[700:, 900] = mask[:, 901:] = True
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert (
        rle.compress({'size': [720, 1280], 'counts': encoded['counts'].decode()})['counts']
        == encoded['counts'].decode()
    )
    odd = rle.compress({'size': [2, 3], 'counts': [2, 0, 1, 1, 0, 2]})
    np.testing.assert_array_equal(rle.decode(odd), [[False, False, True], [False, True, True]])


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
@settings(deadline=None, max_examples=300)
def test_no_string_is_taken_that_is_not_a_mask(text):
    try:
        compressed = rle.compress({'size': [3, 4], 'counts': text})
    except ValueError:
        return
    assert rle.decode(compressed).shape == (3, 4)
    np.testing.assert_array_equal(
        rle.decode(compressed), rle.decode({'size': [3, 4], 'counts': text})
    )


def test_minitrain_and_minival_part_the_videos_of_train(folder, monkeypatch):
    monkeypatch.setattr(youtube_vis_2019, 'HELD_OUT', 2)
    splits = ('train', 'minitrain', 'minival')
    whole, kept, held_out = (open_split(folder, split) for split in splits)
    assert [kept.videos[0][0], kept.videos[1][0]] == [whole.videos[0][0], whole.videos[2][0]]
    assert [name for name, _ in held_out.videos] == [whole.videos[1][0], whole.videos[3][0]]
    assert sorted(kept.ids + held_out.ids) == sorted(whole.ids)
    for part, videos_ in ((kept, (0, 2)), (held_out, (1, 3))):
        for place, video in enumerate(videos_):
            assert part.tracks(place) == whole.tracks(video)
            assert part.video_id(place) == whole.video_id(video)
            first, other = part.videos[place][1][0], whole.videos[video][1][0]
            np.testing.assert_array_equal(part.load(first)['image'], whole.load(other)['image'])
