"""Your own images: UPerNet with ResNet-50.

    python main.py --config=configs/folder.py --workdir=runs/mine \\
        --config.data.dir=<folder> --config.rankseg.num_selected=8

The folder holds `images/<split>/**`, `labels/<split>/**.png` and `classes.txt`. The argument
`baseline`, as in --config=configs/folder.py:baseline, trains without RankSeg. κ must not exceed the
number of classes; a good start is the 99th percentile of categories per image, which the check
before training prints.
"""

from configs import check_argument, common


def get_config(variant=''):
    check_argument('folder', variant, ('', 'baseline'))
    config = common.get_config()
    config.data.name = 'folder'
    if variant == 'baseline':
        config.rankseg = None
    return config
