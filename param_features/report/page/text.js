"use strict";
// Everything is put on the page through textContent: a token that looks like HTML stays text.
const DATA = JSON.parse(document.getElementById("data").textContent);

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function visible(text) {
  return text.replace(/\n/g, "⏎").replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/g, "·");
}

const word = (number) => visible(DATA.vocabulary[number]);
const signed = (value) => (value < 0 ? "−" : "+") + String(Math.abs(Number(value.toPrecision(3))));
const percent = (share) => (100 * share).toPrecision(share < 0.1 ? 2 : 3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "") + " %";

function shade(value, bound) {
  const strength = bound ? Math.min(1, Math.abs(value) / bound) : 0;
  return strength < 0.04 ? "" : `rgba(var(${value < 0 ? "--down" : "--up"}), ${(0.75 * strength).toFixed(2)})`;
}

function highlighted(tokens, values, at, bound) {
  const line = make("div", { class: "text" });
  tokens.forEach((token, index) => {
    const span = make("span", { class: index === at ? "token at" : "token", title: signed(values[index]) }, word(token));
    span.style.background = shade(values[index], bound);
    line.append(span);
  });
  return line;
}

function bars(pairs) {
  const grid = make("div", { class: "bars" });
  const bound = Math.max(...pairs.map(([, value]) => Math.abs(value)), 1e-12);
  for (const [name, value] of pairs) {
    const bar = make("div", { class: "bar" });
    bar.style.width = `${(100 * Math.abs(value)) / bound}%`;
    bar.style.background = `rgb(var(${value < 0 ? "--down" : "--up"}))`;
    grid.append(make("span", { class: "name", title: name }, name), bar, make("span", { class: "number" }, signed(value)));
  }
  return grid;
}

function titled(title, ...children) {
  return make("div", {}, make("h3", {}, title), ...children);
}
