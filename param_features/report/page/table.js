const COLUMNS = [
  { name: "#", value: (_, index) => index, shown: (_, index) => String(index), number: true },
  { name: "label", value: (feature) => feature.label, shown: (feature) => visible(feature.label) },
  { name: "density", value: (feature) => feature.density, shown: (feature) => percent(feature.density), number: true },
  { name: "largest", value: (feature) => Math.abs(feature.largest), shown: (feature) => signed(feature.largest), number: true },
];
if (DATA.sae) {
  const best = (feature) => feature.sae[0].correlation;
  COLUMNS.push({ name: "SAE", value: best, shown: (feature) => `${best(feature).toFixed(2)}${feature.shared ? "" : " ∅"}`, number: true });
}
const state = { column: 0, descending: false, query: "", order: [], chosen: null };

const searched = DATA.features.map((feature, index) => {
  const tokens = ["on", "next", "up", "down"].flatMap((list) => (feature[list] ?? []).map(([token]) => DATA.vocabulary[token]));
  return [`#${index}`, feature.label, ...tokens].join("\n").toLowerCase();
});

function compare(a, b) {
  const [x, y] = [a, b].map((index) => COLUMNS[state.column].value(DATA.features[index], index));
  const sign = typeof x === "string" ? x.localeCompare(y) : x - y;
  return (state.descending ? -sign : sign) || a - b;
}

function fillHead() {
  const head = document.querySelector("#table thead");
  const cells = COLUMNS.map(({ name, number }, index) => {
    const mark = index === state.column ? (state.descending ? " ▼" : " ▲") : "";
    const button = make("button", { type: "button", onclick: () => sortBy(index) }, name + mark);
    const sort = index === state.column ? (state.descending ? "descending" : "ascending") : "none";
    return make("th", { class: number ? "number" : "", "aria-sort": sort }, button);
  });
  head.replaceChildren(make("tr", {}, ...cells));
}

function fillTable() {
  fillHead();
  state.order = DATA.features.map((_, index) => index).filter((index) => searched[index].includes(state.query)).sort(compare);
  const rows = state.order.map((index) => {
    const cells = COLUMNS.map(({ shown, number }) => make("td", { class: number ? "number" : "" }, shown(DATA.features[index], index)));
    return make("tr", { onclick: () => choose(index), "aria-selected": String(index === state.chosen), "data-feature": index }, ...cells);
  });
  document.querySelector("#table tbody").replaceChildren(...rows);
  document.getElementById("count").textContent = `${rows.length} of ${DATA.features.length} features`;
}

function sortBy(column) {
  state.descending = column === state.column ? !state.descending : COLUMNS[column].number && column > 0;
  state.column = column;
  fillTable();
}

function choose(index, isQuiet = false) {
  state.chosen = index;
  for (const row of document.querySelectorAll("#table tbody tr")) {
    const isChosen = Number(row.dataset.feature) === index;
    row.setAttribute("aria-selected", String(isChosen));
    if (isChosen) row.scrollIntoView({ block: "nearest" });
  }
  showFeature(index);
  if (isQuiet) return;
  history.replaceState(null, "", `#feature-${index}`);
  document.getElementById("feature").scrollIntoView({ block: matchMedia("(max-width: 820px)").matches ? "start" : "nearest" });
}

function step(by) {
  if (!state.order.length) return;
  const at = state.order.indexOf(state.chosen);
  choose(state.order[at < 0 ? 0 : Math.min(state.order.length - 1, Math.max(0, at + by))]);
}
