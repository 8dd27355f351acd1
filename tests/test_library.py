"""``import weightsurgery as ws``: cheap, whole, and typed for who uses it."""

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import weightsurgery as ws

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "safetensors",
    "huggingface_hub",
    "peft",
    "typer",
    "rich",
)


def test_importing_it_imports_nothing_heavy():
    code = (
        f"import json, sys, weightsurgery as ws\nheavy = set({HEAVY!r})\n"
        "first = sorted(heavy & set(sys.modules)); ws.Rank(3); ws.WeightSurgeryError('x')\n"
        "second = sorted(heavy & set(sys.modules)); ws.complete\n"
        "print(json.dumps([first, second, 'torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert json.loads(done.stdout) == [[], [], True]  # the last of them does import


def test_checkers_see_what_there_is():
    tree = ast.parse((ROOT / "weightsurgery/__init__.py").read_text())
    (block, _) = [each for each in tree.body if isinstance(each, ast.If)]
    seen = {
        alias.name: each.module.removeprefix("weightsurgery.")
        for each in block.body
        for alias in each.names
        if alias.asname == alias.name
    }
    assert seen == ws._PUBLIC
    assert len(seen) >= 40
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ws.nothing  # noqa: B018
    assert set(dir(ws)) == {"__version__", *seen}


@pytest.mark.parametrize("name", sorted(ws._PUBLIC))
def test_docstrings_say_what_goes_in_and_what_goes_wrong(name):
    found = getattr(ws, name)
    text = inspect.getdoc(found)
    assert text.splitlines()[0].endswith((".", ":"))
    if inspect.isfunction(found):
        taken = set(inspect.signature(found).parameters)
        assert "Raises:" in text or name in ("discriminate", "truncated_svd", "inspect")
        if len(taken) > 2 and name != "plan_edit":
            assert [each for each in taken if f"{each}:" not in text] == []


GOOD = """
import weightsurgery as ws

with ws.Checkpoint.open("base") as base:
    vector: ws.TaskVector = ws.open_vector(base, ["tuned"])
    edit = ws.Project(vector, keep=(0.5 * vector,), rank=ws.Rank(32), scale=2.0)
    done: ws.Applied = ws.apply(edit, base, "out", selection=ws.Selection("mlp"))
    size: float = ws.diff(base, vector, rule=ws.Energy(0.9)).relative
record: ws.EditRecord = ws.verify(__import__("pathlib").Path("out"))
scores = ws.evaluate("out", ["forget.jsonl"], against="base")
names: list[str] = [each.name for each in scores.sets]
"""
WRONG = """
import weightsurgery as ws

ws.Rank("three")
ws.apply("edit", ws.Checkpoint.open("base"))
ws.Project(nothing=1)
word: str = ws.diagnose().ready
ws.nothing
"""


def test_a_user_s_script_is_checked(tmp_path):
    """py.typed works: mypy sees types through the lazy names, and finds what is wrong."""
    skipped = "torch numpy transformers huggingface_hub peft accelerate datasets safetensors"
    parts = [f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in skipped.split()]
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\nignore_missing_imports = True\n" + "".join(parts)
    )
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "wrong.py").write_text(WRONG)
    shutil.copy(ROOT / "examples/forget_a_family.py", tmp_path / "good_example.py")
    files = ("good.py", "good_example.py", "wrong.py")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", *files],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if "No module named mypy" in done.stderr:
        pytest.skip("mypy is not installed")
    own = [line for line in done.stdout.splitlines() if line.startswith(files)]
    assert [line for line in own if line.startswith("good")] == []
    lines = sorted({int(line.split(":")[1]) for line in own})
    assert lines == [4, 5, 6, 7, 8], done.stdout


def test_there_is_one_version():
    import yaml

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["cff-version"]) == (ws.__version__, "1.2.0")
    assert f"## {ws.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]


def test_the_demo_brings_what_its_next_commands_take():
    """It names ``ws evaluate``, whose scores take ROUGE-L where nothing else is asked for."""
    from weightsurgery.lab.demo import capitals
    from weightsurgery.learning.metric_names import METRICS

    assert '"ws", "evaluate"' in Path(capitals.__file__).read_text()
    assert any(each.choice == "rouge_l" for each in METRICS.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "rouge-score>=0.1.2" in project["optional-dependencies"]["demo"]


def test_pages_lead_to_pages(tmp_path):
    """What scripts/docs hands to mkdocs: all names, and no link to what is no page."""
    script = ROOT / "scripts/docs_pages.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, cwd=ROOT)
    pages = {each.name: each.read_text() for each in (tmp_path / "docs").iterdir()}
    assert {"index.md", "api.md", "manual.md", "method.md", "changelog.md"} <= set(pages)
    told = re.findall(r"^::: weightsurgery\.([\w.]+)$", pages["api.md"], re.M)
    assert sorted(told) == sorted(f"{module}.{name}" for name, module in ws._PUBLIC.items())
    links = [each for text in pages.values() for each in re.findall(r"\]\((\w[^)#:]*)[#)]", text)]
    assert set(links) <= set(pages)
    assert len(links) > 20
    assert json.loads((tmp_path / "mkdocs.yml").read_text())["docs_dir"] == "docs"
