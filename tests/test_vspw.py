"""VSPW: videos in the official format made here."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import common
from rankseg_jax import data, tasks
from rankseg_jax.data import IGNORE_LABEL, CorruptExample, batching, pipeline
from rankseg_jax.data.label_files import LabelWriter
from rankseg_jax.data.published import files, vspw
from rankseg_jax.data.videos import sample, windows
from tests import official_cases

# Split: videos and their numbers of frames.
VIDEOS = {
    'train': {'1001_a': 5, '7_b': 1, '12_c': 3},
    'val': {'30_d': 23, '31_e': 2},
    'test': {'40_f': 2},
}
VALUES = np.array([0, 1, 2, 77, 124, 255], np.uint8)


def frame_names(count):
    return [f'{30 * i + 4:08}' for i in range(count)]


def fill(root):
    """The lists end as they do in the wild: with CRLF, with no final newline, with blank lines."""
    root = root / 'VSPW_480p'
    rng = np.random.default_rng(0)
    for list_name, videos in VIDEOS.items():
        for v, (video, length) in enumerate(videos.items()):
            label = rng.choice(VALUES, (20 + 2 * v, 26))
            for i, frame in enumerate(frame_names(length)):
                official_cases.picture(
                    root / f'data/{video}/origin/{frame}.jpg', *label.shape, seed=i
                )
                label = np.where(
                    rng.random(label.shape) < 0.05, rng.choice(VALUES, label.shape), label
                )
                if list_name != 'test':
                    official_cases.values(root / f'data/{video}/mask/{frame}.png', label)
    (root / 'train.txt').write_bytes('\r\n'.join(VIDEOS['train']).encode() + b'\r\n')
    (root / 'val.txt').write_text('\n'.join(VIDEOS['val']))
    (root / 'test.txt').write_text('\n' + '\n\n'.join(VIDEOS['test']) + '\n\n')


class VspwTest(official_cases.Case):
    DATASET_CLASS = vspw.Vspw
    SPLITS = {'train': 9, 'validation': 25, 'test': 2}
    fill = staticmethod(fill)


folder = official_cases.folder_fixture(fill)
open_split = partial(official_cases.open_split, vspw.Vspw)


def raw_masks(folder, video):
    """uint8 [T, H, W] as in the files."""
    return np.stack(
        [
            np.array(Image.open(path))
            for path in sorted((folder / f'VSPW_480p/data/{video}/mask').glob('*.png'))
        ]
    )


def test_frames_of_videos_in_order(folder):
    source = open_split(folder)
    # In the order of the list.
    assert source.videos == [('1001_a', range(5)), ('7_b', range(5, 6)), ('12_c', range(6, 9))]
    assert source.ids == [
        f'{video}/{frame}'
        for video, length in VIDEOS['train'].items()
        for frame in frame_names(length)
    ]
    assert source.published is None and source.published_videos == 2_806
    assert len(source.class_names) == 124 and source.category_ids == tuple(range(1, 125))
    for video, frames in source.videos:
        raw = raw_masks(folder, video)  # [T, H, W]
        for t, index in enumerate(frames):
            example = source.load(index)
            picture = np.array(
                Image.open(folder / f'VSPW_480p/data/{video}/origin/{frame_names(5)[t]}.jpg')
            )
            np.testing.assert_array_equal(example['image'], picture)
            expected = [
                [v - 1 if 1 <= v <= 124 else IGNORE_LABEL for v in row] for row in raw[t].tolist()
            ]
            np.testing.assert_array_equal(example['label'], expected)


def test_the_test_split_counts_no_pixel(folder):
    source = open_split(folder, 'test')
    assert (
        not source.annotated
        and len(source) == 2
        and all((source.load(index)['label'] == IGNORE_LABEL).all() for index in range(2))
    )


def test_a_clip_reads_its_frames_and_nothing_else(folder, monkeypatch):
    source = open_split(folder, 'validation')
    read, seen = vspw.Vspw.read, []
    monkeypatch.setattr(vspw.Vspw, 'read', lambda entry: seen.append(entry[0]) or read(entry))
    clip = source.clip(0, np.array([3, 7, 7]))
    assert seen == [f'30_d/{frame_names(23)[t]}' for t in (3, 7, 7)]
    assert clip['image'].shape == (3, 20, 26, 3) and clip['image'].dtype == np.uint8
    assert clip['label'].shape == (3, 20, 26) and clip['label'].dtype == np.int32
    for place, t in enumerate((3, 7, 7)):
        np.testing.assert_array_equal(clip['image'][place], source.load(t)['image'])
        np.testing.assert_array_equal(clip['label'][place], source.load(t)['label'])


def test_chunks_and_samples_of_every_video(folder):
    rng = np.random.default_rng(0)
    for split in ('train', 'validation', 'test'):
        source = open_split(folder, split)
        for video, (_, frames) in enumerate(source.videos):
            labels = [
                source.clip(video, chunk)['label'] for chunk, _ in windows(len(frames), 20, 0)
            ]
            np.testing.assert_array_equal(
                np.concatenate(labels), [source.load(index)['label'] for index in frames]
            )
            clip = source.clip(video, sample(len(frames), 2, 20, rng))
            assert len(clip['label']) == 2  # even from a video of one frame


def test_frames_of_another_size_are_no_clip(folder):
    path = folder / f'VSPW_480p/data/1001_a/{{}}/{frame_names(2)[1]}'
    official_cases.picture(Path(str(path).format('origin') + '.jpg'), 10, 12)
    official_cases.values(Path(str(path).format('mask') + '.png'), np.ones((10, 12), np.uint8))
    source = open_split(folder)
    assert source.load(1)['label'].shape == (10, 12)
    with pytest.raises(CorruptExample, match=r'1001_a/00000034 has \(10, 12\) pixels'):
        source.clip(0, [0, 1])


def test_a_frame_that_cannot_be_read_is_named(folder):
    path = folder / f'VSPW_480p/data/12_c/origin/{frame_names(2)[1]}.jpg'
    path.write_bytes(path.read_bytes()[:200])
    source = open_split(folder)
    for attempt in (lambda: source.load(7), lambda: source.clip(2, [0, 1])):
        with pytest.raises(CorruptExample, match=f'12_c/{path.stem}'):
            attempt()
    assert len(source.clip(2, [0, 2])['image']) == 2


def test_models_of_images_take_frames(folder):
    config = common.get_config()
    config.batch_size, config.eval.batch_size, config.eval.size, config.augment.crop_size = (
        4,
        4,
        (32, 32),
        (16, 16),
    )
    config.data.update({'name': 'vspw', 'dir': str(folder)})
    source = data.get_source(config.data, 'train')
    task = tasks.from_source(config, source)
    batch = next(pipeline.train_batches(source, config, task, start_step=0))
    assert (
        batch['image'].shape == (4, 16, 16, 3)
        and batch['label'].max() < 124
        and batch['mask'].all()
    )
    source = data.get_source(config.data, 'validation')
    seen = 0
    for batch in batching.eval_batches(source, config, 1):
        for i in np.flatnonzero(batch['mask']):
            expected = source.load(batch['index'][i])['label']
            np.testing.assert_array_equal(
                batch['label'][i][: expected.shape[0], : expected.shape[1]], expected
            )
            seen += 1
    assert seen == 25


def test_records_hold_what_the_folder_holds(folder, tmp_path):
    builder = official_cases.prepare(vspw.Vspw, folder, tmp_path / 'records')
    official_cases.assert_same(
        vspw.Vspw, folder, tmp_path / 'records', 'train', 'validation', 'test'
    )
    record = builder.as_data_source('train')[5]
    assert record['file_name'] == b'7_b/00000004' and record['original_size'].tolist() == [22, 26]
    assert set(np.unique(record['labels'])) == {0, 1, 76, 123, 65280, 65535}
    for prepared in (False, True):
        source = open_split(tmp_path / 'records' if prepared else folder, 'train')
        for video, frames in source.videos:
            codes = [source.codes(index) for index in frames]
            np.testing.assert_array_equal(codes, raw_masks(folder, video))
    assert (open_split(folder, 'test').codes(0) == 255).all()


def test_records_of_version_0_1_are_read(folder, tmp_path, monkeypatch):
    """In which others and void look alike."""
    to_labels = vspw.to_labels

    def alike(*arguments):
        labels = to_labels(*arguments)
        return np.where(labels < 124, labels, 65535).astype(np.uint16)

    with monkeypatch.context() as patch:
        patch.setattr(vspw, 'to_labels', alike)
        official_cases.prepare(vspw.Vspw, folder, tmp_path / 'records')
    official_cases.assert_same(vspw.Vspw, folder, tmp_path / 'records', 'train')
    old, new = (open_split(path, 'train') for path in (tmp_path / 'records', folder))
    for index in range(len(new)):
        codes = new.codes(index)
        np.testing.assert_array_equal(old.codes(index), np.where(codes == 0, 255, codes))


def test_without_test_videos_the_rest_is_prepared(folder, tmp_path):
    for path in sorted((folder / 'VSPW_480p/data/40_f').rglob('*'), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / 'VSPW_480p/data/40_f').rmdir()
    builder = official_cases.prepare(vspw.Vspw, folder, tmp_path / 'records')
    assert list(builder.info.splits) == ['train', 'validation']
    with pytest.raises(ValueError, match="prepared without the split 'test'"):
        open_split(tmp_path / 'records', 'test')
    with pytest.raises(
        FileNotFoundError, match=r"split 'test': 1 of 1 files are missing: .*40_f/origin/\*.jpg"
    ):
        open_split(folder, 'test')


def test_missing_files_are_named(folder, tmp_path):
    root = folder / 'VSPW_480p/data'
    (root / '1001_a/mask/00000034.png').unlink()
    (root / '12_c/origin/00000064.jpg').unlink()
    (root / '12_c/origin/._00000004.jpg').write_bytes(b'of a Mac')
    (folder / 'VSPW_480p/train.txt').write_text('1001_a\n12_c\n99_absent')
    for attempt in (
        lambda: open_split(folder),
        lambda: vspw.Vspw.prepare(folder, tmp_path / 'records'),
    ):
        with pytest.raises(FileNotFoundError, match='4 of 18 files are missing') as error:
            attempt()
        for name in (
            '1001_a/mask/00000034.png',
            '12_c/origin/00000064.jpg',
            '99_absent/origin/*.jpg',
            '99_absent/mask/*.png',
            'VSPW_480p/data/<video>/mask/*.png',
            'docs/datasets.md',
        ):
            assert name in str(error.value)
    assert not [path for path in (tmp_path / 'records').rglob('*') if path.is_file()]
    assert len(open_split(folder, 'validation')) == 25  # which is whole


def test_each_folder_is_listed_once(folder, monkeypatch):
    listing, seen = files.listing, []
    monkeypatch.setattr(files, 'listing', lambda path: seen.append(path) or listing(path))
    open_split(folder)
    assert len(seen) == len(set(seen)) == 6


def test_a_wrong_folder_leaves_nothing(tmp_path):
    (tmp_path / 'data/somewhere').mkdir(parents=True)
    for attempt in (
        lambda: open_split(tmp_path / 'data', 'train'),
        lambda: vspw.Vspw.prepare(tmp_path / 'data', tmp_path / 'records'),
    ):
        with pytest.raises(
            FileNotFoundError,
            match='does not hold vspw: neither train.txt nor val.txt nor test.txt',
        ):
            attempt()
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['data', 'somewhere']


@pytest.mark.parametrize(
    'text, message', [('\n \r\n', 'it is empty'), ('1001_a\n12_c\n1001_a', 'each once')]
)
def test_lists_that_cannot_be(folder, text, message):
    (folder / 'VSPW_480p/train.txt').write_text(text)
    with pytest.raises(ValueError, match=message):
        open_split(folder)


def test_a_missing_list_is_named(folder):
    (folder / 'VSPW_480p/val.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 1 files are missing: .*val.txt'):
        open_split(folder, 'validation')


def test_other_values_are_ignored_and_counted(folder, tmp_path, caplog):
    """As in the download, where a few masks have 252."""
    mask = np.full((22, 26), 9, np.uint8)
    mask[:2, 0], mask[3, :5] = 125, 252
    official_cases.values(folder / 'VSPW_480p/data/7_b/mask/00000004.png', mask)
    with caplog.at_level('WARNING', logger='absl'):
        source = open_split(folder)
        label, codes = source.load(5)['label'], source.codes(5)
    assert '7_b/mask/00000004.png: 7 pixels with the values [125, 252] are ignored' in caplog.text
    np.testing.assert_array_equal(label, np.where(mask == 9, 8, IGNORE_LABEL))
    np.testing.assert_array_equal(codes, mask)
    official_cases.prepare(vspw.Vspw, folder, tmp_path / 'records')
    source = open_split(tmp_path / 'records', 'train')
    np.testing.assert_array_equal(source.load(5)['label'], label)
    np.testing.assert_array_equal(source.codes(5), mask)


def test_masks_of_colors_and_empty_files_are_named(folder):
    root = folder / 'VSPW_480p/data/7_b'
    source = open_split(folder)
    official_cases.values(root / 'mask/00000004.png', np.zeros((22, 26, 3), np.uint8))
    with pytest.raises(ValueError, match='7_b/mask/00000004.png: .* its mode is RGB'):
        source.load(5)
    (root / 'mask/00000004.png').write_bytes(b'')
    with pytest.raises(CorruptExample, match='7_b/mask/00000004.png'):
        source.load(5)
    (root / 'origin/00000004.jpg').write_bytes(b'')
    with pytest.raises(CorruptExample, match='7_b/origin/00000004.jpg: the file has 0 bytes'):
        source.load(5)


def consistency(truth, predicted, n):
    """VC_n: of the pixels that keep their true value over n frames, those that keep the predicted.

    Over all windows of n frames but the last.
    """
    shares = []
    for start in range(len(truth) - n):
        kept = total = 0
        for pixel in np.ndindex(truth.shape[1:]):
            if all(truth[start + j][pixel] == truth[start][pixel] for j in range(n)):
                total += 1
                kept += all(
                    predicted[start + j][pixel] == predicted[start][pixel] for j in range(n)
                )
        if total:
            shares.append(kept / total)
    return np.mean(shares)


def test_what_is_written_is_what_the_benchmark_reads(folder, tmp_path):
    confusion_matrix = pytest.importorskip('sklearn.metrics').confusion_matrix
    source = open_split(folder, 'validation')
    writer = LabelWriter(tmp_path / 'submission', source)
    for index, name in enumerate(source.ids):
        writer.write(name, source.load(index)['label'])
    confusion = 0
    for video in VIDEOS['val']:
        truth = raw_masks(folder, video)  # [T, H, W]
        paths = sorted((tmp_path / f'submission/{video}').glob('*.png'))
        assert [path.stem for path in paths] == frame_names(len(truth))
        predicted = np.stack([np.array(Image.open(path)) for path in paths])
        assert predicted.dtype == np.uint8
        # As the data set's README remaps the truth for its script.
        counted = (truth > 0) & (truth < 255)
        remapped = np.where(counted, truth, 0).astype(int) - 1
        assert (predicted[~counted] == 255).all()
        confusion += confusion_matrix(remapped[counted], predicted[counted], labels=range(124))
        if len(truth) > 8:
            assert consistency(truth, predicted, 8) == 1
            predicted[10] += 1  # the check can fail
            assert consistency(truth, predicted, 8) < 1
    with np.errstate(invalid='ignore'):
        iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    assert np.nanmean(iou) == 1 and np.isfinite(iou).sum() == 4


LONG = """
import sys
from pathlib import Path
from types import SimpleNamespace
from rankseg_jax.data.published import vspw

