"""The examples of the README and of the pages under docs/, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import forked
from weightsurgery.lab.world import VARIANTS, copy_world, get_world

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# In the order in which a reader meets them: later examples go on from what earlier ones wrote.
FIRST = [README, *(ROOT / "docs" / f"{name}.md" for name in ("manual", "formats"))]
PAGES = [*FIRST, *sorted(set((ROOT / "docs").glob("*.md")) - set(FIRST))]


def blocks(language: str) -> list[str]:
    return [
        block for page in PAGES
        for block in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)
    ]  # fmt: skip


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [each for each in links if not (page.parent / each).exists()] == []
    assert links or page.name in (
        "architectures.md",
        "method.md",
        "formats.md",
        "design.md",
        "CONTRIBUTING.md",
    )


def test_the_readme_is_short_and_leads_to_every_page():
    text = README.read_text()
    assert len(text.encode()) <= 12_000
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in text


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return get_world(0, tmp_path_factory.mktemp("cache"), recipe=VARIANTS["small"], threads=1)


@pytest.fixture
def here(small, tmp_path):
    """A directory as `ws demo --toy --world-only --dir demo` leaves one, with a smaller world."""
    copy_world(small, tmp_path / "demo")
    return tmp_path


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder with a `ws` that has not to load its libraries a dozen times."""
    return forked.script(tmp_path_factory.mktemp("bin")).parent


def run(command: list[str], here: Path, text: str, programs: Path) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command, cwd=here, env={**os.environ, "PATH": path}, input=text,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_examples_run_in_their_order(here, programs):
    commands = blocks("bash")
    assert sum(block.count("ws ") for block in commands) >= 12
    assert not (here / "demo/forgot").exists()
    done = run(["bash", "-euo", "pipefail"], here, "\n".join(commands), programs)
    assert done.returncode == 0, done.stderr
    assert (here / "demo/forgot/weightsurgery.json").is_file()
    assert "all as recorded" in done.stdout

    (example,) = blocks("python")
    done = run([sys.executable, "-"], here, example, programs)
    assert done.returncode == 0, done.stderr
    change, kept, score = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert float(change[0]) > 0
    assert 0.5 < float(kept[1]) <= 1
    assert 0 <= float(score[0]) <= 1


def test_a_wrong_example_is_found(here, programs):
    done = run(["bash", "-euo", "pipefail"], here, "ws inspect demo/nowhere\n", programs)
    assert done.returncode == 1
    assert "no such directory" in done.stderr


@pytest.mark.parametrize("option", ["objective", "wordings", "neighbours", "keep-weight",
                                    "lora-rank", "budget", "allow-harm", "check"])  # fmt: skip
def test_what_decides_an_edit_from_data_is_explained(option):
    assert f"`--{option}" in README.read_text()
