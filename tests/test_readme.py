"""Holds README.md and docs/ against the code: snippet, links, commands, table of data sets."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankseg_jax import data, losses, multilabel, ranking
from rankseg_jax.data.published.label_maps import read_classes

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()
PAGES = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')])


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
        logits, selection, presence_logits = head.apply(
            params, features, train=True, presence=presence
        )
        ranks = ranking.to_ranks(labels, selection, num_classes=20, ignore_label=-1)
        pixels = losses.pixel_cross_entropy(logits, ranks).value
        return pixels + losses.binary_cross_entropy(presence_logits, presence)

    first, _ = step(params)
    for _ in range(300):
        value, slope = step(params)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, slope)
    assert value < 0.7 * first
    logits, selection, _ = head.apply(params, features, train=False)
    predicted = ranking.from_ranks(logits.argmax(-1), selection)
    assert np.mean(predicted[labels >= 0] == labels[labels >= 0]) > 0.7


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= 200


def prose(path):
    """The text of a Markdown file without its code blocks."""
    return re.sub(r'```.*?```', '', path.read_text(), flags=re.S)


def anchors(path):
    """The anchors of the headings of a Markdown file, as GitHub makes them."""
    titles = re.findall(r'^#+ (.*)', prose(path), re.M)
    return {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    for path, anchor in re.findall(r'\]\((?!https?:)([^)#]*)#?([^)]*)\)', prose(page)):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f'{path}#{anchor}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_files_and_recipes_that_exist(page):
    text = page.read_text()
    files = r'\b(?:benchmarks|configs|tests|main|requirements)[\w/-]*\.(?:py|txt)'
    added = re.findall(r'`([\w/]+\.py)`:\n\n```python', text)  # by the examples of CONTRIBUTING.md
    for path in set(re.findall(files, text)) - set(added):
        assert (ROOT / path).exists(), path
    for module, recipe in re.findall(r'configs/(\w+)\.py:(\w+)', text):
        importlib.import_module(f'configs.{module}').get_config(recipe)


def test_table_of_data_sets():
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
    published = {name for name, place in data.DATA_SETS.items() if place.startswith('published.')}
    assert sorted(named) == sorted(published) and len(named) == 12


def test_files_in_docs_are_small():
    for path in (ROOT / 'docs').rglob('*'):
        assert path.stat().st_size < (
            1_000_000 if path.suffix in ('.gif', '.ipynb') else 300_000
        ), path