source = vspw.Vspw.get_source(SimpleNamespace(dir=sys.argv[1], num_classes=0), 'train')
for frame, index in enumerate(source.videos[0][1]):
    source.load(index)
    if frame in (39, len(source) - 1):
        # getrusage would count what the starting process held.
        lines = Path('/proc/self/status').read_text().splitlines()
        status = dict(line.split(':') for line in lines)
        print(int(status['VmHWM'].split()[0]) // 1024)
"""


def fill_long(root, length):
    """A training video of 480 x 853 pixels and one of a single frame; all frames link to one."""
    root = root / 'VSPW_480p'
    official_cases.picture(root / 'frame.jpg', 480, 853)
    regions = np.random.default_rng(0).integers(0, 125, (8, 12)).astype(np.uint8)
    official_cases.values(
        root / 'frame.png',
        np.array(Image.fromarray(regions).resize((853, 480), Image.Resampling.NEAREST)),
    )
    for name, video, count in (('train', 'long', length), ('val', 'short', 1)):
        (root / f'{name}.txt').write_text(video)
        for kind, suffix in (('origin', 'jpg'), ('mask', 'png')):
            (root / f'data/{video}/{kind}').mkdir(parents=True)
            for i in range(count):
                (root / f'data/{video}/{kind}/{i:08}.{suffix}').symlink_to(root / f'frame.{suffix}')


def peaks(folder):
    """Peak memory in MiB of a process that loads frame by frame: after 40 frames and after all."""
    out = subprocess.run(
        [sys.executable, '-c', LONG, str(folder)],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return list(map(int, out.split()))


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs Linux')
@pytest.mark.parametrize('prepared', [False, True])
def test_a_long_video_needs_no_more_memory_than_a_short_one(tmp_path, prepared):
    fill_long(tmp_path / 'data', 120)
    if prepared:
        official_cases.prepare(vspw.Vspw, tmp_path / 'data', tmp_path / 'records')
    before, after = peaks(tmp_path / ('records' if prepared else 'data'))
    assert after - before < 32  # 80 frames more would be 216 MiB
