"use strict";
(() => {
  const SHADES = 8, BEYOND = 0.02;
  const data = JSON.parse(document.getElementById("token-data").textContent);
  const root = document.getElementById("token-pictures");
  const [measure, layer, head] = ["measure", "layer", "head"].map(name => root.querySelector(`select[name=${name}]`));
  const readout = root.querySelector(".readout");
  const chosen = select => select ? select.value : "all";
  const shown = value => value === null ? "–" : String(value).replace("-", "−");
  const rounded = value => Number(value.toPrecision(3));
  const panels = [...root.querySelectorAll(".texts > figure")].map(figure => ({
    figure,
    index: figure.dataset.panel === undefined ? null : Number(figure.dataset.panel),
    tokens: [...figure.querySelectorAll(".t")],
    values: [],
  }));
  const difference = panels.find(panel => panel.index === null);

  function valuesOf(index) {
    const found = data.panels[index].measures[measure.value];
    if (!found) return null;
    if (chosen(layer) === "all") return found.all;
    if (chosen(head) === "all") return found.layers[layer.value] ?? null;
    return found.heads[layer.value]?.[head.value] ?? null;
  }

  function scaleOf(rows) {
    const values = rows.flatMap(row => row ?? []).filter(value => value !== null).sort((a, b) => a - b);
    const last = values.length - 1;
    return last < 0 ? [0, 0] : [values[Math.floor(BEYOND * last)], values[Math.ceil((1 - BEYOND) * last)]];
  }

  function shade(value, low, high) {
    if (value === null) return "";
    if (high <= low) return "s0";
    return "s" + Math.floor(Math.min(1, Math.max(0, (value - low) / (high - low))) * SHADES + 0.5);
  }

  function signed(value, most) {
    if (value === null) return "";
    const depth = most > 0 ? Math.floor(Math.min(1, Math.abs(value) / most) * SHADES + 0.5) : 0;
    return (value < 0 && depth ? "n" : "s") + depth;
  }

  function paint(panel, values, low, high, classOf, reason) {
    panel.values = values ?? panel.tokens.map(() => null);
    panel.tokens.forEach((token, index) => {
      const value = panel.values[index];
      token.className = `t ${classOf(value)}`;
      token.dataset.value = shown(value);
      token.title = `position ${token.dataset.position}: ${shown(value)}`;
      token.setAttribute("aria-label", `${token.textContent}, position ${token.dataset.position}: ${shown(value)}`);
    });
    panel.figure.querySelector(".measure").textContent = data.titles[measure.value];
    const scale = panel.figure.querySelector(".scale"), lack = panel.figure.querySelector(".lack");
    scale.querySelector(".low").textContent = shown(low);
    scale.querySelector(".high").textContent = shown(high);
    scale.hidden = !values;
    lack.hidden = Boolean(values);
    lack.textContent = reason;
  }

  function update() {
    if (head) {
      head.disabled = chosen(layer) === "all";
      if (head.disabled) head.value = "all";
    }
    const rows = data.panels.map((_, index) => valuesOf(index));
    const [low, high] = scaleOf(rows);
    for (const panel of panels.filter(panel => panel.index !== null)) {
      paint(panel, rows[panel.index], low, high, value => shade(value, low, high), "Not measured here.");
    }
    if (difference) {
      const both = rows.every(row => row !== null);
      const gaps = both ? rows[0].map((value, index) => {
        const other = rows[1][index];
        return value === null || other === null ? null : rounded(value - other);
      }) : null;
      const [, most] = scaleOf([(gaps ?? []).map(value => value === null ? null : Math.abs(value))]);
      paint(difference, gaps, -most, most, value => signed(value, most), "Not measured in both.");
      difference.figure.hidden = false;
    }
    tell(null);
  }

  function tell(token) {
    root.querySelectorAll(".t.on").forEach(other => other.classList.remove("on"));
    readout.hidden = false;
    if (!token) {
      readout.textContent = "Point at a token or tap it, or go through the text with the arrow keys.";
      return;
    }
    const own = panels.find(panel => panel.tokens.includes(token));
    const index = own.tokens.indexOf(token);
    // The same text: what is said of a token is said of it in every panel.
    const about = difference ? panels : [own];
    about.forEach(panel => panel.tokens[index].classList.add("on"));
    const values = about.map(panel => {
      const label = panel.index === null ? "difference" : data.panels[panel.index].label;
      return about.length > 1 ? `${label} ${shown(panel.values[index])}` : shown(panel.values[index]);
    });
    const name = document.createElement("b");
    name.textContent = token.textContent;
    const place = ` position ${token.dataset.position} · ${data.titles[measure.value]} ${values.join(", ")}`;
    readout.replaceChildren(name, place);
  }

  function reach(panel, index) {
    const token = panel.tokens[index];
    if (!token) return;
    panel.tokens.forEach(other => { other.tabIndex = other === token ? 0 : -1; });
    token.focus();
    tell(token);  // a window without the focus tells nobody of it
  }

  for (const panel of panels) {
    panel.tokens.forEach((token, index) => { token.tabIndex = index ? -1 : 0; });
    const text = panel.figure.querySelector(".text");
    const at = event => event.target.closest(".t");
    text.addEventListener("pointerover", event => { if (at(event)) tell(at(event)); });
    text.addEventListener("focusin", event => tell(at(event)));
    text.addEventListener("click", event => { if (at(event)) reach(panel, panel.tokens.indexOf(at(event))); });
    text.addEventListener("keydown", event => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const end = { Home: 0, End: panel.tokens.length - 1 }[event.key];
      const from = panel.tokens.indexOf(document.activeElement);
      if (from < 0 || (step === undefined && end === undefined)) return;
      event.preventDefault();
      reach(panel, end ?? from + step);
    });
  }
  [measure, layer, head].forEach(select => select?.addEventListener("change", update));
  root.querySelector(".choices").hidden = false;
  update();
})();
