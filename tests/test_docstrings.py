"""The examples of docstrings that need no file give what they say."""

import doctest

import pytest

from weightsurgery.algebra import discriminate, svd


@pytest.mark.parametrize("module", [discriminate, svd])
def test_examples_of_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
