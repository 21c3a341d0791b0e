// What every report page shares: its data, colours that follow the scheme, tables that sort and filter.

const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const isNarrow = () => innerWidth < 700; // a phone: less of everything at first
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const seriesColor = (number) => css(`--c${number % 10}`);
const DASHES = ["solid", "dash", "dot", "dashdot"];
const seriesDash = (number) => DASHES[Math.floor(number / 10) % DASHES.length];

/** Make an element. Children are elements or text; text stays text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const swatch = (number) => make("span", { class: "swatch", style: { "--swatch": `var(--c${number % 10})` } });
const escaped = (text) => {
  const span = document.createElement("span");
  span.textContent = text;
  return span.innerHTML.replaceAll('"', "&quot;");
};

/** Draw a chart, and again whenever the scheme or the paper changes. `build` returns {traces, layout}. */
function chart(element, build) {
  const draw = () => {
    const { traces, layout } = build();
    element.style.height = `${layout.height}px`;
    const axis = { gridcolor: css("--grid"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
    const themed = {
      paper_bgcolor: css("--panel"), plot_bgcolor: css("--panel"), margin: { t: 16, r: 16, b: 48, l: 56 },
      font: { color: css("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
      hoverlabel: { bgcolor: css("--soft"), bordercolor: css("--line"), font: { color: css("--ink") } },
      ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    };
    return Plotly.react(element, traces, themed, {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
  };
  dark.addEventListener("change", draw);
  matchMedia("print").addEventListener("change", draw);
  return draw;
}

// Numbers by value, whatever the cell says around them; cells without one last, both ways.
const byNumber = (sign) => (a, b) => (a === null) - (b === null) || sign * (a - b);
DataTable.type("figure", {
  detect: () => false,
  order: { pre: (cell) => (cell === "" || cell === null ? null : Number(cell)), asc: byNumber(1), desc: byNumber(-1) },
});

/** Let a table be sorted and filtered. Headings say how: data-type (DataTables reads it), data-first ("desc"), data-filter (a name). */
function sortable(table, options = {}) {
  const headings = [...table.querySelectorAll("thead th")];
  const columnDefs = headings.map((heading, targets) => (
    { targets, orderSequence: heading.dataset.first === "desc" ? ["desc", "asc"] : ["asc", "desc"] }
  ));
  const rows = options.data?.length ?? table.tBodies[0].rows.length;
  const [most, pageLength] = isNarrow() ? [15, 10] : [60, 50];
  const api = new DataTable(table, {
    autoWidth: false, paging: rows > most, pageLength, info: rows > most, order: [],
    layout: { topStart: null, topEnd: rows > 1 ? "search" : null, bottomStart: "info", bottomEnd: "paging" },
    language: { search: "Search", info: "_START_ to _END_ of _TOTAL_", infoFiltered: "(of _MAX_)", zeroRecords: "No row matches." },
    ...options, columnDefs: [...(options.columnDefs ?? []), ...columnDefs],
  });
  const filters = make("div", { class: "filters" });
  headings.forEach((heading, column) => {
    if (!heading.dataset.filter) return;
    const values = [...new Set(api.column(column).nodes().toArray().map((cell) => cell.dataset.search ?? cell.textContent.trim()))];
    if (values.length < 2) return;
    const chosen = make("select", {}, make("option", { value: "" }, "all"), ...values.sort((a, b) => a.localeCompare(b, "en", { numeric: true })).map((value) => make("option", { value }, value)));
    chosen.addEventListener("change", () => api.column(column).search(chosen.value, { exact: chosen.value !== "" }).draw());
    filters.append(make("label", {}, heading.dataset.filter, chosen));
  });
  // On paper all rows, unless that would be hundreds of sheets.
  if (rows <= 500) addEventListener("beforeprint", () => api.page.len(-1).draw());
  if (filters.childElementCount) table.closest(".dt-container").querySelector(".dt-layout-row").prepend(filters);
  return api;
}
