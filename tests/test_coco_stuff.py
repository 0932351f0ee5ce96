"""COCO-Stuff 164K and 10K: files in the official formats and in mmsegmentation's, made here."""

import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy import io

from rankseg_jax.data import IGNORE_LABEL, CorruptExample
from rankseg_jax.data.label_files import LabelWriter
from rankseg_jax.data.published import coco_stuff10k, coco_stuff164k
from tests import official_cases

UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)  # categories of things that no image has
USED = [i for i in range(1, 183) if i not in UNUSED]
# Some categories as labels.txt of the data set lists them, and which class each is.
LISTED = {
    1: ('person', 0),
    2: ('bicycle', 1),
    11: ('fire hydrant', 10),
    13: ('stop sign', 11),
    25: ('giraffe', 23),
    27: ('backpack', 24),
    31: ('handbag', 26),
    67: ('dining table', 60),
    70: ('toilet', 61),
    90: ('toothbrush', 79),
    92: ('banner', 80),
    93: ('blanket', 81),
    98: ('cabinet', 86),
    106: ('clouds', 94),
    110: ('desk-stuff', 98),
    112: ('door-stuff', 100),
    133: ('mirror-stuff', 121),
    181: ('window-other', 169),
    182: ('wood', 170),
}


def categories(rows, columns, seed):
    """A random map of categories, 0 for none: the first pixel; then each category once."""
    found = np.random.default_rng(seed).choice([0, *USED], (rows, columns))
    found[0, 0] = 0
    found.ravel()[1 : 1 + len(USED)] = USED
    return found


def labels_of(found):
    """The classes of a map of categories, pixel by pixel."""
    class_of = {0: IGNORE_LABEL}
    for category in range(1, 183):
        if category not in UNUSED:
            class_of[category] = len(class_of) - 1
    return np.array([[class_of[category] for category in row] for row in found.tolist()])


def raw(found):
    """As the PNGs of COCO-Stuff 164K have categories."""
    return np.where(found == 0, 255, found - 1).astype(np.uint8)


def fill_164k(root):
    """Three training and two validation images, one of them gray, one label file with a palette."""
    for name, numbers in (('train2017', (9, 25, 581921)), ('val2017', (139, 285))):
        for number in numbers:
            found = categories(20, 30, number)
            official_cases.picture(root / f'coco/{name}/{number:012}.jpg', 20, 30, seed=number)
            official_cases.values(root / f'coco/stuffthingmaps/{name}/{number:012}.png', raw(found))
    gray = Image.open(root / 'coco/train2017/000000000025.jpg').convert('L')
    gray.save(root / 'coco/train2017/000000000025.jpg')
    indexed = Image.fromarray(raw(categories(20, 30, 285)), 'P')
    indexed.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    indexed.save(root / 'coco/stuffthingmaps/val2017/000000000285.png')


def fill_10k(root):
    """Three training and two test images in the format of version 1.1."""
    root = root / 'coco_stuff10k'
    names = [[''], *[[f'category {i}'] for i in range(1, 182)]]
    for name, numbers in (('train', (77, 349, 123)), ('test', (9, 650))):
        for number in numbers:
            image = f'COCO_train2014_{number:012}'
            official_cases.picture(root / f'images/{image}.jpg', 20, 30, seed=number)
            save_mat(
                root / f'annotations/{image}.mat',
                categories(20, 30, number).astype(np.uint8),
                names,
            )
        (root / 'imageLists').mkdir(exist_ok=True)
        (root / f'imageLists/{name}.txt').write_text(
            ''.join(f'COCO_train2014_{number:012}\n' for number in numbers)
        )


