// The other sections, and the page that is put together of all of them.
"use strict";
(() => {
  const { page, el, format, picture, table, map, redraws, print } = window.weightsurgery;
  const paired = ["before", "after"];
  const base = (width, look, more) => ({
    width: Math.min(width, 820), style: { color: look.ink }, marginLeft: 52, ...more,
  });
  const drawn = (section, make) => {
    const { figure, save } = picture(section.title, make);
    return [figure, el("div", { class: "bar" }, save), section.note && el("p", { class: "note" }, section.note)];
  };
  const shapes = ["circle", "square", "triangle", "diamond", "star", "wye", "cross"];
  const kinds = (names, look) => ({
    color: { domain: names, range: names.map((_, n) => look.series[n % look.series.length]) },
    symbol: { domain: names, range: names.map((_, n) => shapes[n % shapes.length]), legend: names.length > 1 },
  });
  // Of the labels of points those that cover no other, the marked ones first.
  const apart = (points, wide) => {
    const [x, y] = ["x", "y"].map((key) => d3.scaleLinear(d3.extent(points, (each) => each[key]), [0, key === "x" ? wide : 350]));
    const labelled = [];
    for (const each of d3.sort(points, (each) => each.mark === "frontier"))
      if (each.label && labelled.every((other) => Math.abs(x(each.x) - x(other.x)) > 58 || Math.abs(y(each.y) - y(other.y)) > 14)) labelled.push(each);
    return labelled;
  };

  function lines(section) {
    const names = section.series.map((each) => each.name);
    const points = section.series.flatMap(({ name, points }) => points.map(([x, y]) => ({ x, y, name })));
    const rules = Object.entries(section.rules).filter(([, value]) => value != null);
    const at = d3.sort(new Set(points.map((each) => each.x)));
    const known = section.series.map((each) => new Map(each.points));
    const listed = table([section.x, ...names].map((label) => ({ label })), at.map((x) => [x, ...known.map((each) => each.get(x))]));
    return [...drawn(section, (width, look) => Plot.plot(base(width, look, {
      height: 280,
      x: { label: section.x, tickFormat: "d", ticks: d3.ticks(...d3.extent(points, (p) => p.x), 10).filter(Number.isInteger) },
      y: { label: section.y, grid: true, zero: true, ...(section.top ? { domain: [0, section.top] } : { nice: true }) },
      ...kinds(names, look),
      marks: [
        Plot.ruleY(rules, { y: "1", stroke: look.soft, strokeDasharray: "2 4" }),
        Plot.text(rules, { y: "1", text: "0", frameAnchor: "right", textAnchor: "end", dy: -7, fill: look.soft }),
        Plot.line(points, { x: "x", y: "y", stroke: "name" }),
        Plot.dot(points, { x: "x", y: "y", stroke: "name", symbol: "name", r: 3, tip: { fill: "var(--paper)" } }),
      ],
    }))), el("details", {}, el("summary", {}, "The same as a table"), listed)];
  }

  function grid(section) {
    const cells = d3.cross(section.names, section.names).map(([a, b]) => ({ a, b,
      value: section.values[section.names.indexOf(a)][section.names.indexOf(b)] }));
    const short = (text) => (text.length > 18 ? `…${text.slice(-17)}` : text);
    const room = Math.min(18, d3.max(section.names, (each) => each.length)) * 7 + 14;
    return drawn(section, (width, look) => Plot.plot(base(width, look, {
      width: Math.min(width, room + 20 + 84 * section.names.length), height: 60 + 44 * section.names.length,
      marginLeft: room, marginBottom: 34,
      x: { label: null, domain: section.names, tickSize: 0, tickFormat: short },
      y: { label: null, domain: section.names, tickSize: 0, tickFormat: short },
      color: { type: "linear", domain: [0, 1], range: [look.low, look.high], interpolate: "lab" },
      marks: [
        Plot.cell(cells, { x: "b", y: "a", fill: "value", inset: 1 }),
        Plot.text(cells, { x: "b", y: "a", text: (each) => (each.value == null ? "–" : each.value.toFixed(3)),
          fill: (each) => (each.value > 0.55) === (look.ink === "#1b1f24") ? "#ffffff" : "#10151b", fontSize: 12 }),
      ],
    })));
  }

  // Every share before and after with its interval, sets one below the other.
  function scores(section) {
    const rows = section.rows.filter((each) => each.share);
    if (!rows.length) return [];
    const sets = [...new Set(rows.map((each) => each.set))];
    const one = new Set(rows.map((each) => each.metric)).size === 1 && sets.length > 1;
    const points = rows.flatMap((row) => paired.filter((when) => row[when]).map((when) => ({
      set: one ? "" : row.set, name: one ? row.set : row.metric, when, x: 100 * row[when][0],
      low: row[when][1] == null ? null : 100 * row[when][1], high: row[when][2] == null ? null : 100 * row[when][2],
    })));
    const both = new Set(points.map((each) => each.when)).size > 1;
    const names = [...new Set(points.map((each) => each.name))];
    const groups = one ? [""] : sets;
    const at = (when, marks) => marks(points.filter((each) => each.when === when), both ? (when === "before" ? -4 : 4) : 0, when);
    return drawn(section, (width, look) => {
      const colour = { before: look.series[1], after: look.series[0] };
      return Plot.plot(base(width, look, {
        height: groups.length * (names.length * (both ? 24 : 20) + (one ? 0 : 30)) + (one ? 46 : 50), marginTop: one ? 10 : 34, marginRight: 24,
        marginLeft: Math.min(190, d3.max(names, (each) => each.length) * 6.6 + 16),
        x: { domain: [0, 100], label: "%", grid: true },
        y: { type: "point", domain: names, label: null, padding: 0.6 },
        fy: { domain: groups, axis: null, padding: 0.25 },
        color: { domain: both ? paired : ["after"], range: both ? [colour.before, colour.after] : [colour.after], legend: both },
        marks: [
          Plot.text(groups, { fy: (each) => each, text: (each) => each, frameAnchor: "top-left", dy: -6, lineAnchor: "bottom", fontWeight: "bold" }),
          ...paired.flatMap((when) => at(when, (data, dy) => [
            Plot.ruleY(data.filter((each) => each.low != null), { fy: "set", y: "name", x1: "low", x2: "high", stroke: "when", strokeWidth: 2, dy }),
            Plot.dot(data, { fy: "set", y: "name", x: "x", stroke: "when", fill: when === "after" ? "when" : look.faint, r: 4, dy,
              channels: { set: { value: "set", label: "" }, low: "low", high: "high" }, tip: { fill: "var(--paper)" } }),
          ])),
        ],
      }));
    });
  }

  function points(section) {
    const names = [...new Set(section.points.map((each) => each.series))];
    const marked = section.points.filter((each) => each.mark === "chosen" || each.mark === "nearest");
    return drawn(section, (width, look) => {
      return Plot.plot(base(width, look, {
        height: 400, marginRight: 24, marginTop: 24,
        x: { label: section.x, grid: true, nice: true, zero: true, ...(section.wide ? { type: "symlog", ticks: [0, 1, 2, 5, 10, 20, 50, 100] } : {}) },
        y: { label: section.y, grid: true, nice: true },
        ...kinds(names, look),
        marks: [
          section.limit && Plot.ruleX([section.limit.x], { stroke: look.soft, strokeDasharray: "2 4" }),
          section.limit && Plot.text([section.limit.label], { x: () => section.limit.x, frameAnchor: "bottom", rotate: -90, textAnchor: "start", dx: -7, dy: -6, fill: look.soft }),
          section.bars && Plot.link(section.bars, { x1: "0", y1: "1", x2: "2", y2: "3", stroke: look.soft, strokeOpacity: 0.6 }),
          section.joined && Plot.line(section.points, { x: "x", y: "y", z: "series", stroke: "series", strokeOpacity: 0.5 }),
          section.frontier && Plot.line(section.frontier, { x: "0", y: "1", stroke: look.ink, strokeDasharray: "5 3" }),
          Plot.dot(section.points.filter((each) => !each.hollow), { x: "x", y: "y", stroke: "series", fill: "series", symbol: "series", r: 4 }),
          Plot.dot(section.points.filter((each) => each.hollow), { x: "x", y: "y", stroke: "series", fill: "var(--paper)", symbol: "series", r: 4 }),
          Plot.dot(marked, { x: "x", y: "y", r: 9, stroke: look.ink, strokeWidth: 2 }),
          Plot.text(apart(section.points.filter((each) => section.named || each.mark), Math.min(width, 820) - 80), { x: "x", y: "y", text: "label", dx: 9, dy: -9, textAnchor: "start", stroke: "var(--paper)", strokeWidth: 3, fill: look.ink }),
          Plot.tip(section.points, Plot.pointer({ x: "x", y: "y", fill: "var(--paper)", fontSize: 12,
            title: (each) => [each.label, each.series, each.mark, `${section.x}: ${format(each.x)}`, `${section.y}: ${format(each.y)}`].filter(Boolean).join("\n") })),
        ],
      }));
    });
  }

  // Completions side by side; the words that only one of them has are marked.
  function texts(section) {
    const truth = section.rows.some((each) => each.truth);
    const names = ["prompt", ...(truth ? ["in the data"] : []), ...section.names];
    const side = (parts, last) => parts.map(([text, changed]) =>
      changed && section.names.length === 2 ? el(last ? "ins" : "del", {}, text) : text);
    const rows = section.rows.map((each) => el("tr", {},
      ...[[each.prompt], ...(truth ? [[each.truth]] : []), ...each.sides.map((parts, n) => side(parts, n === 1))]
        .map((cell, n) => el("td", { "data-name": names[n] }, ...cell))));
    const body = el("tbody", {}, ...rows);
    const only = el("input", { type: "checkbox", on: { change: () =>
      rows.forEach((row, n) => { row.hidden = only.checked && !section.rows[n].changed; }) } });
    const filterable = section.names.length === 2 && rows.length > 3;
    return [
      section.note && el("p", { class: "note" }, section.note),
      filterable ? el("label", { class: "bar" }, only, "Only those that changed") : null,
      el("table", { class: "texts" }, el("thead", {}, el("tr", {}, ...names.map((each) => el("th", { scope: "col" }, each)))), body),
    ];
  }

  function listed(section) {
    const columns = section.columns.map((label, n) => ({ label, left: section.left.includes(n) }));
    const content = [table(columns, section.rows), section.note && el("p", { class: "note" }, section.note)];
    return section.closed ? [el("details", {}, el("summary", {}, `${section.rows.length} rows`), ...content.filter(Boolean))] : content;
  }

  function record(section) {
    const line = el("pre", {}, section.command);
    const copy = el("button", { type: "button", on: { click: async () => {
      try { await navigator.clipboard.writeText(section.command); copy.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(line); }
    } } }, "Copy");
    return [
      section.command && line, section.command && el("div", { class: "bar" }, copy),
      section.record && el("details", {}, el("summary", {}, "The whole record"), el("pre", {}, section.record)),
    ];
  }

  const draw = { map, lines, grid, scores, points, texts, table: listed, record };
  document.querySelector("h1").textContent = page.title;
  const rest = document.querySelector("main");
  const names = page.sections.map((section, n) => {
    rest.append(el("section", { id: `s${n}`, "aria-labelledby": `h${n}` },
      el("h2", { id: `h${n}` }, section.title), ...draw[section.type](section).filter(Boolean)));
    return el("a", { href: `#s${n}` }, section.title);
  });
  if (names.length > 2) document.querySelector("header").append(el("nav", { "aria-label": "Sections" }, ...names));

  const again = () => redraws.forEach((render) => render());
  let width = innerWidth, waiting;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(again, 100);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addEventListener("beforeprint", () => { print(true); again(); });
  addEventListener("afterprint", () => { print(false); again(); });
  document.documentElement.dataset.ready = "true";
})();
