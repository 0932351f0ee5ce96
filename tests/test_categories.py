"""Which data fit a run."""

from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from rankseg_jax import categories

DATA = ConfigDict({'name': 'folder', 'dir': 'photos'})


def check(trained, found, things=((), ())):
    run, data = (
        SimpleNamespace(class_names=tuple(names), things=kinds)
        for names, kinds in zip((trained, found), things, strict=True)
    )
    categories.check(run, data, where='runs/a/checkpoints/4', data_config=DATA)


@pytest.mark.parametrize(
    'trained, found',
    [
        (('sky', 'Traffic Light'), ('sky ', 'traffic_light')),
        (('person', 'wall-other-merged'), ('Person, individual', 'wall other merged')),
        (('windowpane; window',), ('window , glass',)),
        (('LABEL_0', 'LABEL_1'), ('sky', 'tree')),
        (('天空', 'Straße'), ('天空', 'STRASSE')),
        ((',',), (',',)),
    ],
)
def test_other_spellings_of_a_category_are_the_same(trained, found):
    check(trained, found)


@pytest.mark.parametrize(
    'trained, found, message',
    [
        ('abc', 'ab', 'K is 3 in the run, 2 in the data'),
        (('sky', 'tree'), ('tree', 'sky'), "category 0 is 'sky' in the run, 'tree' in the data"),
        (('sky', 'tree'), ('sky', 'street'), "category 1 is 'tree' in the run, 'street' in the"),
        (('-1', '+1'), ('+1', '-1'), "category 0 is '-1'"),
        (('pot', 'toilet, pot'), ('toilet, pot', 'pot'), "category 0 is 'pot'"),
        (('LABEL_0', 'sky'), ('sky', 'LABEL_0'), "category 0 is 'LABEL_0'"),
    ],
)
def test_the_first_difference_is_named(trained, found, message):
    with pytest.raises(ValueError, match=r"data.name = 'folder' in photos differ.*runs/a") as error:
        check(trained, found)
    assert message in str(error.value)


def test_things_are_compared_where_both_sides_have_some():
    check('ab', 'ab', [(), (True, False)])
    check('ab', 'ab', [(1, 0), (True, False)])
    with pytest.raises(ValueError, match="category 1, 'b', is stuff in the run, a thing in the d"):
        check('ab', 'ab', [(True, False), (True, True)])