def save_mat(path, found, names=None):
    """As MATLAB writes annotations of COCO-Stuff 10K."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        'S': found,
        'captions': np.array([['a'], ['b']], object),
        'regionMapStuff': np.ones(found.shape, np.uint16),
    }
    io.savemat(
        path,
        content if names is None else content | {'names': np.array(names, object)},
        do_compression=True,
    )


class CocoStuff164kTest(official_cases.Case):
    DATASET_CLASS = coco_stuff164k.CocoStuff164k
    SPLITS = {'train': 3, 'validation': 2}
    fill = staticmethod(fill_164k)


class CocoStuff10kTest(official_cases.Case):
    DATASET_CLASS = coco_stuff10k.CocoStuff10k
    SPLITS = {'train': 3, 'validation': 2}
    fill = staticmethod(fill_10k)


folder = official_cases.folder_fixture(fill_164k)
folder10k = official_cases.folder_fixture(fill_10k)
open_164k = partial(official_cases.open_split, coco_stuff164k.CocoStuff164k)
open_10k = partial(official_cases.open_split, coco_stuff10k.CocoStuff10k)


def test_categories_become_classes(folder):
    for split in ('train', 'validation'):
        source = open_164k(folder, split)
        for index, number in enumerate(source.image_ids):
            np.testing.assert_array_equal(
                source.load(index)['label'], labels_of(categories(20, 30, number))
            )
    source = open_164k(folder)
    assert source.ids == ['000000000009', '000000000025', '000000581921'] and source.image_ids == [
        9,
        25,
        581921,
    ]
    assert (
        len(source.class_names) == 171
        and source.category_ids == tuple(USED)
        and source.published == 118_287
    )
    found, label = categories(20, 30, 9), source.load(0)['label']
    for category, (name, number) in LISTED.items():
        assert source.class_names[number] == name and set(label[found == category]) == {number}
    assert label[0, 0] == IGNORE_LABEL
    # Those that an in-place remap would chain: cabinet is no window-other, blanket no desk-stuff.
    assert {169, 98}.isdisjoint(label[(found == 98) | (found == 93)])


def test_label_maps_are_written_as_they_are_read(folder, tmp_path):
    source = open_164k(folder, 'validation')
    LabelWriter(tmp_path / 'out', source).write(source.ids[0], source.load(0)['label'])
    np.testing.assert_array_equal(
        Image.open(tmp_path / 'out/000000000139.png'), raw(categories(20, 30, 139))
    )


def test_names_without_a_number_are_refused(folder, tmp_path):
    for place, suffix in (('', '.jpg'), ('stuffthingmaps/', '.png')):
        (folder / f'coco/{place}train2017/000000000025{suffix}').rename(
            folder / f'coco/{place}train2017/other{suffix}'
        )
    official_cases.assert_refused(
        coco_stuff164k.CocoStuff164k,
        folder,
        tmp_path / 'records',
        ValueError,
        'other is not the name of a COCO image',
    )


def test_gray_pictures_have_three_equal_channels(folder):
    image = open_164k(folder).load(1)['image']
    assert image.shape == (20, 30, 3) and (image == image[..., :1]).all() and image.std() > 10


def test_palettes_do_not_matter(folder):
    path = folder / 'coco/stuffthingmaps/val2017/000000000285.png'
    assert Image.open(path).mode == 'P'
    np.testing.assert_array_equal(
        open_164k(folder, 'validation').load(1)['label'], labels_of(categories(20, 30, 285))
    )


@pytest.mark.parametrize('value', [*(category - 1 for category in UNUSED), 182, 183, 254])
def test_values_without_a_class_are_refused(folder, value):
    """Also 182, the category 183 'other', which COCO's stuff annotations have, unlike these."""
    path = folder / 'coco/stuffthingmaps/train2017/000000000009.png'
    official_cases.values(path, np.full((20, 30), value, np.uint8))
    with pytest.raises(
        ValueError, match=rf'000000000009.png: label values \[{value}\] are neither a class'
    ):
        open_164k(folder).load(0)


def convert(root):
    """As mmsegmentation does: beside X.png, X_labelTrainIds.png."""
    for path in root.glob('annotations/*/*.png'):
        label = labels_of(
            np.where((values := np.array(Image.open(path)).astype(int)) == 255, 0, values + 1)
        )
        official_cases.values(
            path.with_name(f'{path.stem}_labelTrainIds.png'),
            np.where(label < 0, 255, label).astype(np.uint8),
        )


def rearrange(folder):
    """The layout of the authors' instructions, in which raw files lie below annotations/."""
    (folder / 'coco/images').mkdir()
    for name in ('train2017', 'val2017'):
        (folder / f'coco/{name}').rename(folder / f'coco/images/{name}')
    (folder / 'coco/stuffthingmaps').rename(folder / 'coco/annotations')
    return folder / 'coco'


def test_raw_and_converted_files_mean_the_same(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'official')
    root = rearrange(folder)
    shutil.copytree(root, tmp_path / 'converted')
    convert(tmp_path / 'converted')
    shutil.copytree(tmp_path / 'converted', tmp_path / 'converted_alone')
    for path in (tmp_path / 'converted_alone').glob('annotations/*/*.png'):
        if 'labelTrainIds' not in path.name:
            path.unlink()
    for name in ('official', 'converted', 'converted_alone'):
        official_cases.assert_same(coco_stuff164k.CocoStuff164k, root, tmp_path / name)


