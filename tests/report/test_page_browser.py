"""The page in a browser: it draws, answers, agrees with the JSON, and neither complains nor asks.

Skipped where there is no browser: playwright (PyPI), and Chromium of the system or of playwright.
"""

import shutil

import pytest

from tests.report.paged import HOSTILE, data_of, difference, evaluated, tensors, tried
from weightsurgery.report.matrices import unpacked
from weightsurgery.report.outputs import sections_of
from weightsurgery.report.page import page_text
from weightsurgery.report.sections import difference_sections, record_section
from weightsurgery.report.visible import visible

ROWS = tensors(4, 3, hostile=True)
SPECTRA = {row["name"]: [4.0, 2.0, 1.0, 0.5] for row in ROWS if "expert" in row["name"]}
LONELY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    with playwright.sync_playwright() as started:
        try:
            launched = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium to run: {error.message.splitlines()[0]}")
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page with every type of section, and nobody's words trusted."""
    from dataclasses import asdict

    from tests.report.test_sweep import FOUND
    from weightsurgery.report.sweep import sweep_sections

    path = tmp_path_factory.mktemp("page") / "page.html"
    sections = [
        *difference_sections(difference(ROWS), SPECTRA),
        *sections_of(evaluated()),
        *sections_of(tried()),
        *sweep_sections({**asdict(FOUND), "command": ["ws", HOSTILE]}),
        record_section(["ws", "diff", HOSTILE], {"kind": HOSTILE}),
    ]
    path.write_text(page_text(f"Page of {HOSTILE}", sections))
    return path


@pytest.fixture(params=["light", "dark", "phone"])
def page(browser, file, request):
    """The page, open; at the end it has neither complained nor asked for anything."""
    size = {"width": 380, "height": 800} if request.param == "phone" else None
    scheme = "dark" if request.param == "dark" else "light"
    context = browser.new_context(viewport=size, color_scheme=scheme)
    opened, complaints, asked = context.new_page(), [], []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(file.as_uri())
    opened.wait_for_selector("[role=button][aria-label]")
    yield opened
    assert complaints == []
    assert asked == [file.as_uri()]
    context.close()


def texts(found) -> list[str]:
    return [each.strip() for each in found.all_inner_texts()]


def test_every_section_is_drawn_and_fits(page, file):
    sections = data_of(file)["sections"]
    assert page.locator("main > section").count() == len(sections)
    assert texts(page.locator("main h2")) == [each["title"] for each in sections]
    drawn = {"map", "scores", "points", "lines", "grid"}
    pictures = page.locator("section > figure").count()
    assert pictures == sum(each["type"] in drawn for each in sections) == 3
    assert page.locator("figure svg[aria-label]").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("img").count() == page.locator("main script").count() == 0
    assert visible(HOSTILE) in page.locator("h1").inner_text()


def test_a_cell_opens_by_the_keyboard_and_shows_its_numbers(page, file):
    first = page.locator("[role=button][tabindex='0']")
    assert first.count() == 1
    cell = page.locator("[role=button][aria-label^='self_attn.q_proj, layer 1;']")
    cell.focus()
    drawn = page.locator("svg[aria-label='Change by layer and module']")
    assert drawn.get_by_text("self_attn.q_proj, layer 1").count() == 1  # the tip
    page.keyboard.press("Enter")
    page.wait_for_selector(".detail table")
    (row,) = [each for each in ROWS if each["name"] == LONELY]
    cells = texts(page.locator(".detail tbody tr").first.locator("td"))
    assert cells[:2] == [LONELY, "×".join(map(str, row["shape"]))]
    for told, key in zip(cells[2:5], ("relative", "norm", "cosine"), strict=True):
        share, digits = key == "relative", 6 if key == "cosine" else 4
        number = float(told.removesuffix(" %")) / (100 if share else 1)
        assert number == pytest.approx(row[key], rel=0.6 * 10 ** (1 - digits))
    assert "not known" in page.locator(".detail").inner_text()
    before = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("ArrowRight")
    after = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert before != after
    assert page.evaluate("document.activeElement.getAttribute('role')") == "button"


def test_experts_open_as_a_list_and_each_shows_its_singular_values(page):
    page.locator("[role=button][aria-label^='mlp.experts.*.up_proj, layer 2;']").click()
    page.wait_for_selector(".detail tbody tr")
    names = texts(page.locator(".detail tbody tr td:first-child"))
    assert names == [f"model.layers.2.mlp.experts.{n}.up_proj.weight" for n in range(3)]
    assert page.locator(".detail figure").count() == 0
    page.locator(".detail td button").nth(1).click()
    page.wait_for_selector(".detail figure svg circle")
    assert page.locator(".detail figure svg circle").count() == 4
    assert page.locator(".detail h3").last.inner_text() == names[1]


def test_all_tensors_sort_and_filter(page, file):
    page.get_by_text(f"Every tensor ({len(ROWS)})").click()
    table = page.locator("details[open] table").first
    table.wait_for()
    head = table.locator("th", has_text="norm")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    at = texts(table.locator("th")).index(head.inner_text().strip())
    told = [float(each) for each in texts(table.locator(f"tbody td:nth-child({at + 1})"))]
    norms = sorted(row["norm"] for row in ROWS)
    assert told == pytest.approx(norms[: len(told)], rel=1e-3)
    assert len(told) == len(ROWS)
    page.locator("details[open] input[type=search]").first.fill("layers.3 EXPERTS.2")
    assert sorted(texts(table.locator("tbody td:first-child"))) == [
        f"model.layers.3.mlp.experts.2.{each}_proj.weight" for each in ("down", "gate", "up")
    ]
    count = page.locator("details[open] [role=status]").first
    assert count.inner_text() == f"3 of {len(ROWS)} rows"


def test_completions_stand_side_by_side_with_what_changed_marked(page):
    rows = page.locator(".texts tbody tr")
    assert texts(rows.first.locator("del")) == ["Paris"]
    assert texts(rows.first.locator("ins")) == ["Lyon"]
    assert rows.nth(1).locator("del, ins").count() == 0
    page.get_by_text("Only those that changed").click()
    assert [each.is_visible() for each in rows.all()] == [True, False, True, True]


def test_the_scores_and_the_frontier_are_the_documents(page, file):
    scores = page.locator("svg[aria-label='Scores before and after']")
    assert scores.locator("circle").count() == 4
    points = page.locator("svg[aria-label='Forgetting against the worst keep drift']")
    told = next(each for each in data_of(file)["sections"] if each["type"] == "points")
    assert points.get_by_text("λ = 4").count() == 1
    assert len(told["points"]) == 3


def test_the_figures_of_the_whole_file_are_its_json(page, file):
    (packed,) = [each["packed"] for each in data_of(file)["sections"] if each["type"] == "map"]
    columns = unpacked(packed)
    labels = page.locator("[role=button][aria-label]").evaluate_all(
        "all => all.map(each => each.getAttribute('aria-label'))"
    )
    assert len(labels) == len({*labels}) == 2 + 1 + 4 * (4 + 3)
    assert visible(HOSTILE) in columns["name"]
    assert sum("3 tensors" in each for each in labels) == 4 * 3
