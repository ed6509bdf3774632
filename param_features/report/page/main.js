function showOverview() {
  const { facts, metrics, verdict: said } = DATA.overview;
  document.getElementById("facts").append(...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  const verdict = make("p", said.is_warning ? { class: "warn" } : {}, [...said.sentences, "Labels and top examples describe; they are no evidence of what a feature does."].join(" "));
  document.getElementById("verdict").append(verdict);
  document.getElementById("metrics").append(...metrics.map(([name, value, meaning]) =>
    make("tr", {}, make("td", {}, name), make("td", { class: "number" }, String(value)), make("td", { class: "soft" }, meaning))));
  drawErrors(document.getElementById("errors"));
  drawCurve(document.getElementById("curve"));
  drawDensity(document.getElementById("density"));
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  redraw();
}

function onKey(event) {
  const isTyping = event.target.matches("input, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") document.getElementById("search").blur();
  else if (!isTyping && event.key === "/") document.getElementById("search").focus(), event.preventDefault();
  else if (!isTyping && ["j", "ArrowRight"].includes(event.key)) step(1);
  else if (!isTyping && ["k", "ArrowLeft"].includes(event.key)) step(-1);
}

function onHash() {
  const found = location.hash.match(/^#feature-(\d+)$/);
  if (found && Number(found[1]) < DATA.features.length) choose(Number(found[1]));
}

const isDark = matchMedia("(prefers-color-scheme: dark)");
setTheme(isDark.matches ? "dark" : "light");
isDark.addEventListener("change", () => setTheme(isDark.matches ? "dark" : "light"));
document.getElementById("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
document.getElementById("search").oninput = (event) => { state.query = event.target.value.trim().toLowerCase(); fillTable(); };
document.addEventListener("keydown", onKey);
addEventListener("hashchange", onHash);
fillTable();
choose(state.order[0], true);
onHash();
showOverview();
showAudit();
showSae();
showCircuit();