def test_names_tell_raw_from_converted_files(folder):
    """11 is no category of a raw file but stop sign in a converted one, which has no 171."""
    root = rearrange(folder)
    convert(root)
    path = root / 'annotations/train2017/000000000009_labelTrainIds.png'
    # The raw file is no longer read.
    official_cases.values(path.with_name('000000000009.png'), np.full((20, 30), 170, np.uint8))
    official_cases.values(path, np.full((20, 30), 11, np.uint8))
    assert (open_164k(root).load(0)['label'] == 11).all()
    official_cases.values(path, np.full((20, 30), 171, np.uint8))
    with pytest.raises(
        ValueError,
        match=r'labelTrainIds.png: label values \[171\] are neither a class of this data set '
        r'\(171 classes',
    ):
        open_164k(root).load(0)
    for path in (root / 'annotations/train2017').glob('*_labelTrainIds.png'):
        path.unlink()
    assert (open_164k(root).load(0)['label'] == 159).all()


@pytest.mark.parametrize(
    'build, fill',
    [(coco_stuff164k.CocoStuff164k, fill_164k), (coco_stuff10k.CocoStuff10k, fill_10k)],
)
def test_records_hold_what_the_folder_holds(build, fill, tmp_path):
    fill(tmp_path / 'data')
    builder = official_cases.prepare(build, tmp_path / 'data', tmp_path / 'records')
    official_cases.assert_same(build, tmp_path / 'data', tmp_path / 'records')
    for split in ('train', 'validation'):
        source = official_cases.open_split(build, tmp_path / 'records', split)
        straight = official_cases.open_split(build, tmp_path / 'data', split)
        assert source.image_ids == straight.image_ids
        pixels, images = official_cases.class_pixels(source)
        metadata = builder.info.metadata
        assert (
            metadata['pixels'][split] == pixels
            and metadata['images'][split] == images
            and min(images) == len(source)
        )
    assert metadata['ids'] == USED and metadata['isthing'] == 80 * [1] + 91 * [0]


def test_missing_files_of_164k_are_named(folder, tmp_path):
    (folder / 'coco/train2017/000000000009.jpg').unlink()
    (folder / 'coco/stuffthingmaps/train2017/000000581921.png').unlink()
    build, records = coco_stuff164k.CocoStuff164k, tmp_path / 'records'
    official_cases.assert_refused(
        build,
        folder,
        records,
        FileNotFoundError,
        r"(?s)split 'train': 2 of 6 files are missing: "
        r'.*train2017/000000000009.jpg, .*/000000581921.png\. .*docs/datasets.md',
    )
    open_164k(folder, 'validation')  # is whole
    shutil.rmtree(folder / 'coco/val2017')
    with pytest.raises(
        FileNotFoundError,
        match=r"split 'validation': 2 of 4 files are missing: .*val2017/000000000139.jpg",
    ):
        open_164k(folder, 'validation')
    shutil.rmtree(folder / 'coco/stuffthingmaps')
    official_cases.assert_refused(
        build,
        folder,
        records,
        FileNotFoundError,
        'data does not hold coco_stuff164k: neither stuffthingmaps/train2017 nor',
    )


def test_folders_of_another_data_set_are_refused(folder, folder10k, tmp_path):
    """COCO-Stuff 10K with its maps in the place of 164K's, where 0 is person, not background."""
    build, records = coco_stuff10k.CocoStuff10k, tmp_path / 'records'
    official_cases.assert_refused(
        build, tmp_path / 'data/coco', records, FileNotFoundError, 'does not hold coco_stuff10k'
    )
    shutil.rmtree(folder10k / 'coco_stuff10k')
    root = rearrange(folder)
    convert(root)
    for old, new in (('train2017', 'train2014'), ('val2017', 'test2014')):
        for kind in ('images', 'annotations'):
            (root / kind / old).rename(root / kind / new)
    official_cases.assert_refused(
        build,
        root,
        records,
        ValueError,
        r'labelTrainIds.png: label values \[255\] are neither a class',
    )
    with pytest.raises(ValueError, match="no split 'test'; the splits are train, validation"):
        open_10k(root, 'test')
    with pytest.raises(
        ValueError, match='config.data.num_classes = 150, but coco_stuff10k names 171'
    ):
        open_10k(root, num_classes=150)


def test_mat_files_and_lists(folder10k):
    for split, numbers in (('train', [77, 349, 123]), ('validation', [9, 650])):
        source = open_10k(folder10k, split)
        assert source.image_ids == numbers and source.ids[0] == f'COCO_train2014_{numbers[0]:012}'
        for index, number in enumerate(numbers):
            np.testing.assert_array_equal(
                source.load(index)['label'], labels_of(categories(20, 30, number))
            )
    assert source.published == 1_000 and source.category_ids == tuple(USED)


