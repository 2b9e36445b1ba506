"""Pages with figures are what their scripts make of the results that lie beside them."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import expected
import gallery

from scratchlm.models import MODELS


@pytest.mark.parametrize("made", [expected, gallery], ids=lambda made: made.__name__)
def test_a_page_is_what_its_script_makes(made):
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), f"run python benchmarks/{made.__name__}.py"


def test_every_architecture_is_in_the_gallery():
    page = gallery.PAGE.read_text(encoding="utf-8")
    for arch in MODELS:
        assert f"(gallery/{arch}.svg)" in page
        assert f"### {arch}\n" in page


def test_the_pictures_of_the_gallery_are_there_and_small():
    for file in gallery.GALLERY.iterdir():
        if file.suffix == ".svg":
            assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
            assert f"gallery/{file.name}" in gallery.PAGE.read_text(encoding="utf-8")
        assert file.stat().st_size < 300_000, file
