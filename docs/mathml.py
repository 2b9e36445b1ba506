"""Mathematics in Markdown, `$inline$` and `$$` blocks, as MathML: what browsers draw without a script."""

import re
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

INLINE = r"(?<![\\$\w])\$(?![\s$])([^$\n]+?)(?<![\s\\])\$(?![\w$])"
BLOCK = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.MULTILINE | re.DOTALL)


class Inline(InlineProcessor):
    """A formula within a line."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element | str, int, int]:  # noqa: N802
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class Block(Preprocessor):
    """A formula with lines of its own."""

    def run(self, lines: list[str]) -> list[str]:
        def stashed(match: re.Match[str]) -> str:
            formula = convert(match[1], display="block")
            return "\n" + self.md.htmlStash.store(f'<div class="formula" tabindex="0">{formula}</div>') + "\n"

        return BLOCK.sub(stashed, "\n".join(lines)).split("\n")


class Mathematics(Extension):
    """Both of them: after code has been taken out, before a backslash is an escape."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.inlinePatterns.register(Inline(INLINE, md), "mathml", 185)
        md.preprocessors.register(Block(md), "mathml", 22)


def makeExtension(**settings: Any) -> Mathematics:  # noqa: N802
    """What Markdown looks for."""
    return Mathematics(**settings)