def test_mat_files_of_another_type_of_number_or_without_names(folder10k):
    path = folder10k / 'coco_stuff10k/annotations/COCO_train2014_000000000077.mat'
    expected = open_10k(folder10k).load(0)['label']
    save_mat(path, categories(20, 30, 77).astype(float))
    np.testing.assert_array_equal(open_10k(folder10k).load(0)['label'], expected)


def test_files_of_mmsegmentation_10k(folder10k, tmp_path):
    root = tmp_path / 'mmsegmentation'
    for name in ('train', 'test'):
        for image in (folder10k / f'coco_stuff10k/imageLists/{name}.txt').read_text().split():
            label = labels_of(categories(20, 30, int(image[-12:])))
            official_cases.values(
                root / f'annotations/{name}2014/{image}_labelTrainIds.png',
                (label + 1).astype(np.uint8),
            )
            (root / f'images/{name}2014').mkdir(parents=True, exist_ok=True)
            shutil.copy(
                folder10k / f'coco_stuff10k/images/{image}.jpg', root / f'images/{name}2014'
            )
    for split in ('train', 'validation'):
        converted, straight = open_10k(root, split), open_10k(folder10k, split)
        assert converted.ids == sorted(straight.ids)
        for index, name in enumerate(converted.ids):
            expected = straight.load(straight.ids.index(name))
            for key, value in converted.load(index).items():
                np.testing.assert_array_equal(value, expected[key])
    path = root / 'annotations/test2014/COCO_train2014_000000000650_labelTrainIds.png'
    official_cases.values(path, np.full((20, 30), 172, np.uint8))
    with pytest.raises(ValueError, match=r'label values \[172\] are neither a class'):
        open_10k(root, 'validation').load(1)


def version_1_0(found):
    """The numbers of version 1.0: 1 for unlabeled, then the used categories in their order."""
    return np.searchsorted([0, *USED], found).astype(np.uint8) + 1


def test_version_1_0_is_refused(folder10k, tmp_path):
    for path in (folder10k / 'coco_stuff10k/annotations').iterdir():
        found = categories(20, 30, int(path.stem[-12:]))
        save_mat(path, version_1_0(found), [['unlabeled'], *[[f'category {i}'] for i in USED]])
    official_cases.assert_refused(
        coco_stuff10k.CocoStuff10k,
        folder10k,
        tmp_path / 'records',
        ValueError,
        r'\.mat names 172 categories, files of version 1.1 name 182; .*cocostuff-10k-v1.1.zip',
    )
    for path in (folder10k / 'coco_stuff10k/annotations').iterdir():
        save_mat(path, version_1_0(categories(20, 30, int(path.stem[-12:]))))
    official_cases.assert_refused(
        coco_stuff10k.CocoStuff10k,
        folder10k,
        tmp_path / 'records',
        ValueError,
        r'\.mat: label values \[12, 26, 29, 30, 45\] are neither a class',
    )


def test_mat_files_that_are_none(folder10k):
    path = folder10k / 'coco_stuff10k/annotations/COCO_train2014_000000000077.mat'
    content = path.read_bytes()
    for broken in (b'', b'no MATLAB file', content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(CorruptExample, match='000000000077.mat'):
            open_10k(folder10k).load(0)
    io.savemat(path, {'labels': categories(20, 30, 77)})
    with pytest.raises(ValueError, match='holds no map S'):
        open_10k(folder10k).load(0)
    save_mat(path, categories(21, 30, 77).astype(np.uint8))
    with pytest.raises(CorruptExample, match='20 x 30 .* 21 x 30'):
        open_10k(folder10k).load(0)


def test_missing_files_of_10k_are_named(folder10k, tmp_path):
    root = folder10k / 'coco_stuff10k'
    (root / 'annotations/COCO_train2014_000000000349.mat').unlink()
    build, records = coco_stuff10k.CocoStuff10k, tmp_path / 'records'
    official_cases.assert_refused(
        build,
        folder10k,
        records,
        FileNotFoundError,
        r"(?s)split 'train': 1 of 6 files are missing: .*000000000349.mat\. There must be",
    )
    (root / 'imageLists/train.txt').unlink()
    official_cases.assert_refused(
        build,
        folder10k,
        records,
        FileNotFoundError,
        r"'train': 1 of 1 files .*imageLists/train.txt",
    )
