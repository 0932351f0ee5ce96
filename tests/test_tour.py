"""docs/tour.ipynb runs from its first cell to its last, on a small budget."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parents[1] / 'docs'


def printed(cell) -> str:
    return ''.join(output.get('text', '') for output in cell.get('outputs', ()))


def shown(cell) -> bool:
    return any('image/png' in output.get('data', {}) for output in cell.get('outputs', ()))


def test_tour_runs_as_its_outputs_say(tmp_path, monkeypatch):
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setenv('TOUR_STEPS', '2')
    written = nbformat.read(DOCS / 'tour.ipynb', as_version=4)
    assert not any('error' in printed(cell) for cell in written.cells)
    notebook = nbformat.from_dict(written)
    NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(DOCS)}}).execute()
    for before, cell in zip(written.cells, notebook.cells, strict=True):
        assert 'error' not in printed(cell), printed(cell)
        assert shown(cell) == shown(before), cell.source
    text = '\n'.join(map(printed, notebook.cells))
    for part in ('step 2/2', 'Report: ', 'Recommended: κ = ', 'Exported: ', '% of the pixels'):
        assert part in text, part
    (run,) = tmp_path.glob('tour_*/run')
    assert (run / 'report.html').is_file() and (run / 'export' / 'example.py').is_file()
