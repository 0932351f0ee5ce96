"""CamVid: street scenes seen from a car, 480 x 360, 11 categories.

    <data.dir>/
      train/a.jpg   trainannot/a.png   0..10, and 11 = void, which is ignored
      val/b.jpg     valannot/b.png

Layout and categories of SegNet's release (Badrinarayanan et al., 2017) of the data of Brostow et
al., 2009.
"""

from ml_collections import ConfigDict

from rankseg_jax import storage
from rankseg_jax.data import folder

CLASS_NAMES = (
    'sky',
    'building',
    'pole',
    'road',
    'pavement',
    'tree',
    'sign',
    'fence',
    'car',
    'pedestrian',
    'bicyclist',
)
VOID = 11


def get_source(data_config: ConfigDict, split: str) -> folder.PairedFiles:
    """Opens `<split>` and `<split>annot` below `data_config.dir`; `validation` is `val` there.

    Raises:
      FileNotFoundError: a folder is missing.
      ValueError: `num_classes` is neither 0 nor 11.
    """
    folder.check_num_classes(data_config.num_classes, CLASS_NAMES, 'CamVid')
    root = storage.path(data_config.dir)
    name = 'val' if split == 'validation' else split
    layout = f'config.data.dir = {data_config.dir!r} must hold {name}/*.jpg and {name}annot/*.png'
    files = folder.match_files(root / name, root / f'{name}annot', layout)
    return folder.PairedFiles(
        CLASS_NAMES, files, ignore_label=VOID, max_pixels=data_config.max_pixels
    )
