"""The bench's small world, built once for all files that measure on it."""

from dataclasses import replace

import pytest
import torch

from tests.lab.test_world import MINIATURE
from weightsurgery.lab.bench.subject import Subject
from weightsurgery.lab.world import get_world

RECIPE = replace(MINIATURE, steps=150, step_cap=150, first_check=150)


def subject_of(directory, recipe):
    torch.set_num_threads(1)
    return Subject.of(get_world(0, directory, recipe=recipe, threads=1), recipe, 0)


@pytest.fixture(scope="session")
def bench_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def subject(bench_cache):
    return subject_of(bench_cache, RECIPE)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")
