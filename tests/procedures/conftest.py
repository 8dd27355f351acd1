import pytest

from tests.procedures.taught import Taught, teach


@pytest.fixture(scope="session")
def taught(tmp_path_factory) -> Taught:
    return teach(tmp_path_factory.mktemp("taught"))
