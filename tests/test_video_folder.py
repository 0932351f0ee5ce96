"""One's own videos: label files, and tracks in JSON files of YouTubeVIS's kind, made here."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from rankseg_jax import train
from rankseg_jax.data import (
    IGNORE_LABEL,
    CorruptExample,
    TrackSource,
    VideoSource,
    get_source,
    rle,
    tracks,
)
from tests import tiny
from tests.test_folder import data_config, save

SIZE = (20, 26)


def open_split(root, split='train', **changes):
    return get_source(data_config(root, 'video_folder', **changes), split)


def photo(path, size=SIZE, seed=0):
    save(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


# Label files.


@pytest.fixture
def labeled(tmp_path):
    """Two videos of frames 2, 9 and 10, labels 0, 1 and 255, three classes."""
    for video in ('b10', 'b9'):
        for frame in (10, 2, 9):
            photo(tmp_path / f'videos/train/{video}/{frame}.jpg', seed=frame)
            label = np.full(SIZE, frame % 3, np.uint8)
            label[0] = 255
            save(tmp_path / f'labels/train/{video}/{frame}.png', label)
    (tmp_path / 'classes.txt').write_text('sky\nroad\nsea\n')
    return tmp_path


def test_labeled_videos_in_natural_order(labeled):
    source = open_split(labeled)
    assert isinstance(source, VideoSource) and not isinstance(source, TrackSource)
    names = [f'{video}/{frame}.jpg' for video in ('b9', 'b10') for frame in (2, 9, 10)]
    assert list(source.ids) == names
    assert source.videos == [('b9', range(3)), ('b10', range(3, 6))]
    assert source.class_names == ('sky', 'road', 'sea') and source.annotated
    for index, name in enumerate(names):
        example = source.load(index)
        image = np.array(Image.open(labeled / 'videos/train' / name))
        np.testing.assert_array_equal(example['image'], image)
        number = int(name.split('/')[1][:-4])
        assert (example['label'][1:] == number % 3).all()
        assert (example['label'][0] == IGNORE_LABEL).all()
    clip = source.clip(1, [2, 0])
    assert clip['image'].shape == (2, *SIZE, 3) and clip['label'].dtype == np.int32
    np.testing.assert_array_equal(clip['label'][0], source.load(5)['label'])
    assert not source.check().problems and not source.check().warnings


def test_values_of_labels_as_in_image_folders(labeled):
    source = open_split(labeled, ignore_label=0, reduce_zero_label=True)
    assert source.label_values == range(1, 4)
    with pytest.raises(ValueError, match=r'b9/2\.png: label value 255'):
        source.load(0)
    assert any('255' in problem for problem in source.check().problems)
    with pytest.raises(ValueError, match='num_classes = 5, .*classes.txt names 3'):
        open_split(labeled, num_classes=5)
    source = open_split(labeled, max_pixels=20 * 26 - 1)
    with pytest.raises(CorruptExample, match='config.data.max_pixels = 519'):
        source.load(0)


def test_videos_in_folders(labeled):
    for kind in ('videos', 'labels'):
        (labeled / kind / 'train/b9').rename(labeled / kind / 'train/day')
        (labeled / kind / 'train/night').mkdir()
        (labeled / kind / 'train/b10').rename(labeled / kind / 'train/night/b10')
    source = open_split(labeled)
    assert source.videos == [('day', range(3)), ('night/b10', range(3, 6))]


def test_every_frame_needs_a_label(labeled):
    (labeled / 'labels/train/b9/9.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'b9/9\.jpg: 1 frame is without a label file'):
        open_split(labeled)
    for video in ('b9', 'b10'):
        for frame in range(20, 25):
            photo(labeled / f'videos/train/{video}/{frame}.jpg')
    with pytest.raises(FileNotFoundError, match='… and 6 more: 11 frames are without a label'):
        open_split(labeled)


def test_faults_of_labeled_videos(labeled):
    save(labeled / 'labels/train/b9/77.png', np.zeros(SIZE, np.uint8))
    (labeled / 'videos/train/b9/2.jpg').write_bytes(b'')
    photo(labeled / 'videos/train/b10/2.jpg', (26, 20))
    source = open_split(labeled)
    report = source.check()
    assert not report.problems
    text = str(report)
    assert 'b9/77.png' in text and 'b9/2.jpg' in text and '20 x 26' in text
    assert 'max_corrupt = 1' in source.check(max_corrupt=1).problems[0]
    for index in (0, 3):
        with pytest.raises(CorruptExample):
            source.load(index)


def test_frames_of_different_sizes(labeled):
    photo(labeled / 'videos/train/b9/10.jpg', (8, 9))
    save(labeled / 'labels/train/b9/10.png', np.zeros((8, 9), np.uint8))
    source = open_split(labeled)
    assert source.load(2)['label'].shape == (8, 9)
    with pytest.raises(CorruptExample, match=r'b9/10\.jpg has \(8, 9\) pixels, b9/2\.jpg'):
        source.clip(0, [0, 2])


@pytest.mark.parametrize('missing', ['videos', 'labels', 'classes.txt'])
def test_missing_parts_are_named(labeled, missing):
    (labeled / missing).rename(labeled / 'elsewhere')
    with pytest.raises(FileNotFoundError, match=missing) as caught:
        open_split(labeled)
    assert 'videos/train/<video>/*.jpg and either train.json or labels/train' in str(caught.value)


def test_frames_outside_a_video(labeled):
    photo(labeled / 'videos/train/0.jpg')
    save(labeled / 'labels/train/0.png', np.zeros(SIZE, np.uint8))
    with pytest.raises(ValueError, match=r'0\.jpg: 1 frame is outside the folder of a video'):
        open_split(labeled)
    for kind in ('videos', 'labels'):
        (labeled / kind / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='no frames in'):
        open_split(labeled, 'empty')


# Tracks.


def disk(row, column, radius=4):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


CATEGORIES = [{'id': 40, 'name': 'kite'}, {'id': 7, 'name': 'Boat'}]
LARGE, SMALL = disk(10, 12, 8), disk(10, 12, 3)
TRACKS = {  # id: (video, category, masks)
    3: (5, 7, [LARGE, None, disk(3, 3)]),
    8: (5, 40, [SMALL, disk(9, 9), None]),
    9: (6, 40, [None, LARGE]),
}


def content():
    """All that YouTubeVIS's files have."""
    return {
        'info': {},
        'categories': CATEGORIES,
        'videos': [
            {
                'id': number,
                'height': SIZE[0],
                'width': SIZE[1],
                'length': length,
                'file_names': [f'{name}/{frame:05}.jpg' for frame in range(0, 4 * length, 4)],
            }
            for number, name, length in ((5, 'sea', 3), (6, 'air', 2))
        ],
        'annotations': [
            {
                'id': number,
                'video_id': video,
                'category_id': category,
                'iscrowd': 0,
                'segmentations': [
                    None if mask is None else run_lengths(mask, number) for mask in masks
                ],
                'bboxes': [None if mask is None else [0, 0, 1, 1] for mask in masks],
                'areas': [None if mask is None else int(mask.sum()) for mask in masks],
            }
            for number, (video, category, masks) in TRACKS.items()
        ],
    }


