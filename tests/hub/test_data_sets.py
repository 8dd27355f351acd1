"""Data sets on the Hub: found by their parts, pinned to a commit, and read again offline."""

import json

import pytest

CARD = """---
configs:
- config_name: forget01
  data_files: forget01.json
- config_name: world
  data_files:
  - {split: train, path: world/a.jsonl}
  - {split: test, path: world/b.jsonl}
---
"""

READ = """
import json, sys
from weightsurgery.errors import WeightSurgeryError
from weightsurgery.learning.reading import read
found = {}
for name in sys.argv[1:]:
    try:
        each = read(name)
    except WeightSurgeryError as error:
        found[name] = [error.what, error.remedy]
    else:
        files = each.place.digests()
        found[name] = [[e.prompt for e in each.examples], each.facts["revision"], sorted(files)]
print(json.dumps(found))
"""


@pytest.fixture
def published(hub, tmp_path):
    rows = {"forget01.json": "who", "world/a.jsonl": "where", "world/b.jsonl": "when"}
    files = {"README.md": tmp_path / "README.md"}
    files["README.md"].write_text(CARD)
    for name, question in rows.items():
        files[name] = tmp_path / name.replace("/", "-")
        row = {"question": question, "answer": "x"}
        files[name].write_text(json.dumps([row] if name.endswith(".json") else row))
    hub.server.add("org/facts", files)
    return hub


def read(hub, *names, **env):
    done = hub.python(READ, *names, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_parts_are_read_and_pinned_and_the_rest_stays_there(published):
    names = ("org/facts#forget01", "datasets/org/facts#world/test", "org/facts@main#train")
    ambiguous, missing = "org/facts", "org/nothing"
    found = read(published, *names, ambiguous, missing)
    (who, commit, files), (when, *_), (what, _) = (found[name] for name in names)
    assert (who, files) == (["who"], ["forget01.json"])
    assert when == ["when"]
    assert "holds several parts: forget01/train, world/train" in what
    assert "forget01/train, world/train, world/test" in found[ambiguous][0]
    assert missing in found[missing][0]
    paths = [each.path for each in published.server.requests if "/resolve/" in each.path]
    assert not any("a.jsonl" in path for path in paths)
    # What is in the cache is there without a Hub.
    offline = read(published, names[0], "org/other", HF_HUB_OFFLINE="1")
    assert offline[names[0]] == [who, commit, files]
    assert "org/other" in offline["org/other"][0]
