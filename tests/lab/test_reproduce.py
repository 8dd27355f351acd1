"""What is published of the yardstick is what the results beside it give, line by line."""

import json
import sys
from pathlib import Path

from weightsurgery.lab.bench.cost_tables import by_variant
from weightsurgery.lab.bench.methods import FORGETTING, LEARNING
from weightsurgery.lab.bench.results import read_bench
from weightsurgery.lab.bench.tables import bench_tables, markdown, variant_tables

PLACE = Path(__file__).parents[2] / "scripts" / "reproduce"
sys.path.insert(0, str(PLACE))

import tofu_robust_tables  # noqa: E402
import tofu_tables  # noqa: E402

ABOUT = {name: method.about for name, method in {**FORGETTING, **LEARNING}.items()}


def test_every_published_table_is_what_the_results_give():
    results = {path.stem: read_bench(path) for path in sorted(PLACE.glob("results/*.json"))}
    widths = by_variant([results[name] for name in ("systems", "scale-narrow", "scale-narrower")])
    groups = [variant_tables(widths, ABOUT)]
    groups += [bench_tables(found, ABOUT) for found in results.values()]
    given = {line for tables in groups for each in tables for line in markdown(each).splitlines()}
    for file in PLACE.glob("results/tofu/*.json"):
        given |= set(tofu_tables.render(json.loads(file.read_text())).splitlines())
    for file in PLACE.glob("results/tofu-robust/*.json"):
        robust = tofu_robust_tables.render_robust(json.loads(file.read_text()))
        given |= set(robust.splitlines())
    page = (PLACE / "README.md").read_text(encoding="utf-8").splitlines()
    published = [line for line in page if line.startswith("|")]
    assert len(published) > 150
    assert [line for line in published if line not in given] == []