def run_lengths(mask, number):
    """Strings for even numbers, lists for odd ones."""
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    if number % 2 == 0:
        return {'size': list(SIZE), 'counts': encoded['counts'].decode()}
    column_first = mask.T.ravel()
    edges = np.flatnonzero(np.diff(column_first, prepend=False)).tolist()
    runs = np.diff([0, *edges, column_first.size]).tolist()
    return {'size': list(SIZE), 'counts': runs}


def fill(root, found, images='videos/train', json_name='train.json'):
    for name, frames in (('sea', (0, 4, 8)), ('air', (0, 4))):
        for frame in frames:
            photo(root / images / f'{name}/{frame:05}.jpg', seed=frame)
    (root / json_name).write_text(json.dumps(found))
    return root


LAYOUTS = {
    'videos/train': ('train', 'train.json'),
    'train/JPEGImages': ('train', 'train.json'),
    'valid/JPEGImages': ('validation', 'valid.json'),
    'validation/JPEGImages': ('validation', 'validation.json'),
    'videos/val': ('validation', 'val.json'),
    'videos/valid': ('validation', 'validation.json'),
    'val/JPEGImages': ('validation', 'valid.json'),
}


@pytest.mark.parametrize('images', LAYOUTS)
def test_tracked_videos(tmp_path, images):
    split, json_name = LAYOUTS[images]
    source = open_split(fill(tmp_path, content(), images, json_name), split)
    assert isinstance(source, TrackSource) and source.annotated
    assert source.class_names == ('Boat', 'kite') and tuple(source.category_ids) == (7, 40)
    assert source.videos == [('sea', range(3)), ('air', range(3, 5))]
    assert list(source.ids) == [f'sea/0000{t}.jpg' for t in (0, 4, 8)] + [
        'air/00000.jpg',
        'air/00004.jpg',
    ]
    assert [source.video_id(video) for video in (0, 1)] == [5, 6]
    for video, number, length in ((0, 5, 3), (1, 6, 2)):
        wanted = {key: value for key, value in TRACKS.items() if value[0] == number}
        found = source.tracks(video)
        assert [track['id'] for track in found] == list(wanted)
        assert [track['category_id'] for track in found] == [
            (7, 40).index(category) for _, category, _ in wanted.values()
        ]
        assert all(track['iscrowd'] == 0 for track in found)
        decoded = rle.decode_tracks(found, (length, *SIZE))
        for track, (*_, masks) in zip(decoded, wanted.values(), strict=True):
            for mask, expected in zip(track, masks, strict=True):
                np.testing.assert_array_equal(
                    mask, np.zeros(SIZE, bool) if expected is None else expected
                )
        backwards = source.tracks(video, [1, 0])
        assert backwards[0]['segmentations'] == found[0]['segmentations'][1::-1]
    label = np.full(SIZE, IGNORE_LABEL)
    label[LARGE] = 0
    label[SMALL] = 1  # the smaller lies on top
    np.testing.assert_array_equal(source.clip(0, [0])['label'][0], label)
    assert source.load(0)['label'].dtype == np.int32
    report = source.check()
    assert not report.problems and not report.warnings
    assert report.pixels.tolist() == [
        LARGE.sum() - SMALL.sum() + disk(3, 3).sum(),
        SMALL.sum() + disk(9, 9).sum() + LARGE.sum(),
    ]


