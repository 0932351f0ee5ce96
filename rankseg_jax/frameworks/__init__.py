"""Segmentation frameworks, one module each, whose `build(config, num_classes)` gives a Flax module.

They only wire backbones, decoders and classifiers together.
"""

import pkgutil


def names() -> list[str]:
    """The values of `config.model.framework`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
