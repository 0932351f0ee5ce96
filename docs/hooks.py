"""Puts the Markdown files of the repository root on the site and adapts links to it.

Links in the sources are relative to the file they stand in, as GitHub resolves them. On the site,
links to pages are kept, and links to files that are not on the site become plain text.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
}  # file in the repository -> page on the site
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r'(!?)\[([^]]*)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)')


def on_files(files, config):
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text('utf-8')))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(here, f'docs/{here}'))

    def adapt(match):
        image, text, path, anchor = match.groups()
        target = posixpath.normpath(posixpath.join(folder, path))
        target = PAGES.get(target, target.removeprefix('docs/'))
        if files.get_file_from_path(target) is None:
            return text
        relative = posixpath.relpath(target, posixpath.dirname(here) or '.')
        return f'{image}[{text}]({relative}{anchor or ""})'

    return LINK.sub(adapt, markdown)


def on_page_content(html, page, config, files):
    if page.file.src_uri.endswith('.ipynb'):  # of which MkDocs does not adapt the links
        html = re.sub(r'href="([\w/]+)\.md"', r'href="\1.html"', html)
    return html
