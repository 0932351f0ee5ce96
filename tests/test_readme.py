"""What the README says holds: its snippet runs and is short, its files exist, its picture is small."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rankseg_jax import data, losses, multilabel, ranking
from rankseg_jax.data.published.label_maps import read_classes

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()


def test_own_model_snippet_trains_in_rank_space():
    code = next(
        block for block in re.findall(r'```python\n(.*?)```', TEXT, re.S) if 'class Head' in block
    )
    body = code[code.index('class Head') :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 15
    assert set(re.findall(r'from rankseg_jax import (.*)', code)) == {'multilabel, ranking'}
    space = {}
    exec(code, space)
    head = space['Head'](num_classes=20, num_selected=4)
    features = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    labels = jnp.asarray(np.random.default_rng(0).choice([-1, 3, 7], (2, 4, 4)))
    presence = multilabel.pixel_counts(labels, 20) > 0
    params = head.init(jax.random.key(1), features, train=False)

    @jax.jit
    @jax.value_and_grad
    def step(params):
        logits, selection, class_logits = head.apply(
            params, features, train=True, presence=presence
        )
        ranks = ranking.to_ranks(labels, selection, num_classes=20, ignore_label=-1)
        return losses.pixel_cross_entropy(logits, ranks) + losses.binary_cross_entropy(
            class_logits, presence
        )

    first, _ = step(params)
    for _ in range(300):
        value, slope = step(params)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, slope)
    assert value < 0.7 * first
    logits, selection, _ = head.apply(params, features, train=False)
    predicted = ranking.from_ranks(logits.argmax(-1), selection)
    assert np.mean(predicted[labels >= 0] == labels[labels >= 0]) > 0.7


def test_links_and_commands_name_files_that_exist():
    for path in re.findall(r'\]\((?!http)([^)]+)\)', TEXT):
        assert (ROOT / path).exists(), path
    for path in re.findall(
        r'(?:python |--config=|-r )((?:configs|benchmarks|main|requirements)[\w/.-]*\.(?:py|txt))',
        TEXT,
    ):
        assert (ROOT / path).exists(), path


def test_the_table_of_data_sets_is_right():
    """Names, numbers of classes and of examples, and the configs that train on them."""
    text = (ROOT / 'docs/datasets.md').read_text()
    rows = [
        [cell.strip() for cell in line.split('|')[1:-1]]
        for line in text.splitlines()
        if line.startswith('| [`')
    ]
    named = []
    for names, numbers, counts, _, configs in rows:
        for name, number in zip(
            re.findall(r'`(\w+)`', names), re.findall(r'[\d,]+', numbers), strict=False
        ):
            builder = data.builder_class(name)
            named.append(builder.name)
            assert len(read_classes(builder.CLASSES)['names']) == int(number.replace(',', ''))
            published = getattr(builder, 'PUBLISHED_VIDEOS', builder.PUBLISHED).values()
            assert counts == ' / '.join(f'{count:,}' for count in published) + (
                ' videos' if 'videos' in counts else ' images'
            )
        first = re.findall(r'`(\w+)`', names)[0]
        for module, recipe, other in re.findall(
            r'(\w+)\.py:(\w+)(?: --config\.data\.name=(\w+))?', configs
        ):
            config = importlib.import_module(f'configs.{module}').get_config(recipe)
            assert first == (other or config.data.name)
    published = [name for name, place in data.DATA_SETS.items() if place.startswith('published.')]
    assert sorted(named) == sorted(published) and len(named) == 11


def test_pictures_are_small():
    for path in (ROOT / 'docs').iterdir():
        assert path.stat().st_size < 300_000, path
