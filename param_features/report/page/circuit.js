const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 158, ROW = 66, EDGE = 22, LETTERS = 22;
const KINDS = { parameter: "parameter feature", sae: "SAE feature", error: "what is left out", output: "the metric" };

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

const cut = (text) => (text.length > LETTERS ? `${text.slice(0, LETTERS - 1)}…` : text);
const sign = (value) => (value < 0 ? "down" : "up");
const points = (radii) => radii.map((radius, index) => {
  const angle = (2 * Math.PI * index) / radii.length - Math.PI / 2;
  return `${(radius * Math.cos(angle)).toFixed(2)},${(radius * Math.sin(angle)).toFixed(2)}`;
}).join(" ");

function shapeOf(kind, r) {
  if (kind === "sae") return svg("polygon", { points: points([r * 1.25, r * 1.25, r * 1.25, r * 1.25]) });
  if (kind === "error") return svg("rect", { x: -r * 0.9, y: -r * 0.9, width: r * 1.8, height: r * 1.8 });
  if (kind === "output") return svg("polygon", { points: points(Array.from({ length: 10 }, (_, index) => (index % 2 ? 5 : 12))) });
  return svg("circle", { r });
}

// Names of groups in lines that fit a column, broken at dots.
function broken(name) {
  return name.split(/(?<=\.)/).reduce((lines, part) => {
    const last = lines.at(-1);
    return last && (last + part).length > LETTERS ? [...lines, part] : [...lines.slice(0, -1), last + part];
  }, [""]).map(cut);
}

function lines(texts, x, y, name) {
  const text = svg("text", { class: name, "text-anchor": "middle" });
  text.append(...texts.map((line, index) => svg("tspan", { x, y: y + 13 * index }, visible(line))));
  return text;
}

function circuitPicture({ nodes, edges, columns }) {
  const highest = Math.max(0.5, ...nodes.map(({ place }) => place[1])), lowest = Math.min(-0.5, ...nodes.map(({ place }) => place[1]));
  const names = columns.map((groups) => groups.flatMap(broken));
  const width = columns.length * COLUMN, foot = EDGE + (highest - lowest) * ROW + 58;
  const at = nodes.map(({ place: [column, row] }) => [(column + 0.5) * COLUMN, EDGE + (highest - row) * ROW]);
  const height = foot + 13 * Math.max(1, ...names.map((texts) => texts.length));
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "The circuit's nodes and edges" });
  const heaviest = Math.max(1e-300, ...edges.map(([, , weight]) => Math.abs(weight)));
  const paths = edges.map(([source, target, weight]) => {
    const [[x0, y0], [x1, y1]] = [at[source], at[target]], share = Math.abs(weight) / heaviest, bend = (x0 + x1) / 2;
    const title = svg("title", {}, `${visible(nodes[source].name)} → ${visible(nodes[target].name)}: ${signed(weight)}`);
    return [share, svg("path", {
      class: `edge ${sign(weight)}`, d: `M${x0},${y0}C${bend},${y0} ${bend},${y1} ${x1},${y1}`, "data-source": source, "data-target": target,
      "stroke-width": (0.6 + 5.4 * share).toFixed(2), "stroke-opacity": (0.2 + 0.5 * share).toFixed(2),
    }, title)];
  });
  picture.append(...paths.sort((a, b) => a[0] - b[0]).map(([, path]) => path));
  picture.append(...names.map((texts, column) => lines(texts, (column + 0.5) * COLUMN, foot, "group")));
  picture.append(...circuitNodes(nodes, at));
  return picture;
}

function circuitNodes(nodes, at) {
  const strongest = Math.max(1e-300, ...nodes.filter(({ kind }) => kind !== "output").map(({ effect }) => Math.abs(effect ?? 0)));
  return nodes.map((node, index) => {
    const r = 4.5 + 9.5 * Math.sqrt(Math.min(1, Math.abs(node.effect ?? 0) / strongest));
    const group = svg("g", {
      class: `node ${node.kind === "output" ? "output" : sign(node.effect ?? 0)}`, transform: `translate(${at[index].join(",")})`, tabindex: 0, role: "button", "data-node": index,
    });
    const texts = [node.short, node.label].filter(Boolean).map(cut);
    group.append(svg("title", {}, nodeTitle(node)), shapeOf(node.kind, r), lines(texts, 0, 30, "label"));
    group.onclick = () => chooseNode(index);
    group.onkeydown = (event) => event.key === "Enter" && chooseNode(index);
    group.onmouseenter = group.onfocus = () => lightUp(index);
    group.onmouseleave = group.onblur = () => lightUp(null);
    return group;
  });
}

const nodeTitle = ({ name, label, kind, effect }) => [visible(name), KINDS[kind], visible(label), effect === null ? "" : `effect ${signed(effect)}`].filter(Boolean).join("\n");

// Leaves the edges of one node, and what they lead to, in full strength.
function lightUp(index) {
  const near = new Set(DATA.circuit.edges.filter((edge) => edge.slice(0, 2).includes(index)).flatMap(([source, target]) => [source, target]));
  for (const path of document.querySelectorAll("#circuit-picture .edge")) {
    path.classList.toggle("faded", index !== null && ![path.dataset.source, path.dataset.target].includes(String(index)));
  }
  for (const node of document.querySelectorAll("#circuit-picture .node")) {
    const number = Number(node.dataset.node);
    node.classList.toggle("faded", index !== null && number !== index && !near.has(number));
  }
}

