const VERDICTS = { pass: "✓ pass", FAIL: "✗ fail", "not run": "– not run" };
const short = (value) => String(Number(value.toPrecision(3)));

function auditRow(row) {
  const beside = Object.entries(row.controls).map(([name, value]) => `${name} ${short(value)}`).join(", ");
  return make("tr", { "data-verdict": row.verdict },
    make("td", { class: "verdict" }, VERDICTS[row.verdict]), make("td", {}, row.name),
    make("td", { class: "number" }, row.value === null ? "" : short(row.value)), make("td", {}, beside), make("td", {}, row.rule),
    make("td", { class: "soft" }, row.meaning));
}

function drawSteps(place, title, start, axis) {
  const { steps, curves } = DATA.audit;
  const names = Object.keys(curves).filter((name) => name.startsWith(`${start} `));
  const lines = names.map((name, index) => (get) => ({
    type: "scatter", mode: "lines+markers", name: name.slice(start.length + 1), x: steps, y: curves[name],
    line: name.endsWith("features") ? { color: `rgb(${get("--up")})`, width: 3 } : { color: get("--soft"), dash: ["solid", "dot", "dash", "dashdot"][index % 4] },
  }));
  draw(place, lines, {
    title, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { l: 52, r: 12, t: 96, b: 44 },
    xaxis: { type: "log", tickvals: steps, title: { text: "step: ‖δv‖ / ‖W‖" } }, yaxis: axis,
  });
}

function showAudit() {
  if (!DATA.audit) return;
  document.getElementById("audit").hidden = document.getElementById("audit-link").hidden = false;
  document.getElementById("audit-title").textContent = DATA.audit.title;
  const names = ["", "claim", "value", "controls", "passes from", "what the number is"];
  document.querySelector("#audit-table thead").append(make("tr", {}, ...names.map((name) => make("th", {}, name))));
  document.querySelector("#audit-table tbody").append(...DATA.audit.rows.map(auditRow));
  drawSteps(document.getElementById("audit-auroc"), "Which outputs move: area under ROC of the top inputs", "auroc", { range: [0, 1] });
  drawSteps(document.getElementById("audit-ratio"), "Movement of the top inputs over that of others", "ratio", { type: "log" });
  drawSteps(document.getElementById("audit-linearity"), "First-order prediction: correlation", "linearity", { range: [-0.2, 1.05] });
}