def test_folders_of_the_name_of_the_json_file_come_first(tmp_path):
    fill(tmp_path, content(), 'val/JPEGImages', 'val.json')
    (tmp_path / 'videos/validation').mkdir(parents=True)
    assert open_split(tmp_path, 'validation').image_dir == tmp_path / 'val/JPEGImages'


def test_what_can_be_derived_need_not_be_there(tmp_path):
    whole, lean = content(), content()
    for place, (video, name) in enumerate(zip(lean['videos'], ('sea', 'air'), strict=True), 1):
        for track in lean['annotations']:
            if track['video_id'] == video['id']:
                track['video_id'] = place
        for key in ('id', 'height', 'width', 'file_names'):
            del video[key]
        video['name'], video['length'] = name, None
    for track in lean['annotations']:
        for key in ('id', 'iscrowd', 'bboxes', 'areas'):
            del track[key]
    first = open_split(fill(tmp_path / 'whole', whole))
    second = open_split(fill(tmp_path / 'lean', lean))
    assert first.ids == second.ids and [second.video_id(v) for v in (0, 1)] == [1, 2]
    for video in (0, 1):
        for track, other in zip(first.tracks(video), second.tracks(video), strict=True):
            assert track['segmentations'] == other['segmentations']
    assert [track['id'] for v in (0, 1) for track in second.tracks(v)] == [1, 2, 3]


