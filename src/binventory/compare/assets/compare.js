// The comparison's own part. `data` holds figures that were computed before; nothing is computed here but colours.

const { labels, titles, colors } = data;
const options = (select, entries) => select.append(...entries.map(([value, text]) => make("option", { value }, text)));
const find = (id) => document.getElementById(id);
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
const pText = (p) => (p < 0.0001 ? "< 0.0001" : p.toFixed(4));
const named = (run) => make("span", { class: "run" }, swatch(colors[run]), make("span", {}, labels[run]));

for (const id of ["runs-table", "groups-table", "published-table"]) if (find(id)) sortable(find(id));

// ---- pairs -----------------------------------------------------------------------------------------------------------
if (find("pairs-table")) {
  const run = (value, type) =>
    type === "display"
      ? `<span class="run"><span class="swatch" style="--swatch: var(--c${colors[value] % 10})"></span><span>${escaped(labels[value])}</span></span>`
      : labels[value];
  const difference = (low, high) => (value, type, row) =>
    type === "display" ? `${signed(value)} [${signed(row[low])}, ${signed(row[high])}]` : value;
  const p = (value, type) => (type === "display" ? pText(value) : value);
  const winner = (value, type) => {
    const text = value === null ? "not told apart" : labels[value];
    return type === "display" ? escaped(text) : text;
  };
  const number = { className: "num", type: "figure" }, perPage = isNarrow() ? 8 : 20;
  const table = sortable(find("pairs-table"), {
    data: data.pairs, paging: data.pairs.length > perPage, pageLength: perPage, info: data.pairs.length > perPage, deferRender: true,
    columns: [
      { title: "first", render: run, className: "text first" }, { title: "second", render: run, className: "text" },
      { title: "only first right", ...number }, { title: "only second right", ...number },
      { title: "accuracy [95%]", render: difference(5, 6), ...number }, { title: "", visible: false }, { title: "", visible: false },
      { title: "McNemar p", render: p, ...number }, { title: "better accuracy", render: winner, className: "short" },
      { title: "RMSE [95%]", render: difference(10, 11), ...number }, { title: "", visible: false }, { title: "", visible: false },
      { title: "bootstrap p", render: p, ...number }, { title: "better RMSE", render: winner, className: "short" },
    ],
  });
  const chosen = find("pair-run");
  const paired = [...new Set(data.pairs.flatMap((pair) => [pair[0], pair[1]]))].sort((a, b) => a - b);
  options(chosen, [["", "any"], ...paired.map((place) => [place, labels[place]])]);
  chosen.addEventListener("change", () => table.draw());
  table.search.fixed("run", (text, row) => chosen.value === "" || row[0] === Number(chosen.value) || row[1] === Number(chosen.value));
}

// ---- seeds -----------------------------------------------------------------------------------------------------------
if (find("group-chart")) {
  const metric = find("group-metric");
  options(metric, data.groupMetrics.map((name) => [name, name]));
  const draw = chart(find("group-chart"), () => {
    // Beside a phone's chart there is room for the group's number alone.
    const nameOf = (group) => (isNarrow() ? `group ${group.name.split(" ")[0]}` : group.name);
    const names = data.groups.map(nameOf);
    const traces = data.groups.map((group) => ({
      type: "scatter", mode: "markers", name: nameOf(group), showlegend: false,
      x: group.runs.map((run) => data.figures[metric.value][run]), y: group.runs.map(() => nameOf(group)),
      text: group.runs.map((run) => titles[run]), hovertemplate: "%{text}<br>%{x:.4f}<extra></extra>",
      marker: { color: seriesColor(group.color), size: 8, opacity: 0.65 },
    }));
    const known = data.groups.filter((group) => metric.value in group.means);
    traces.push({
      type: "scatter", mode: "markers", name: "mean", showlegend: false, y: known.map(nameOf),
      x: known.map((group) => group.means[metric.value]),
      error_x: { array: known.map((group) => group.stds[metric.value] ?? 0), color: css("--faint"), thickness: 1.5 },
      marker: { color: known.map((group) => seriesColor(group.color)), size: 12, symbol: "diamond", line: { color: css("--ink"), width: 1 } },
      hovertemplate: "mean %{x:.4f}<extra>%{y}</extra>",
    });
    return { traces, layout: {
      height: 110 + 34 * names.length, xaxis: { title: { text: metric.value, font: { size: 13 } } },
      yaxis: { categoryorder: "array", categoryarray: [...names].reverse(), type: "category" }, margin: { t: 10, r: 16, b: 48, l: 90 },
    } };
  });
  metric.addEventListener("change", draw);
  draw();
}

// ---- curves ----------------------------------------------------------------------------------------------------------
if (find("curve-chart")) {
  const metric = find("curve-metric"), log = find("curve-log"), all = find("curve-all");
  options(metric, data.curveMetrics.map((name) => [name, name]));
  const many = data.curves.length > data.maxVisible;
  all.hidden = !many;
  let showsAll = !many;
  const draw = chart(find("curve-chart"), () => {
    const shown = data.curves.filter((curve) => metric.value in curve.values);
    const traces = shown.map((curve, place) => ({
      type: "scatter", mode: curve.epochs.length === 1 ? "markers" : "lines+markers", name: labels[curve.run],
      x: curve.epochs, y: curve.values[metric.value], text: titles[curve.run],
      visible: showsAll || place < data.maxVisible ? true : "legendonly",
      line: { color: seriesColor(colors[curve.run]), dash: seriesDash(colors[curve.run]), width: 2 },
      marker: { color: seriesColor(colors[curve.run]), size: curve.epochs.length > 40 ? 1 : 5 },
      hovertemplate: "%{text}<br>epoch %{x}: %{y:.4f}<extra></extra>",
    }));
    const narrow = isNarrow();
    return { traces, layout: {
      height: narrow ? 480 : 430, showlegend: true, hovermode: "closest",
      xaxis: { title: { text: "epoch", font: { size: 13 } }, tickformat: "d", ...(shown.every((curve) => curve.epochs.length < 12) ? { dtick: 1 } : {}) },
      yaxis: { title: { text: metric.value, font: { size: 13 } }, type: log.checked ? "log" : "linear" },
      legend: narrow ? { orientation: "h", y: -0.25 } : {},
    } };
  });
  metric.addEventListener("change", draw);
  log.addEventListener("change", draw);
  all.addEventListener("click", () => { showsAll = !showsAll; all.textContent = showsAll ? "Show the best only" : "Show all runs"; draw(); });
  draw();
}

