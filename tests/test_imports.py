"""Imports go one way: config → data → model → task → train, evaluate, predict."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / 'rankseg_jax'

# What the modules of a layer may import of the project.
ALLOWED = {
    'ranking': set(),
    'layers': set(),
    'losses': {'layers', 'matching'},
    'matching': set(),
    'multilabel': {'layers'},
    'optimizers': set(),
    'postprocessing': set(),
    'sharding': set(),
    'checkpoint': set(),
    'config_check': set(),
    'visualize': set(),
    'metrics': {'ranking'},
    'backbones': {'layers', 'backbones'},
    'decoders': {'decoders', 'layers', 'ranking', 'multilabel'},
    'frameworks': {'backbones', 'decoders', 'frameworks', 'layers'},
    'pretrained': {'backbones', 'checkpoint', 'decoders', 'frameworks', 'pretrained'},
    'data': {'data'},
    'tasks': {'data', 'losses', 'metrics', 'multilabel', 'ranking'},
    'models': {'checkpoint', 'frameworks'},
    'inference': {'data', 'decoders', 'models', 'postprocessing', 'ranking'},
    'export': {'checkpoint', 'data', 'inference', 'models', 'sharding'},
    'convert': {'backbones', 'checkpoint', 'data', 'frameworks', 'models', 'pretrained'},
    'evaluate': {
        'checkpoint',
        'data',
        'inference',
        'metrics',
        'models',
        'multilabel',
        'sharding',
        'tasks',
    },
    'predict': {
        'checkpoint',
        'data',
        'export',
        'inference',
        'models',
        'multilabel',
        'sharding',
        'visualize',
    },
    'train': {
        'checkpoint',
        'data',
        'decoders',
        'evaluate',
        'inference',
        'losses',
        'models',
        'multilabel',
        'optimizers',
        'pretrained',
        'sharding',
        'tasks',
    },
    'analysis': {
        'analysis',
        'checkpoint',
        'data',
        'evaluate',
        'inference',
        'models',
        'multilabel',
        'sharding',
    },
    '__init__': set(),
}


def imported(path):
    """The project's top-level modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split('.')[0] == 'rankseg_jax'
        ):
            parts = node.module.split('.')
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [
                alias.name.split('.')[1]
                for alias in node.names
                if alias.name.startswith('rankseg_jax.')
            ]


def test_imports_go_one_way():
    for path in PACKAGE.rglob('*.py'):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
        extra = set(imported(path)) - ALLOWED[layer]
        assert not extra, f'{path} imports {extra}'


def test_the_core_does_not_load_tensorflow():
    program = (
        'import sys; from rankseg_jax import ranking, multilabel, losses; '
        'sys.exit("tensorflow" in sys.modules)'
    )
    subprocess.run([sys.executable, '-c', program], check=True, cwd=PACKAGE.parent)


def test_prediction_does_not_load_tensorflow():
    program = (
        'import sys; from rankseg_jax import export, predict; sys.exit("tensorflow" in sys.modules)'
    )
    subprocess.run([sys.executable, '-c', program], check=True, cwd=PACKAGE.parent)
