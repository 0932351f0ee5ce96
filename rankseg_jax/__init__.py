"""RankSeg in JAX: rank the categories of an image, then classify pixels over the best κ alone.

The parts are modules, loaded when first used: `rankseg_jax.ranking`, `rankseg_jax.multilabel`, `rankseg_jax.predict`, …
"""

import importlib
import pkgutil


def __getattr__(name: str):
    if name in {module.name for module in pkgutil.iter_modules(__path__)}:
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
