"""Adapters: every registered architecture with each check of adapted.py, then what concerns LoRA alone."""

import pytest

import adapted

SHAPES = {name: adapted.maker(*shape) for name, shape in adapted.shapes().items()}


@pytest.mark.parametrize("check", adapted.CHECKS)
@pytest.mark.parametrize("name", SHAPES)
def test_adapted(name, check):
    adapted.CHECKS[check](SHAPES[name])
