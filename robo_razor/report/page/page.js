// Draws the figures from the values in #charts, in the colours of the page's theme.
"use strict";

const { charts, texts } = JSON.parse(document.getElementById("charts").textContent);
const hiddenArms = new Set();
let raisedArm = null; // the arm that is pointed at
const selected = {}; // group of charts -> index of the view shown
const finePointer = matchMedia("(pointer: fine)").matches;

// --- Theme -------------------------------------------------------------------------------------

/** Replace `var(--name)` and `var(--name)@opacity` by the theme's colours, everywhere in a value. */
function resolve(value, style) {
  if (typeof value === "string") {
    const match = /^var\((--[\w-]+)\)(?:@([\d.]+))?$/.exec(value);
    if (!match) return value;
    const colour = style.getPropertyValue(match[1]).trim();
    return match[2] === undefined ? colour : withOpacity(colour, Number(match[2]));
  }
  if (Array.isArray(value)) return value.map((item) => resolve(item, style));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, style)]));
  }
  return value;
}

function withOpacity(hex, opacity) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r}, ${g}, ${b}, ${opacity})`;
}

function axis(given) {
  return {
    gridcolor: "var(--rule)",
    linecolor: "var(--rule)",
    tickcolor: "var(--rule)",
    zeroline: false,
    automargin: true,
    fixedrange: !finePointer, // on a phone a finger scrolls the page
    ...given,
    ...(given && given.zeroline ? { zerolinecolor: "var(--muted)", zerolinewidth: 1 } : {}),
    ...(given && given.title ? {
          title: {
            standoff: 10,
            font: { size: 13, color: "var(--muted)" },
            ...given.title,
          },
        } : {}),
  };
}

function layoutOf(chart, view) {
  const style = getComputedStyle(document.documentElement);
  const given = view.layout;
  const axes = Object.fromEntries(
    Object.keys({ xaxis: 0, yaxis: 0, ...given })
      .filter((key) => /^[xy]axis\d*$/.test(key))
      .map((key) => [key, axis(given[key])])
  );
  const layout = {
    height: chart.height,
    margin: { l: 8, r: 14, t: 32, b: 44 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    hovermode: "closest",
    dragmode: finePointer ? "zoom" : false,
    font: { family: style.getPropertyValue("--sans"), size: 13, color: "var(--ink)" },
    hoverlabel: {
      bgcolor: "var(--panel)",
      bordercolor: "var(--muted)",
      align: "left",
      font: { family: style.getPropertyValue("--sans"), size: 13, color: "var(--ink)" },
    },
    ...given,
    ...axes,
  };
  return resolve(layout, style);
}

// --- Drawing -----------------------------------------------------------------------------------

function tracesOf(chart, view) {
  const given = Array.isArray(view.traces) ? view.traces : chart.views[view.traces].traces;
  const shown = given.filter((trace) => !hiddenArms.has(trace.meta.arm));
  if (raisedArm === null) return shown;
  const isRaised = (trace) => trace.meta.arm === raisedArm;
  return [
    ...shown.filter((trace) => !isRaised(trace)).map((trace) => ({ ...trace, opacity: 0.14 })),
    ...shown.filter(isRaised),
  ];
}

function draw(chart) {
  const view = chart.views[selected[chart.group] ?? chart.selected];
  const style = getComputedStyle(document.documentElement);
  const traces = tracesOf(chart, view).map((trace) => {
    const resolved = resolve(trace, style);
    if (trace.customdata) resolved.customdata = trace.customdata.map((i) => texts[i]);
    return resolved;
  });
  const config = { displayModeBar: false, responsive: true, scrollZoom: false };
  return Plotly.react(chart.id, traces, layoutOf(chart, view), config);
}

function drawAll() {
  return Promise.all(charts.map(draw));
}

// --- Controls ----------------------------------------------------------------------------------

function select(group, index) {
  selected[group] = index;
  charts.filter((chart) => chart.group === group).forEach(draw);
  document.querySelectorAll(`[data-group="${group}"] button`).forEach((button, i) => {
    button.setAttribute("aria-pressed", String(i === index));
  });
}

document.querySelectorAll("[data-group]").forEach((control) => {
  const group = control.dataset.group;
  control.querySelectorAll("button").forEach((button, i) => {
    button.addEventListener("click", () => select(group, i));
  });
  control.querySelectorAll("select").forEach((menu) => {
    menu.addEventListener("change", () => select(group, menu.selectedIndex));
  });
});

const arms = [...document.querySelectorAll(".legend button")];
let waiting = 0;

function raise(arm) {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    if (raisedArm === arm) return;
    raisedArm = arm;
    drawAll();
  }, 120); // not for every button that the pointer passes
}

function show(isShown) {
  clearTimeout(waiting);
  raisedArm = null;
  arms.forEach((button, i) => {
    if (isShown(i)) hiddenArms.delete(i);
    else hiddenArms.add(i);
    button.setAttribute("aria-pressed", String(isShown(i)));
  });
  drawAll();
}

arms.forEach((button, i) => {
  button.addEventListener("click", () => {
    const before = new Set(hiddenArms);
    show((k) => (k === i ? before.has(k) : !before.has(k)));
  });
  button.addEventListener("dblclick", () => {
    const alone = !hiddenArms.has(i) && hiddenArms.size === arms.length - 1;
    show((k) => alone || k === i);
  });
  button.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "mouse" && !hiddenArms.has(i)) raise(i);
  });
  button.addEventListener("pointerleave", () => raise(null));
});

// --- Videos ------------------------------------------------------------------------------------

// A browser's own controls cover the captions in the pictures, so there is a button below.
document.querySelectorAll(".play").forEach((button) => {
  const video = button.closest("figure").querySelector("video");
  const toggle = () => (video.paused ? video.play() : video.pause());
  button.addEventListener("click", toggle);
  video.addEventListener("click", toggle);
  video.addEventListener("play", () => (button.textContent = "Pause"));
  video.addEventListener("pause", () => (button.textContent = "Play"));
});

// --- Downloads ---------------------------------------------------------------------------------

document.querySelectorAll(".downloads a").forEach((link) => {
  link.addEventListener("click", async (event) => {
    if (link.href.startsWith("blob:")) return;
    event.preventDefault();
    const bytes = Uint8Array.from(atob(link.dataset.gzip), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const content = await new Response(stream).arrayBuffer();
    link.href = URL.createObjectURL(new Blob([content], { type: link.dataset.type }));
    link.click();
  });
});

// --- Light and dark ----------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = document.querySelector(".theme");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : dark.matches;
}

function nameTheme() {
  theme.textContent = isDark() ? "Light" : "Dark";
}

theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
  drawAll();
});
dark.addEventListener("change", () => {
  nameTheme();
  drawAll();
});

nameTheme();
drawAll().then(() => document.documentElement.setAttribute("data-drawn", "true"));
