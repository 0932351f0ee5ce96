"""RankSeg in JAX: rank the categories of an image, then classify its pixels over the best κ.

Modules such as `rankseg_jax.ranking` or `rankseg_jax.predict` are imported on first use.
"""

import importlib
import pkgutil


def __getattr__(name: str):
    if name in {module.name for module in pkgutil.iter_modules(__path__)}:
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
