"""Imports go one way: config → data → model → task → train, evaluate, predict."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / 'rankseg_jax'

# The modules of the project that each layer may import, in the order of the flow.
ALLOWED = {
    '__init__': '',
    'config_check': 'backbones data frameworks layers multilabel tasks',
    'sharding': 'processes',
    'processes': '',
    'storage': '',
    'bucket_checkpoints': 'storage',
    'categories': '',
    'checkpoint': 'bucket_checkpoints categories storage',
    'optimizers': '',
    'fonts': '',
    'visualize': 'fonts visualize',
    'depthwise': '',
    'layers': 'depthwise',
    'ranking': '',
    'matching': 'matching_gpu',
    'matching_gpu': '',
    'multilabel': 'layers',
    'data': 'data storage',
    'metrics': 'data ranking',
    'losses': 'layers matching',
    'outputs': 'ranking',
    'selector': 'multilabel outputs ranking',
    'backbones': 'backbones layers',
    'decoders': 'decoders layers multilabel outputs ranking selector',
    'frameworks': 'backbones decoders frameworks layers outputs selector',
    'pretrained': 'backbones checkpoint decoders frameworks layers pretrained sharding storage',
    'models': 'checkpoint frameworks outputs selector sharding',
    'postprocessing': 'data outputs ranking',
    'tracking': '',
    'tasks': (
        'data losses metrics multilabel outputs postprocessing ranking tasks tracking visualize'
    ),
    'windows': 'data',
    'inference': (
        'data models multilabel outputs postprocessing ranking selector sharding tasks windows'
    ),
    'report': 'data metrics predict report storage visualize',
    'evaluate': 'checkpoint data inference models predict report sharding storage tasks',
    'export_example': 'data tracking',
    'export': (
        'checkpoint data export_example inference models postprocessing sharding storage tasks'
    ),
    'model_card': 'evaluate storage',
    'publish': 'checkpoint model_card models pretrained sharding storage tasks',
    'predict': 'checkpoint data export inference models sharding storage tasks',
    'prediction_files': 'categories data predict storage tasks visualize',
    'demo': 'data inference predict prediction_files report tasks visualize',
    'published_task': 'data tasks',
    'convert': (
        'backbones checkpoint config_check frameworks from_data models pretrained published_task '
        'storage tasks'
    ),
    'from_data': 'checkpoint data tasks',
    'reporting': 'evaluate optimizers sharding storage',
    'train_step': 'inference losses models outputs selector tasks',
    'train': (
        'categories checkpoint data evaluate from_data models optimizers pretrained processes '
        'reporting sharding storage tasks train_step'
    ),
    'recipes': 'config_check tasks',
    'cli': (
        'analysis checkpoint config_check convert data demo evaluate export from_data predict '
        'prediction_files processes publish recipes sharding storage tasks train'
    ),
    'analysis': (
        'analysis checkpoint data evaluate fonts inference models predict report sharding storage '
        'tasks'
    ),
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
        extra = set(imported(path)) - set(ALLOWED[layer].split())
        assert not extra, f'{path} imports {extra}'


def test_benchmarks_import_names_that_exist():
    for path in (PACKAGE.parent / 'benchmarks').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            module = isinstance(node, ast.ImportFrom) and node.module or ''
            if module.split('.')[0] != 'rankseg_jax':
                continue
            for alias in node.names:
                known = hasattr(importlib.import_module(module), alias.name)
                assert known or importlib.util.find_spec(f'{module}.{alias.name}'), path


def test_only_training_data_load_tensorflow():
    program = (
        'import sys; '
        'from rankseg_jax import analysis, convert, evaluate, export, models, prediction_files; '
        'from rankseg_jax.train import make_train_step; '
        'assert not {"tensorflow", "tensorflow_datasets", "tensorboard"} & sys.modules.keys()'
    )
    subprocess.run([sys.executable, '-c', program], check=True, cwd=PACKAGE.parent)
