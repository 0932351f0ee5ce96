"""Your own pictures: UPerNet with ResNet-50 on `images/<split>/*`, `labels/<split>/*.png` and `classes.txt`.

    python main.py --config=configs/folder.py --workdir=runs/mine --config.data.dir=<folder> --config.rankseg.num_selected=8

`--config=configs/folder.py:baseline` trains the same without RankSeg. κ must not exceed the number of classes; a good start is
the 99th percentile of categories in an image, which the check before training prints.
"""

from configs import common


def get_config(variant=''):
    if variant not in ('', 'baseline'):
        raise ValueError(
            f'configs/folder.py:{variant} is unknown; use configs/folder.py or configs/folder.py:baseline'
        )
    config = common.get_config()
    config.data.name = 'folder'
    if variant == 'baseline':
        config.rankseg = None
    return config
