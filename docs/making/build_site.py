"""Build the docs site: `make docs`, or `python docs/making/build_site.py [--only-sources]`.

Three steps. Pages are put together in dist/docs-sources, with what is made from the code in the
place of their markers, so that nothing of it can be out of date. A link from a page to another file
of the repository (a table, an example, a plan) leads to a copy of that file there, so that the site
is whole by itself. MkDocs turns the sources into dist/docs; a dead link or anchor is an error.
Last, each page is searched for what a browser would fetch from the network: there must be nothing.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import reference

ROOT = Path(__file__).parents[2]
DOCS, SOURCES, SITE = ROOT / "docs", ROOT / "dist" / "docs-sources", ROOT / "dist" / "docs"
#: Where copies of the repository's files lie among the sources.
COPIES = "repository"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".js": "javascript"}
#: A link of Markdown to a place in the repository.
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
#: What a browser fetches by itself, where it is elsewhere.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|link rel=\"?(?:stylesheet|preconnect|preload))[^>]*"
    r"(?:src|href)=\"?(?:https?:)?//[^>]*>"
)


def written() -> Iterator[Path]:
    """The pages that people have written."""
    return (page for page in sorted(DOCS.rglob("*.md")) if page.parent != Path(__file__).parent)


def sources() -> dict[str, str]:
    """Path among the sources -> Markdown of every page, all links inside."""
    pages = {page.relative_to(DOCS).as_posix(): page for page in written()}
    texts = {
        name: reference.filled(page.read_text(encoding="utf-8"), ROOT)
        for name, page in pages.items()
    }
    places = dict(pages)
    for name, text in list(texts.items()):
        for target in _outside(text, pages[name]):
            copy = _copy_name(target)
            places[copy], texts[copy] = target, _copy(target)
    return {name: _inside(name, text, places) for name, text in texts.items()}


def _targets(text: str, page: Path) -> Iterator[tuple[re.Match[str], Path]]:
    for found in LINK.finditer(text):
        yield found, Path(os.path.normpath(page.parent / found["path"]))


def _outside(text: str, page: Path) -> list[Path]:
    """Files of the repository beside the docs that a page links to."""
    found = {target for _, target in _targets(text, page)}
    return [each for each in sorted(found) if each.is_file() and not each.is_relative_to(DOCS)]


def _copy_name(target: Path) -> str:
    name = f"{COPIES}/{target.relative_to(ROOT).as_posix()}"
    return name if target.suffix == ".md" else f"{name}.md"


def _copy(target: Path) -> str:
    text = target.read_text(encoding="utf-8")
    if target.suffix == ".md":
        return text
    language = LANGUAGES.get(target.suffix, "text")
    name = target.relative_to(ROOT).as_posix()
    return f"# {target.name}\n\n`{name}` of the repository.\n\n````{language}\n{text}\n````\n"


def _inside(name: str, text: str, places: dict[str, Path]) -> str:
    """A page whose links lead to pages of the site, or are no links where there is none."""
    here = {target: other for other, target in places.items()}

    def led(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(places[name].parent / found["path"]))
        if target not in here and target.is_relative_to(DOCS) and target.is_file():
            return found[0]
        other = here.get(target) or (here.get(target / "index.md"))
        if other is None:
            return f"{posixpath.relpath('index.md', posixpath.dirname(name) or '.')}?{MISSING}"
        return posixpath.relpath(other, posixpath.dirname(name) or ".") + (found["anchor"] or "")

    text = LINK.sub(led, text)
    # A folder of the repository, or what a copy links to: its name alone.
    return re.sub(rf"\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\?{MISSING}\)", r"\1", text)


MISSING = "not-in-the-site"


def compose() -> None:
    """Write the sources: pages, pictures, schemas."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    for name, text in sources().items():
        page = SOURCES / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8", newline="\n")
    for file in DOCS.rglob("*"):
        if file.suffix in (".png", ".svg", ".css", ".js", ".json"):
            copy = SOURCES / file.relative_to(DOCS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def fetched() -> list[str]:
    """What pages of the built site would fetch from the network, with the page's name."""
    return [
        f"{page.relative_to(SITE)}: {found[0]}"
        for page in sorted(SITE.rglob("*.html"))
        for found in FETCHED.finditer(page.read_text(encoding="utf-8"))
    ]


def main() -> None:
    """Build the site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only-sources", action="store_true")
    only_sources = parser.parse_args().only_sources
    compose()
    if only_sources:
        return
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
    done = subprocess.run(words, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    if found := fetched():
        sys.exit("\n".join(["Pages fetch from the network:", *found]))
    print(f"{SITE / 'index.html'}: {len(list(SITE.rglob('*.html')))} pages")


if __name__ == "__main__":
    main()
