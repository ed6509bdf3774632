const saeName = ({ sae, url }) => (url ? make("a", { href: url, target: "_blank", rel: "noreferrer" }, `SAE ${sae}`) : `SAE ${sae}`);
const plain = (value) => (value === null ? "–" : value.toFixed(2));

function numbersOf(pair) {
  return ["correlation", "auroc", "sae_auroc", "overlap"].map((name) => make("td", { class: "number" }, plain(pair[name])));
}

function pairHead(...names) {
  const numbers = ["correlation", "area under ROC", "the reverse", "overlap"];
  return make("tr", {}, ...names.map((name) => make("th", {}, name)), ...numbers.map((name) => make("th", { class: "number" }, name)));
}

function saeCounterparts(feature) {
  if (!feature.sae) return [];
  const verdict = feature.shared ? "The first counts as a counterpart." : "None of them goes with it better than with random directions: no counterpart.";
  const rows = feature.sae.map((pair) => make("tr", {}, make("td", {}, saeName(pair)), ...numbersOf(pair)));
  const table = make("table", {}, make("thead", {}, pairHead("SAE feature")), make("tbody", {}, ...rows));
  return [titled("SAE features that fire with it", make("p", { class: "hint" }, verdict), make("div", { class: "scroll" }, table))];
}

// A second line under a text: the same tokens, marked by the other side's feature on its own scale.
function marked(title, example, bound) {
  const line = highlighted(example.tokens, example.marks, example.at, bound);
  line.classList.add("marks");
  line.prepend(make("span", {}, `${title}: `));
  return line;
}

const largest = (lists) => Math.max(1e-12, ...lists.flat().map(Math.abs));

function saeTexts({ pair, examples }) {
  const bounds = [largest(examples.map(({ acts }) => acts)), largest(examples.map(({ marks }) => marks))];
  return examples.map((example) => make("div", { class: "example" }, make("span", { class: "number" }, plain(example.act)),
    make("div", {}, highlighted(example.tokens, example.acts, example.at, bounds[0]), marked(`feature ${pair.feature}`, example, bounds[1]))));
}

function saeRow(row) {
  const cells = [make("td", {}, saeName(row.pair)), make("td", {}, make("a", { href: `#feature-${row.pair.feature}` }, `feature ${row.pair.feature}`))];
  const label = make("td", {}, row.examples.length ? make("details", {}, make("summary", {}, visible(row.label) || "examples")) : visible(row.label));
  const details = label.querySelector("details");
  details?.addEventListener("toggle", () => details.childElementCount > 1 || details.append(...saeTexts(row)));
  return make("tr", { "data-shared": String(row.shared) }, cells[0], label, cells[1], ...numbersOf(row.pair));
}

function fillSaeTable() {
  const wanted = document.getElementById("sae-filter").value;
  const rows = DATA.sae.features.filter((row) => wanted === "all" || row.shared === (wanted === "shared"));
  document.querySelector("#sae-table tbody").replaceChildren(...rows.map(saeRow));
  const { n_active: active, n_shown: shown } = DATA.sae;
  const left = shown < active ? `; of ${active} active ones the ${shown} with the lowest and the highest correlations are here` : "";
  document.getElementById("sae-count").textContent = `${rows.length} of ${shown}${left}`;
}

function showSae() {
  if (!DATA.sae) return;
  document.getElementById("sae").hidden = document.getElementById("sae-link").hidden = false;
  document.getElementById("sae-title").textContent = DATA.sae.title;
  document.getElementById("sae-lines").append(...DATA.sae.lines.map((cells, index) =>
    make("tr", {}, ...cells.map((cell) => make(index ? "td" : "th", {}, cell)))));
  const chips = DATA.sae.only_features.map((k) => make("a", { class: "chip", href: `#feature-${k}` }, `${k}  ${visible(DATA.features[k].label)}`));
  document.getElementById("sae-alone").append(titled(`Parameter features without a counterpart in the SAE: ${chips.length}`, make("div", { class: "chips" }, ...chips)));
  document.querySelector("#sae-table thead").append(pairHead("SAE feature", "what its examples share", "nearest parameter feature"));
  document.getElementById("sae-filter").onchange = fillSaeTable;
  fillSaeTable();
}
