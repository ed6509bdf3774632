function showFeature(index) {
  const feature = DATA.features[index];
  const histogram = make("div", { class: "plot low" });
  const back = make("button", { id: "back", type: "button", onclick: () => document.getElementById("list").scrollIntoView() }, "↑ list");
  const steps = [make("button", { type: "button", onclick: () => step(-1), ariaLabel: "previous" }, "‹"), make("button", { type: "button", onclick: () => step(1), ariaLabel: "next" }, "›")];
  document.getElementById("feature").replaceChildren(
    make("div", { class: "top" }, make("h2", {}, `${DATA.overview.noun} ${index}`), back, ...steps),
    make("p", {}, visible(feature.label)),
    make("p", { class: "hint" }, `kept on ${percent(feature.density)} of the samples; largest ${DATA.overview.measured}: ${signed(feature.largest)}`),
    titled("Top examples", examples(feature)),
    make("figure", {}, histogram),
    make("div", { class: "columns" }, ...tokenLists(feature)),
    make("div", { class: "columns" }, ...logits(feature)),
    ...saeCounterparts(feature),
    ...(feature.part ? inMatrix(feature.part) : [titled("Where its weight lies", heatMap(feature.weight))]),
    titled(`Nearest ${DATA.overview.noun.toLowerCase()}s, by cosine of the directions`, nearest(feature)),
  );
  drawHistogram(histogram, feature.histogram);
}

function examples(feature) {
  if (DATA.kind === "images") return make("div", { class: "images" }, ...feature.examples.map(image));
  if (DATA.kind !== "tokens") return make("div", { class: "scroll" }, vectors(feature.examples));
  const bound = largest(feature.examples.map(({ acts }) => acts));
  const other = largest(feature.examples.map(({ marks }) => marks ?? []));
  return make("div", {}, ...feature.examples.map((example) => {
    const line = highlighted(example.tokens, example.acts, example.at, bound);
    if (example.next !== null) line.append(make("span", { class: "next" }, `  → ${word(example.next)}`));
    const below = example.marks ? [marked(`SAE ${feature.sae[0].sae}`, example, other)] : [];
    return make("div", { class: "example" }, make("span", { class: "number" }, signed(example.act)), make("div", {}, line, ...below));
  }));
}

function image(example) {
  const { height, width, rgb } = example.image;
  const canvas = make("canvas", { width, height, ariaLabel: `input ${example.row}` });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const bytes = atob(rgb);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let channel = 0; channel < 3; channel++) pixels.data[4 * pixel + channel] = bytes.charCodeAt(3 * pixel + channel);
    pixels.data[4 * pixel + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  const best = example.output ? `→ ${example.output.indexOf(Math.max(...example.output))}` : "";
  return make("figure", {}, canvas, make("div", { class: "hint" }, `${signed(example.act)} ${best}`));
}

function vectors(rows) {
  const sides = ["input", "output"].filter((side) => rows[0]?.[side]);
  const heads = sides.flatMap((side) => rows[0][side].map((_, at) => make("th", { class: "number" }, `${side} ${at}`)));
  const bounds = Object.fromEntries(sides.map((side) => [side, Math.max(...rows.flatMap((row) => row[side].map(Math.abs)))]));
  const lines = rows.map((row) => {
    const cells = sides.flatMap((side) => row[side].map((value) => {
      const cell = make("td", { class: "number" }, String(Number(value.toPrecision(2))));
      cell.style.background = shade(value, bounds[side]);
      return cell;
    }));
    return make("tr", {}, make("td", { class: "number" }, String(row.row)), make("td", { class: "number" }, signed(row.act)), ...cells);
  });
  return make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, "row"), make("th", {}, "activation"), ...heads)), make("tbody", {}, ...lines));
}

function tokenLists(feature) {
  const lists = [["Tokens it acts on", feature.on], ["Tokens that follow", feature.next]].filter(([, pairs]) => pairs?.length);
  return lists.map(([title, pairs]) => titled(`${title}, in its top examples`, make("div", { class: "chips" },
    ...pairs.map(([token, count]) => make("span", { class: "chip" }, `${word(token)}  ×${count}`)))));
}

function logits(feature) {
  const outputs = DATA.kind === "tokens" ? "logits" : "outputs";
  const sides = [[`Moves these ${outputs} up`, feature.up], ["… and these down", feature.down]];
  return sides.map(([title, pairs]) => titled(title, bars(pairs.map(([token, change]) => [word(token), change]))));
}

function heatMap(weight) {
  const most = Math.max(...Object.values(weight).map((shares) => shares.length));
  const table = make("table", { class: "heat" });
  const top = Math.max(...Object.values(weight).flat());
  if (most > 1) table.append(make("tr", {}, make("th", {}, ""), ...Array.from({ length: most }, (_, head) => make("th", {}, `head ${head}`))));
  for (const [name, shares] of Object.entries(weight)) {
    table.append(make("tr", {}, make("th", {}, name), ...shares.map((share) => {
      const cell = make("td", {}, share < 0.005 ? "" : `${Math.round(100 * share)}%`);
      cell.style.background = shade(share, top);
      return cell;
    })));
  }
  return make("div", { class: "scroll" }, table);
}

function inMatrix(part) {
  const place = make("p", { class: "hint" }, `U ⊗ V, number ${part.number} of ${part.site}; ‖U‖ ‖V‖ = ${part.size}`);
  const sides = [["Writes most to these outputs, U", part.writes], ["Reads most from these inputs, V", part.reads]];
  const columns = sides.map(([title, pairs]) => titled(title, bars(pairs.map(([at, value]) => [String(at), value]))));
  return [titled("Where it lies", place), make("div", { class: "columns" }, ...columns)];
}

function nearest(feature) {
  return make("div", { class: "chips" }, ...feature.nearest.map(([other, cosine]) =>
    make("a", { class: "chip", href: `#feature-${other}` }, `${other}  ${visible(DATA.features[other].label)}  ${signed(cosine)}`)));
}