def test_categories_without_ids_and_a_byte_order_mark(tmp_path):
    found = content() | {'categories': [{'name': 'boat'}, {'name': 'kite'}]}
    for track in found['annotations']:
        track['category_id'] = {7: 1, 40: 2}[track['category_id']]
    path = fill(tmp_path, found) / 'train.json'
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    source = open_split(tmp_path)
    assert source.class_names == ('boat', 'kite') and tuple(source.category_ids) == (1, 2)


def test_file_names_without_their_folder(tmp_path):
    found = content()
    for video in found['videos']:
        video['name'] = video['file_names'][0].split('/')[0]
        video['file_names'] = [name.split('/')[1] for name in video['file_names']]
    assert open_split(fill(tmp_path, found)).ids[0] == 'sea/00000.jpg'


def test_categories_of_a_list(tmp_path):
    found = content() | {'categories': []}
    for track in found['annotations']:
        track['category_id'] = {7: 1, 40: 2}[track['category_id']]
    fill(tmp_path, found)
    with pytest.raises(ValueError, match='train.json: it has no "categories".*classes.txt'):
        open_split(tmp_path)
    (tmp_path / 'classes.txt').write_text('boat\nkite\n')
    source = open_split(tmp_path)
    assert source.class_names == ('boat', 'kite') and tuple(source.category_ids) == (1, 2)
    assert source.tracks(0)[1]['category_id'] == 1


@pytest.mark.parametrize('annotations', [[], None, 'missing'])
def test_without_annotations(tmp_path, annotations):
    found = content()
    found['annotations'] = annotations
    if annotations == 'missing':
        del found['annotations']
    source = open_split(fill(tmp_path, found))
    assert not source.annotated and source.tracks(0) == []
    assert (source.load(0)['label'] == IGNORE_LABEL).all()
    report = source.check()
    assert not report.problems and 'train.json has no annotations' in report.warnings[0]
    config = tiny.config(tmp_path, data__name='video_folder', data__num_classes=0)
    config.task, config.data.eval_split = 'video_instance', 'train'
    with pytest.raises(ValueError, match="split 'train' has no annotations to learn from"):
        train.open_sources(config)


def test_faults_of_frames_are_reported(tmp_path):
    fill(tmp_path, content())
    photo(tmp_path / 'videos/train/sea/00012.jpg')
    (tmp_path / 'videos/train/sea/00004.jpg').write_bytes(b'')
    photo(tmp_path / 'videos/train/air/00004.jpg', (26, 20))
    source = open_split(tmp_path)
    report = source.check()
    assert not report.problems
    text = str(report)
    assert 'sea/00004.jpg' in text and '26 x 20' in text
    assert '1 frames that train.json does not list' in text and 'sea/00012.jpg' in text
    assert 'max_corrupt = 1' in source.check(max_corrupt=1).problems[0]
    with pytest.raises(CorruptExample, match=r'sea/00004\.jpg'):
        source.load(1)
    with pytest.raises(CorruptExample, match=r'air/00004\.jpg: .* 26 x 20 .* 20 x 26'):
        source.clip(1, [0, 1])


def test_results_do_not_need_the_first_frame(tmp_path):
    fill(tmp_path, content())
    (tmp_path / 'videos/train/sea/00000.jpg').write_bytes(b'')
    track = {'category_id': 1, 'score': 0.5, 'segmentations': [rle.encode(LARGE), None, None]}
    tracks.write_results(tmp_path / 'results.json', open_split(tmp_path), [(5, [track])])
    (result,) = json.loads((tmp_path / 'results.json').read_text())
    assert result['segmentations'][1]['size'] == list(SIZE)


def change_track(**changes):
    return lambda found: found['annotations'][0].update(changes)


def change_video(**changes):
    return lambda found: found['videos'][0].update(changes)


def boxes_only(found):
    for track in found['annotations']:
        del track['segmentations']


def boxes_of_images(found):
    found['annotations'] = [{'id': 1, 'image_id': 4, 'video_id': 5, 'bbox': [1, 1, 5, 5]}]


def masks_of_images(found):
    found['annotations'] = [{'id': 1, 'image_id': 4, 'segmentation': {'size': SIZE, 'counts': ''}}]


