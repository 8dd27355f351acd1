// Draws the sections of the page from its JSON. What is shown may be a stranger's: it becomes text
// nodes, attributes and marks of Plot, never markup.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const redraws = new Set();
  let printing = false;

  const looks = () =>
    dark.matches && !printing
      ? { low: "#1f2a36", high: "#a8d8ff", ink: "#e4e8ec", soft: "#9aa5b1", faint: "#232a32",
          series: ["#56b4e9", "#e69f00", "#2bd1a0", "#e59ac6", "#f0e442", "#ff8a5c", "#b8c0c8"] }
      : { low: "#eaf1f8", high: "#08306b", ink: "#1b1f24", soft: "#59636e", faint: "#e9edf1",
          series: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#3a9bd0", "#777777"] };

  function el(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "on") for (const [event, does] of Object.entries(value)) element.addEventListener(event, does);
      else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((each) => each != null));
    return element;
  }

  const format = (value, share, digits = 4) =>
    value == null ? "–"
    : typeof value !== "number" ? String(value)
    : share ? `${+(100 * value).toPrecision(digits)} %`
    : String(+value.toPrecision(digits));

  // A picture that is drawn again for another width, theme or printer.
  function picture(title, make, group = false) {
    const holder = el("div", { class: "scroll" });
    const render = () => {
      const drawn = make(Math.max(280, holder.clientWidth || 700), looks());
      const svg = main(drawn);
      svg.setAttribute("role", group ? "group" : "img");
      svg.setAttribute("aria-label", title);
      holder.replaceChildren(drawn);
      if (group) group(svg);
    };
    redraws.add(render);
    requestAnimationFrame(render);
    const save = el("button", { type: "button", on: { click: () => keep(holder, title) } }, "Save as SVG");
    return { figure: el("figure", {}, holder), save, render };
  }

  const main = (drawn) =>
    drawn.tagName === "svg" ? drawn : [...drawn.querySelectorAll("svg")].pop();

  function keep(holder, title) {
    const copy = main(holder.firstChild).cloneNode(true);
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("style", "color: #1b1f24; background: white; font-family: sans-serif");
    const url = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
    el("a", { href: url, download: `${title.replace(/[^\w]+/g, "-")}.svg` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  // A table that sorts, filters, and shows a hundred rows at a time.
  function table(columns, rows, { pick, caption } = {}) {
    const number = (cell) => {
      if (typeof cell === "number") return cell;
      const match = /^[+−-]?[\d,.]+(e[+-]?\d+)?/.exec(cell ?? "");
      return match ? parseFloat(match[0].replace("−", "-").replaceAll(",", "")) : NaN;
    };
    const order = (a, b) => {
      const [x, y] = [number(a), number(b)];
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
      return isNaN(x) ? String(a ?? "").localeCompare(String(b ?? "")) : x - y;
    };
    const body = el("tbody");
    const count = el("span", { class: "count", role: "status" });
    const more = el("button", { type: "button", on: { click: () => { limit += 100; fill(); } } }, "Show 100 more");
    let shown = rows, limit = 100, sorted = null, searched = null;
    const cells = (row) => columns.map(({ left, share, digits }, n) => {
      const text = format(row[n], share, digits);
      const open = pick && n === 0 && el("button", { type: "button", on: { click: () => pick(row) } }, text);
      return el(n === 0 && columns[0].head ? "th" : "td", { class: left && "left" }, open || text);
    });
    function fill() {
      const ordered = sorted == null ? shown
        : [...shown].sort((a, b) => sorted.sign * order(a[sorted.n], b[sorted.n]));
      body.replaceChildren(...ordered.slice(0, limit).map((row) => el("tr", {}, ...cells(row))));
      count.textContent = shown.length === rows.length ? `${rows.length} rows` : `${shown.length} of ${rows.length} rows`;
      more.hidden = shown.length <= limit;
    }
    const heads = columns.map(({ label, left }, n) => {
      const click = () => {
        sorted = { n, sign: sorted?.n === n ? -sorted.sign : 1 };
        heads.forEach((each, m) => each.setAttribute("aria-sort",
          m !== n ? "none" : sorted.sign > 0 ? "ascending" : "descending"));
        fill();
      };
      return el("th", { scope: "col", class: left && "left", "aria-sort": "none" },
        label && rows.length > 2 ? el("button", { type: "button", on: { click } }, label) : label);
    });
    const filter = el("input", { type: "search", placeholder: "Filter rows", "aria-label": "Filter rows", on: { input: () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      searched ??= rows.map((row) => columns.map(({ share, digits }, n) => format(row[n], share, digits)).join(" ").toLowerCase());
      shown = rows.filter((_, n) => words.every((word) => searched[n].includes(word)));
      fill();
    } } });
    fill();
    return el("div", {},
      rows.length > 12 && el("div", { class: "bar" }, filter, count) || null,
      el("div", { class: "scroll" }, el("table", {},
        caption && el("caption", { class: "note" }, caption) || null,
        columns.some((each) => each.label) && el("thead", {}, el("tr", {}, ...heads)) || null, body)),
      more);
  }

  // The map of layers and modules, its cells, and each tensor's numbers and singular values.
  function map(section) {
    const cells = section.cells.map(([layer, module, count, ...values]) => ({ layer: layer < 0 ? "–" : layer, module, count, values }));
    cells.reduce((start, cell) => ((cell.start = start), start + cell.count), 0);
    const layers = section.layers.map((each) => (each < 0 ? "–" : each));
    const grid = new Map(cells.map((cell, n) => [`${cell.layer} ${cell.module}`, n]));
    let at = 0, chosen = null, focus = 0;
    const words = (cell) => [
      `${cell.module}, ${cell.layer === "–" ? "outside the layers" : `layer ${cell.layer}`}`,
      ...(cell.count > 1 ? [`${cell.count} tensors`] : []),
      ...section.measures.map(({ label, share, digits }, n) => [label, cell.values[n], share, digits])
        .filter(([, value]) => value != null).map(([label, ...value]) => `${label}: ${format(...value)}`),
    ];
    const coloured = ({ values }) =>
      values[at] == null ? null : section.measures[at].share ? 100 * values[at] : values[at];
    let columns = null;
    const unpack = () => (columns ??= (async () => {
      const bytes = Uint8Array.from(atob(section.packed), (each) => each.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      return JSON.parse(await new Response(stream).text());
    })());
    const keys = (data) => [
      { key: "name", label: "tensor", left: true },
      ...(data.shape ? [{ key: "shape", label: "shape" }] : []),
      ...section.measures,
    ];
    const rows = (data, start, stop) =>
      d3.range(start, stop).map((n) => [...keys(data).map(({ key }) => data[key][n]), n]);

    const detail = el("div", { class: "detail", "aria-live": "polite" });
    async function open(n) {
      chosen = n;
      mark();
      const data = await unpack(), cell = cells[n];
      const spectrum = el("div");
      const show = (row) => spectrum.replaceChildren(...values(data, row[row.length - 1], keys(data)));
      const listed = rows(data, cell.start, cell.start + cell.count);
      detail.replaceChildren(el("h3", {}, words(cell)[0]), table(keys(data), listed, { pick: show }), spectrum);
      if (cell.count === 1) show(listed[0]);
    }

    function values(data, n, columns_) {
      const singular = data.values?.[n];
      const head = el("h3", {}, data.name[n]);
      if (!singular) return [head, el("p", { class: "note" }, `Singular values are not known: ${section.unknown ?? "the change was not saved in factors"}.`)];
      const pairs = d3.zip(singular[0], singular[1]);
      const rank = columns_.some(({ key }) => key === "rank") ? data.rank[n] : null;
      const long = d3.max(singular[0]) > 40;
      const { figure, save } = picture(`Singular values of ${data.name[n]}`, (width, look) => Plot.plot({
        width: Math.min(width, 640), height: 240, marginLeft: 56, style: { color: look.ink },
        x: { type: long ? "log" : "linear", label: "number", grid: true, tickFormat: "d", ticks: 5 },
        y: { label: "singular value", grid: true, zero: true, nice: true },
        marks: [
          rank ? Plot.ruleX([rank], { stroke: look.series[1], strokeDasharray: "4 3" }) : null,
          rank ? Plot.text([rank], { x: (d) => d, frameAnchor: "top", text: (d) => `rank ${d}`, dx: -4, textAnchor: "end", fill: look.series[1] }) : null,
          Plot.line(pairs, { x: "0", y: "1", stroke: look.series[0] }),
          Plot.dot(pairs, { x: "0", y: "1", fill: look.series[0], r: 2.5, tip: true, channels: { number: "0", value: "1" } }),
        ],
      }));
      return [head, figure, el("div", { class: "bar" }, save)];
    }

    let svg = null;
    const rects = () => (svg ? [...svg.querySelectorAll('g[aria-label="cell"]')][0].children : []);
    const mark = () => [...rects()].forEach((rect, n) => {
      rect.setAttribute("aria-pressed", n === chosen);
      rect.setAttribute("tabindex", n === focus ? 0 : -1);
    });
    const move = (n, dx, dy) => {
      let [x, y] = [layers.indexOf(cells[n].layer), section.modules.indexOf(cells[n].module)];
      while (layers[(x += dx)] !== undefined && section.modules[(y += dy)] !== undefined) {
        const next = grid.get(`${layers[x]} ${section.modules[y]}`);
        if (next !== undefined) return next;
      }
      return n;
    };
    function wire(root) {
      svg = root;
      const across = svg.dataset.across === "layers";
      const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
      [...rects()].forEach((rect, n) => {
        rect.setAttribute("role", "button");
        rect.setAttribute("aria-label", words(cells[n]).join("; "));
        rect.addEventListener("focus", () => point(rect));
        rect.addEventListener("keydown", (event) => {
          if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(n); }
          const step = steps[event.key];
          if (!step) return;
          event.preventDefault();
          focus = across ? move(n, ...step) : move(n, step[1], step[0]);
          mark();
          rects()[focus].focus();
        });
      });
      // The tip that follows the pointer may lie over the cell by the time the button is up.
      svg.addEventListener("click", (event) => {
        const under = [event.target, ...document.elementsFromPoint(event.clientX, event.clientY)];
        const n = [...rects()].findIndex((rect) => under.includes(rect));
        if (n >= 0) open((focus = n));
      });
      mark();
    }
    const point = (rect) => { // the tip follows the keyboard too
      const box = rect.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, pointerType: "mouse",
        clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 }));
    };
    const short = (text) => (text.length > 26 ? `…${text.slice(-25)}` : text);
    const { figure, save, render } = picture(section.title, (width, look) => {
      const across = width > 560 || layers.length < section.modules.length;
      const names = Math.min(26, d3.max(section.modules, (each) => each.length)) * 6.4 + 14;
      const margin = across ? names : 34;
      const size = across ? layers.length : section.modules.length;
      const band = Math.max(across ? 13 : 12, Math.min(34, (width - margin - (across ? 20 : 60)) / size));
      const one = { type: "band", domain: layers, label: "layer", tickSize: 0,
        ticks: layers.filter((_, n) => n % Math.ceil((across ? 22 : 13) / (across ? band : 16)) === 0) };
      const two = { type: "band", domain: section.modules, label: null, tickSize: 0, tickFormat: short,
        ...(across ? {} : { axis: "top", tickRotate: -60 }) };
      const on = across ? { x: "layer", y: "module" } : { x: "module", y: "layer" };
      const drawn = Plot.plot({
        width: margin + size * band + (across ? 20 : 60), marginLeft: margin, marginRight: across ? 20 : 60,
        height: across ? section.modules.length * 20 + 60 : layers.length * 16 + names + 40,
        marginTop: across ? 10 : names, style: { color: look.ink },
        x: across ? { ...one, tickRotate: 0 } : two, y: across ? two : { ...one, labelAnchor: "top" },
        color: { type: "linear", range: [look.low, look.high], interpolate: "lab", legend: true,
          label: section.measures[at].label + (section.measures[at].share ? ", %" : ""),
          width: Math.min(280, width), marginLeft: 16, marginRight: 16, ticks: 4, domain: extent(cells.map(coloured)) },
        marks: [
          Plot.cell(cells, { ...on, fill: look.faint }),
          Plot.cell(cells, { ...on, fill: coloured, inset: 1, pointerEvents: "none" }),
          Plot.tip(cells, Plot.pointer({ ...on, title: (cell) => words(cell).join("\n"), fontSize: 12, fill: "var(--paper)" })),
        ],
      });
      main(drawn).dataset.across = across ? "layers" : "modules";
      return drawn;
    }, wire);
    const select = el("select", { on: { change: () => { at = +select.value; render(); } } },
      ...section.measures.map(({ label }, n) => el("option", { value: n }, label)));
    const every = el("details", { on: { toggle: async () => {
      if (!every.open || every.childElementCount > 1) return;
      const data = await unpack(), spectrum = el("div");
      const show = (row) => spectrum.replaceChildren(...values(data, row[row.length - 1], keys(data)));
      every.append(table(keys(data), rows(data, 0, section.count), { pick: show }), spectrum);
    } } }, el("summary", {}, `Every tensor (${section.count})`));
    return [
      el("div", { class: "bar" }, el("label", {}, "Coloured by ", select), save),
      figure,
      el("p", { class: "note" }, "Click a cell, or go to it with the arrow keys and press Enter, for its tensors. " + section.note),
      detail, every,
    ];
  }

  const extent = (values) => {
    const [low, high] = d3.extent(values.filter((each) => each != null));
    return low === high ? [Math.min(0, low), high || 1] : [low > 0 && low < 0.6 * high ? 0 : low, high];
  };

  window.weightsurgery = { page, el, format, picture, table, map, redraws, print: (on) => { printing = on; } };
})();