// ---- confusion matrices ------------------------------------------------------------------------------------------------
if (find("matrices")) {
  const more = find("more-matrices");
  const matrix = ({ run, counts, matrix: rows }) => {
    const caption = make("figcaption", {}, named(run), make("small", {}, titles[run].slice(labels[run].length)));
    if (!rows.length) return make("figure", { "data-run": run }, caption, make("p", { class: "note" }, `${counts.length} different counts: too many for a matrix`));
    const head = make("tr", {}, make("th", { scope: "col" }, "↓ recorded"), ...counts.map((count) => make("th", { scope: "col" }, String(count))));
    const body = rows.map((row, at) => {
      const total = row.reduce((sum, cell) => sum + cell, 0);
      const cells = row.map((cell, to) => make("td", {
        class: at === to ? "right" : null, style: { "--share": total ? cell / total : 0 },
        title: `recorded ${counts[at]}, counted ${counts[to]}: ${cell} of ${total} photos`,
      }, String(cell)));
      return make("tr", {}, make("th", { scope: "row" }, String(counts[at])), ...cells);
    });
    return make("figure", { "data-run": run }, caption, make("table", { class: "matrix" }, make("thead", {}, head), make("tbody", {}, ...body)));
  };
  let next = 0;
  const show = (number) => {
    find("matrices").append(...data.confusions.slice(next, next + number).map(matrix));
    next = Math.min(next + number, data.confusions.length);
    more.hidden = next === data.confusions.length;
    more.textContent = `Show ${Math.min(12, data.confusions.length - next)} more of ${data.confusions.length}`;
  };
  more.addEventListener("click", () => show(12));
  show(isNarrow() ? 2 : 6);
}

// ---- photos on which runs disagree ---------------------------------------------------------------------------------------
if (find("photos")) {
  const distance = (answer, photo) => Math.abs(answer.predicted - photo.quantity);
  const kind = (off) => (off === 0 ? "right" : off === 1 ? "near" : "far");
  const mark = (answer, photo) => (answer.predicted === photo.quantity ? "✓" : signed(answer.predicted - photo.quantity).replace(".000", ""));
  const card = (photo) => {
    const picture = photo.image
      ? make("img", { src: photo.image, alt: `bin ${photo.id}` })
      : make("div", { class: "missing" }, photo.problem);
    const answers = photo.answers.map((answer) => make("li", { "data-run": answer.run, title: titles[answer.run] },
      make("span", { class: "who" }, named(answer.run)),
      make("span", { class: `answer ${kind(distance(answer, photo))}` },
        `${answer.predicted} ${mark(answer, photo)}${answer.certainty === null ? "" : ` · ${Math.round(100 * answer.certainty)}%`}`)));
    const asked = photo.tally.reduce((sum, [, runs]) => sum + runs, 0);
    const tally = asked > photo.answers.length ? `of all ${asked} runs: ${photo.tally.map(([count, runs]) => `${count} by ${runs}`).join(", ")}` : "";
    return make("article", { class: "card", "data-id": photo.id }, picture, make("div", {},
      make("h3", {}, photo.id), make("p", {}, make("b", {}, `recorded ${photo.quantity}`), ...[photo.set === null ? "" : `test set ${photo.set}`, tally].filter(Boolean).map((text) => `; ${text}`)),
      make("ul", { class: "answers" }, ...answers)));
  };
  const cards = data.photos.map((photo) => [photo, card(photo)]);
  find("photos").append(...cards.map(([, element]) => element));
  const runs = [...new Set(data.photos.flatMap((photo) => photo.answers.map((answer) => answer.run)))].sort((a, b) => a - b);
  const [right, wrong, recorded] = ["right-run", "wrong-run", "recorded"].map(find);
  for (const select of [right, wrong]) options(select, [["", "any run"], ...runs.map((run) => [run, labels[run]])]);
  options(recorded, [["", "any quantity"], ...[...new Set(data.photos.map((photo) => photo.quantity))].sort((a, b) => a - b).map((count) => [count, count])]);
  const said = (photo, select, isRight) => select.value === "" ||
    photo.answers.some((answer) => answer.run === Number(select.value) && (answer.predicted === photo.quantity) === isRight);
  const more = find("more-photos");
  let limit = isNarrow() ? 4 : 12;
  const filter = () => {
    let matching = 0;
    for (const [photo, element] of cards) {
      const matches = said(photo, right, true) && said(photo, wrong, false) && (recorded.value === "" || photo.quantity === Number(recorded.value));
      matching += matches;
      element.hidden = !matches || matching > limit;
    }
    find("photos-shown").textContent = `${matching} of ${cards.length} photos`;
    more.hidden = matching <= limit;
    more.textContent = `Show all ${matching}`;
  };
  more.addEventListener("click", () => { limit = Infinity; filter(); });
  addEventListener("beforeprint", () => { limit = Infinity; filter(); });
  for (const select of [right, wrong, recorded]) select.addEventListener("change", filter);
  filter();
}
