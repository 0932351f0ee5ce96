"""Segmentation frameworks, one module each: `build(config, num_classes)` -> a Flax module. Wiring only."""

import pkgutil


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
