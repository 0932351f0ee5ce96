"""Folders that cannot be written are refused, and full disks are told from other errors."""

import errno

import pytest

from rankseg_jax import storage


def test_a_folder_is_made_and_left_empty(tmp_path):
    folder = storage.make_folder(str(tmp_path / 'a/b'))
    assert storage.make_folder(folder) == tmp_path / 'a/b' and not any(folder.iterdir())
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file/below'):
        with pytest.raises(OSError, match=rf'cannot write to {path} \(.*another .* with --workdir'):
            storage.make_folder(path, '--workdir')


def test_an_unknown_home_is_a_path_as_it_stands():
    assert str(storage.path('~no_such_user/x')) == '~no_such_user/x'
    assert storage.path('~/x').is_absolute()


def test_full_disks_are_recognized():
    with pytest.raises(OSError) as error, open('/dev/full', 'w') as file:
        file.write('a')
    assert storage.is_full(error.value)
    try:
        raise RuntimeError('of orbax') from ValueError(
            'RESOURCE_EXHAUSTED: No space left on device'
        )
    except RuntimeError as error:
        assert storage.is_full(error)
    assert storage.is_full(OSError(errno.EDQUOT, ''))
    assert not storage.is_full(OSError(errno.EACCES, 'Permission denied'))