function chooseNode(index) {
  for (const node of document.querySelectorAll("#circuit-picture .node")) node.classList.toggle("chosen", Number(node.dataset.node) === index);
  const node = DATA.circuit.nodes[index];
  const effect = node.effect === null ? [] : [make("p", { class: "hint" }, `effect on the metric ${signed(node.effect)}, ± ${short(node.spread)} over prompts`)];
  document.getElementById("circuit-node").replaceChildren(
    make("h3", {}, visible(node.name)), make("p", {}, [KINDS[node.kind], visible(node.label)].filter(Boolean).join(": ")), ...effect,
    ...nodeLink(node), ...nodeTexts(node), ...nodeEdges(index));
}

function nodeLink({ link }) {
  return link === null ? [] : [make("p", {}, make("a", { href: `#feature-${link}` }, `feature ${link} of this report`))];
}

function nodeTexts({ examples }) {
  const bound = largest(examples.map(({ acts }) => acts));
  return examples.map(({ tokens, acts, at, act }) => make("div", { class: "example" },
    make("span", { class: "number" }, signed(act)), make("div", {}, highlighted(tokens, acts, at, bound))));
}

function nodeEdges(index) {
  const sides = [["Comes from", 1, 0], ["Leads to", 0, 1]].map(([title, own, other]) => {
    const pairs = DATA.circuit.edges.filter((edge) => edge[own] === index).sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 8);
    return pairs.length ? titled(title, bars(pairs.map((edge) => [visible(DATA.circuit.nodes[edge[other]].name), edge[2]]))) : null;
  });
  return [make("div", { class: "columns" }, ...sides.filter(Boolean))];
}

function nodeRow(index) {
  const node = DATA.circuit.nodes[index];
  const name = make("button", { type: "button", class: "plain", onclick: () => chooseNode(index) }, visible(node.name));
  const texts = make("td", {});
  if (node.examples.length) texts.append(...nodeTexts({ examples: node.examples.slice(0, 1) }));
  if (node.examples.length > 1) {
    const more = make("details", {}, make("summary", {}, `${node.examples.length - 1} more`));
    more.addEventListener("toggle", () => more.childElementCount > 1 || more.append(...nodeTexts({ examples: node.examples.slice(1) })));
    texts.append(more);
  }
  const effect = node.effect === null ? "" : `${signed(node.effect)} ± ${short(node.spread)}`;
  return make("tr", {}, make("td", {}, name, ...nodeLink(node)), make("td", {}, KINDS[node.kind]), make("td", { class: "number" }, effect), make("td", {}, visible(node.label)), texts);
}

function circuitScores(scores) {
  const rows = scores.map(({ name, value, controls }) => {
    const beside = Object.entries(controls).map(([control, number]) => `${visible(control)} ${short(number)}`).join(", ");
    return make("tr", {}, make("td", {}, visible(name)), make("td", { class: "number" }, short(value)), make("td", {}, beside));
  });
  document.querySelector("#circuit-scores thead").append(make("tr", {}, make("th", {}, "score"), make("th", { class: "number" }, "circuit"), make("th", {}, "controls")));
  document.querySelector("#circuit-scores tbody").append(...rows);
  document.getElementById("circuit-scores").hidden = !rows.length;
}

function circuitKey() {
  const kinds = [...new Set(DATA.circuit.nodes.map(({ kind }) => kind))].map((kind) => {
    const icon = svg("svg", { width: 22, height: 22, viewBox: "-13 -13 26 26" }, shapeOf(kind, 8));
    return make("span", {}, icon, KINDS[kind]);
  });
  const signs = [["up", "raises the metric"], ["down", "lowers it"]].map(([name, text]) => make("span", {}, make("i", { class: name }), text));
  return [...kinds, ...signs, "size: |effect|; width: |weight|"];
}

function showCircuit() {
  if (!DATA.circuit) return;
  const { nodes, edges, facts, prompts, n_prompts: count, scores, ranked } = DATA.circuit;
  document.getElementById("circuit").hidden = document.getElementById("circuit-link").hidden = false;
  document.getElementById("circuit-title").textContent = `${nodes.length} nodes and ${edges.length} edges for ${visible(DATA.circuit.metric)} on ${count} prompts. ${DATA.circuit.verdict}`;
  document.getElementById("circuit-facts").append(...facts.flatMap(([name, value]) => [make("dt", {}, visible(name)), make("dd", {}, visible(value))]));
  const shown = prompts.map((prompt) => make("div", { class: "prompt" }, visible(prompt)));
  document.getElementById("circuit-prompts").append(make("summary", {}, count > shown.length ? `The first ${shown.length} of ${count} prompts` : "Prompts"), ...shown);
  circuitScores(scores);
  document.getElementById("circuit-key").append(...circuitKey());
  document.getElementById("circuit-picture").append(circuitPicture(DATA.circuit));
  const heads = ["node", "kind", "effect ± spread", "label", "where it is strong"].map((name, index) => make("th", { class: index === 2 ? "number" : "" }, name));
  document.querySelector("#circuit-table thead").append(make("tr", {}, ...heads));
  document.querySelector("#circuit-table tbody").append(...ranked.map(nodeRow));
  if (nodes.length) chooseNode(ranked[0] ?? 0);
}