@pytest.mark.parametrize(
    'change, message',
    [
        (change_track(category_id=9), 'the track 3 has the category_id 9, which the file does not'),
        (change_track(video_id=9), 'the track 3 has the video_id 9, which the file does not list'),
        (
            change_track(segmentations=[None], bboxes=[]),
            'the track 3 needs for each of 3 frames null or a ma',
        ),
        (
            change_track(segmentations=[{'size': [26, 20], 'counts': [520]}, None, None]),
            'the track 3 needs .* mask of 20 x 26 pixels',
        ),
        (
            change_track(segmentations=[{'size': [20, 26], 'counts': [7]}, None, None]),
            'the track 3: run lengths',
        ),
        (change_track(segmentations=[[[1, 1, 9, 9, 1, 9]], None, None]), 'the track 3 has polygon'),
        (change_track(segmentations=[None] * 3), 'the track 3 has no masks .*, only boxes.*MOT'),
        (boxes_only, r'the track 3 has no masks \("segmentations"\), only boxes.*MOT'),
        (boxes_of_images, r'the track 1 has no masks \("segmentations"\), only boxes.*MOT'),
        (masks_of_images, 'the annotation 1 has the mask of an image; a track has "segmentations"'),
        (change_track(id=8), 'each of its tracks must have a unique id'),
        (change_video(length=4), 'the video 5 has the length 4 but 3 frames'),
        (change_video(id=6), 'each of its videos must have a unique id'),
        (change_video(height='4'), "the video 5 has '4' rows and .* whole numbers above 0"),
        (change_video(width=-4), 'the video 5 has .* rows and -4 columns'),
        (
            lambda found: found['categories'][0].update(name=None),
            'its category 40 has the name None, which is no text',
        ),
        (change_video(file_names=[]), 'the video 5 has neither "file_names" nor the "name"'),
        (
            change_video(file_names=['/sea/0.jpg']),
            'the video 5 has the file name /sea/0.jpg; names',
        ),
        (change_video(file_names=['../sea/0.jpg']), 'the video 5 has the file name ../sea/0.jpg'),
        (
            change_video(file_names=['sea/00000.jpg'] * 3),
            'the video 5 lists the frame sea/00000.jpg more than once',
        ),
        (change_video(file_names=[], name='gone'), 'the video 5 has no frames in .*gone'),
        (lambda found: found['videos'].clear(), 'each of its videos must have'),
        (lambda found: found.pop('videos'), "KeyError: 'videos'"),
        (
            lambda found: found.update(categories=[{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'a'}]),
            'each of its categories must have an id and a name of its own',
        ),
    ],
)
def test_contradictions_are_named(tmp_path, change, message):
    found = json.loads(json.dumps(content()))
    change(found)
    with pytest.raises(ValueError, match=message) as caught:
        open_split(fill(tmp_path, found))
    assert str(tmp_path / 'train.json') in str(caught.value) and '\n' not in str(caught.value)


def test_missing_frames_are_named(tmp_path):
    fill(tmp_path, content())
    (tmp_path / 'videos/train/sea/00004.jpg').unlink()
    with pytest.raises(
        FileNotFoundError, match=r'sea/00004\.jpg: 1 frame is missing, which .*json'
    ):
        open_split(tmp_path)
    (tmp_path / 'videos').rename(tmp_path / 'elsewhere')
    with pytest.raises(FileNotFoundError, match='no folder .*videos/train or .*train/JPEGImages'):
        open_split(tmp_path)
    with pytest.raises(FileNotFoundError, match='no folder .*videos/test'):
        open_split(tmp_path, 'test')


def test_num_classes_and_broken_json(tmp_path):
    fill(tmp_path, content())
    with pytest.raises(ValueError, match=r'num_classes = 5, but .*train\.json names 2'):
        open_split(tmp_path, num_classes=5)
    (tmp_path / 'train.json').write_text('{"videos": [')
    with pytest.raises(ValueError, match=r'train\.json is broken'):
        open_split(tmp_path)
