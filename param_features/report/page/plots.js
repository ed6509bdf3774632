// plotly lies in the page compressed; it is unpacked once, after the page stands.
let plotly = null;

function loadPlotly() {
  plotly ??= (async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    document.head.append(make("script", { textContent: await new Response(stream).text() }));
    return window.Plotly;
  })();
  return plotly;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const drawn = new Map();

async function draw(place, traces, layout) {
  drawn.set(place, [traces, layout]);
  const found = await loadPlotly();
  if (!place.isConnected) return void drawn.delete(place);
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
  const whole = {
    margin: { l: 52, r: 12, t: 34, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink"), size: 12 },
    showlegend: false, ...layout, title: { text: layout.title, font: { size: 13 }, yref: "container", y: 1, yanchor: "top", pad: { t: 8 } }, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  };
  await found.react(place, traces.map((trace) => trace(colour)), whole, { responsive: true, displayModeBar: false });
}

function redraw() {
  for (const [place, [traces, layout]] of drawn) draw(place, traces, layout);
}

const fill = (get, name = "--up") => ({ color: `rgb(${get(name)})` });
const CONTROLS = { reconstruction_error: "the fit", control_pca: "PCA", control_random: "random", control_svd_w: "SVD of W" };
const control = (name) => CONTROLS[name] ?? name.replace("control_", "").replaceAll("_", " ");

function drawErrors(place) {
  if (DATA.overview.error === null) return;
  const names = Object.keys(DATA.overview.controls);
  const values = [DATA.overview.error, ...names.map((name) => DATA.overview.controls[name])];
  const bar = (get) => ({
    type: "bar", x: ["the fit", ...names.map(control)], y: values, text: values.map((value) => value.toFixed(3)), textposition: "auto",
    marker: { color: values.map((_, index) => (index ? get("--soft") : `rgb(${get("--up")})`)) }, hoverinfo: "x+y",
  });
  draw(place, [bar], { title: `${DATA.overview.score.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase())}, held out`, yaxis: { rangemode: "tozero" } });
}

function drawCurve(place) {
  const curve = DATA.overview.curve;
  if (!curve) return;
  place.parentElement.hidden = false;
  const style = (name, index, get) => name === "reconstruction_error"
    ? { color: `rgb(${get("--up")})`, width: 3 }
    : { color: get("--soft"), dash: ["dot", "dash", "dashdot"][index % 3] };
  const lines = Object.entries(curve.errors).map(([name, errors], index) => (get) => ({
    type: "scatter", mode: "lines+markers", name: control(name), x: curve.l0, y: errors, line: style(name, index, get),
  }));
  draw(place, lines, {
    title: "Reconstruction error against l0", showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { l: 52, r: 12, t: 78, b: 44 },
    xaxis: { title: { text: "l0: features kept per sample" } }, yaxis: { rangemode: "tozero" },
  });
}

function drawDensity(place) {
  const alive = DATA.features.map((feature) => feature.density).filter((density) => density > 0);
  const bar = (get) => ({ type: "histogram", x: alive.map(Math.log10), nbinsx: 30, marker: fill(get) });
  const dead = DATA.features.length - alive.length;
  draw(place, [bar], {
    title: `Density of the ${DATA.overview.noun.toLowerCase()}s${dead ? `; ${dead} kept nowhere here` : ""}`, yaxis: { title: { text: `${DATA.overview.noun.toLowerCase()}s` } },
    xaxis: { title: { text: "log₁₀ of the share of samples that keep it" } },
  });
}

function drawHistogram(place, { from, to, counts }) {
  const width = (to - from) / counts.length;
  const centres = counts.map((_, index) => from + (index + 0.5) * width);
  const bar = (get) => ({
    type: "bar", x: centres, y: counts, width, marker: { color: centres.map((x) => `rgb(${get(x < 0 ? "--down" : "--up")})`) },
  });
  const xaxis = { title: { text: DATA.overview.measured } };
  draw(place, [bar], { title: "Activations", xaxis, yaxis: { type: "log", title: { text: "samples" } } });
}
