"""Build the documentation's site: python docs/build.py. It needs no network, and leaves the pages in site/.

docs/*.md can be read as they are. For the site they are copied to build/docs, where a comment `<!-- site: NAME -->`
becomes what the package says (parts.py), a formula MathML (mathml.py), and a link to a file of the repository a link to
a page with that file's text: `[name](../src/file.py)` to the very line that defines the name.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = ROOT / "build" / "docs"
# files of the repository that are pages of the site, and the names of these
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results/table.md": "benchmark-table.md",
    "docs/README.md": "index.md",
}
FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=fence)[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<label>!?\[(?:[^\[\]]|\[[^\[\]]*\]\([^()]*\))*\])\((?P<target>[^()\s]+)\)")
COMMENT = re.compile(r"^<!-- site: (?P<name>[\w-]+)(?P<arguments>[^\n]*) -->$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")


def prose(text: str) -> Iterator[tuple[bool, str]]:
    """A page in pieces: (True, prose) and (False, a fence)."""
    at = 0
    for fence in FENCE.finditer(text):
        yield True, text[at : fence.start()]
        yield False, fence.group()
        at = fence.end()
    yield True, text[at:]


def links(text: str) -> Iterator[re.Match[str]]:
    """Links and images of a page, code left out."""
    for is_prose, piece in prose(text):
        if is_prose:
            yield from LINK.finditer(piece)


def local(page: str, target: str) -> tuple[str, str] | None:
    """The file of the repository that a link of a page leads to, and the anchor; None for one that leads out of it."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    return (os.path.normpath(PurePosixPath(page).parent / path).replace(os.sep, "/") if path else page), anchor


def defined_at(file: Path, name: str) -> int | None:
    """The line that defines a name, such as `Block.forward`, in a Python file."""
    body: list[ast.stmt] = ast.parse(file.read_text(encoding="utf-8")).body
    line = None
    for part in name.split("."):
        found = next((node for node in body if part in names(node)), None)
        if found is None:
            return None
        line, body = found.lineno, getattr(found, "body", [])
    return line


def names(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def code_name(label: str, path: str) -> str | None:
    """The name that a link to a Python file speaks of, as [`Block`](../src/x.py) does."""
    match = re.fullmatch(r"\[`([A-Za-z_][\w.]*)`\]", label)
    return match[1] if match and path.endswith(".py") and not match[1].endswith(".py") else None


def place(path: str) -> str:
    """Where a file of the repository is among the site's pages."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}" if path.endswith((".png", ".svg")) else f"source/{path}.md"


class Site:
    """The pages under build/docs, with what they lead to."""

    def __init__(self, parts: dict[str, Callable[..., str]]) -> None:
        self.parts = parts
        self.wanted: list[str] = []  # files of the repository that a page leads to

    def write(self, page: str, text: str) -> None:
        """Write one page; `page` is where it is in the repository, which its links start from."""
        target = PAGES / place(page)
        target.parent.mkdir(parents=True, exist_ok=True)
        pieces = [self.linked(page, self.filled(piece)) if is_prose else piece for is_prose, piece in prose(text)]
        target.write_text("".join(pieces), encoding="utf-8")

    def filled(self, text: str) -> str:
        """The text with its comments replaced by what the package says."""
        return COMMENT.sub(lambda match: self.parts[match["name"]](*match["arguments"].split()), text)

    def linked(self, page: str, text: str) -> str:
        """The text with its links leading to pages of the site. Raises ValueError for one that leads nowhere."""

        def rewrite(match: re.Match[str]) -> str:
            found = local(page, match["target"])
            if found is None:
                return match.group()
            path, anchor = found
            if not (ROOT / path).is_file():
                raise ValueError(f"{page} links to {match['target']}, which is not there")
            self.wanted.append(path)
            name = code_name(match["label"], path)
            if name is not None:
                anchor = f"__span-0-{defined_at(ROOT / path, name)}"
            target = os.path.relpath(place(path), PurePosixPath(place(page)).parent).replace(os.sep, "/")
            return f"{match['label']}({'' if path == page else target}{'#' if anchor else ''}{anchor})"

        return LINK.sub(rewrite, text)

    def write_sources(self) -> None:
        """Write the pages of those files that are pages only since something leads to them."""
        for path in sorted({path for path in self.wanted if place(path).startswith("source/")}):
            file, target = ROOT / path, PAGES / place(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix != ".md":
                shutil.copyfile(file, target)
                continue
            text = file.read_text(encoding="utf-8").rstrip()
            head = f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n"
            target.write_text(f'{head}``````{file.suffix[1:]} linenums="1"\n{text}\n``````\n', encoding="utf-8")


def write_pages() -> None:
    """Fill build/docs."""
    import parts  # which imports torch

    shutil.rmtree(PAGES, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.md", "*.py", "__pycache__")
    shutil.copytree(DOCS, PAGES, ignore=ignored)
    site = Site(parts.ANYWHERE)
    own = {path: ROOT / path for path in ELSEWHERE if path != "README.md"}
    own |= {file.relative_to(ROOT).as_posix(): file for file in DOCS.rglob("*.md")}
    for page, file in own.items():
        text = file.read_text(encoding="utf-8")
        title = "# Against other libraries\n\n" if page.endswith("table.md") else ""
        site.write(page, title + text)
    for page, made in parts.MADE.items():
        (PAGES / page).write_text(made(), encoding="utf-8")
    site.write_sources()


def main() -> int:
    """Write the pages and build the site. Returns the exit code."""
    argparse.ArgumentParser(description="Build the documentation's site in site/.").parse_args()
    sys.path.insert(0, str(DOCS))
    write_pages()
    paths = os.pathsep.join(filter(None, [str(DOCS), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
