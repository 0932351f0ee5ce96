"""CamVid: street scenes of 11 categories, with a narrow encoder trained from scratch.

    python main.py --config=configs/camvid.py --workdir=runs/camvid --config.data.dir=<folder>

The folder holds train/, trainannot/, val/ and valannot/.
"""

from configs import check_argument, quickstart


def get_config(variant=''):
    check_argument('camvid', variant, ('',))
    config = quickstart.get_config()
    config.steps = 1000
    config.data.name = 'camvid'
    config.data.num_classes = 0
    config.augment.base_size = (180, 240)
    config.augment.crop_size = (160, 208)
    config.augment.scale_range = (0.75, 1.5)
    config.augment.photometric = True
    config.eval.size = (180, 240)
    # Every image holds nearly all categories: none can be left out.
    config.rankseg.num_selected = 11
    return config
