// Draws time series with uPlot, in the colours of the style sheet. The data is JSON in `data-chart`:
// {x: [Unix seconds], series: [{name, kind, values}], targets: [{value, text, kind}], marks: [{x, text, kind}], unit}.

// Room for the names of the targets, the height of their lines, and how near the pointer has to be to a mark, in CSS pixels.
const RIGHT = 96;
const ROW = 14;
const NEAR = 8;
// The least width of the values of the y axis, which stays the same while they change a little.
const LEFT = 44;
const GAP = 8;
// From this time on, milliseconds are shown as seconds.
const SECONDS_FROM = 10_000;
const COLORS = { info: "--blue", batch: "--teal", tail: "--orange", bad: "--red", good: "--green", near: "--amber", plain: "--soft", faint: "--faint", line: "--line" };
const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

// Returns a function that points at a moment (Unix seconds), or with null at none.
export function startChart(element) {
  let data = JSON.parse(element.dataset.chart);
  let plot = null;
  const tip = document.createElement("div");
  tip.className = "chart-tip";
  tip.hidden = true;

  const build = () => {
    plot?.destroy();
    plot = new uPlot(options(element, () => data, tip), columns(data), element);
    plot.over.append(tip);
  };

  // The attribute is replaced when the part is: see live.js.
  new MutationObserver(() => {
    data = JSON.parse(element.dataset.chart);
    plot.setData(columns(data));
  }).observe(element, { attributes: true, attributeFilter: ["data-chart"] });
  new ResizeObserver(() => plot?.setSize(sizeOf(element))).observe(element);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", build);
  build();
  return (x) => plot.setCursor({ left: x === null ? -10 : plot.valToPos(x, "x"), top: x === null ? -10 : 0 });
}

// The style sheet gives the chart its height: at least its own, and more beside a longer card.
const sizeOf = (element) => ({ width: element.clientWidth, height: element.clientHeight });
const columns = (data) => [data.x, ...data.series.map((series) => series.values)];

function options(element, current, tip) {
  const style = getComputedStyle(element);
  const color = (kind) => style.getPropertyValue(COLORS[kind] ?? COLORS.plain).trim();
  const data = current();
  return {
    ...sizeOf(element),
    padding: [12, RIGHT, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
    scales: { y: { range: (_, low, high) => [0, Math.max(high ?? 0, ...current().targets.map((target) => target.value)) * 1.2 || 1] } },
    axes: [
      { stroke: color("faint"), font: FONT, grid: { show: false }, ticks: { show: false }, size: 28, space: 72, values: (_, splits) => splits.map(clock) },
      { stroke: color("faint"), font: FONT, grid: { stroke: color("line"), width: 1 }, ticks: { show: false }, size: widthOfValues, gap: GAP, space: 44, values: (_, splits) => axisValues(splits, current().unit) },
    ],
    series: [
      {},
      ...data.series.map((series) => ({
        label: series.name,
        stroke: color(series.kind),
        width: 1.8,
        spanGaps: false,
        points: { show: true, filter: lonelyValues, size: 5, fill: color(series.kind) },
      })),
    ],
    hooks: {
      draw: [(plot) => drawTargets(plot, current().targets, color), (plot) => drawMarks(plot, current().marks, color)],
      setCursor: [(plot) => showTip(plot, current(), tip)],
    },
  };
}

// All values of an axis have the same unit.
function axisValues(values, unit) {
  const inSeconds = unit === "ms" && Math.max(...values) >= SECONDS_FROM;
  return values.map((value) => (inSeconds ? `${(value / 1000).toLocaleString("en")} s` : value.toLocaleString("en")));
}

function measured(value, unit) {
  if (unit === "ms" && value >= SECONDS_FROM) return `${(value / 1000).toLocaleString("en", { maximumFractionDigits: 1 })} s`;
  return `${Math.round(value).toLocaleString("en")} ${unit}`;
}

// The width of the longest value. uPlot asks for it several times while it lays the chart out, first without values.
function widthOfValues(plot, values) {
  plot.ctx.save();
  startWriting(plot.ctx);
  const widths = (values ?? []).map((value) => plot.ctx.measureText(value).width / devicePixelRatio);
  plot.ctx.restore();
  return Math.ceil(Math.max(LEFT, ...widths.map((width) => width + 2 * GAP)));
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });

// A value between two gaps has no line: it gets a point.
function lonelyValues(plot, index) {
  const values = plot.data[index];
  return values.flatMap((value, at) => (value != null && values[at - 1] == null && values[at + 1] == null ? [at] : []));
}

// The targets are lines across the chart, named beside it.
function drawTargets(plot, targets, color) {
  const { ctx, bbox } = plot;
  const right = bbox.left + bbox.width;
  let last = Infinity;
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([3 * devicePixelRatio, 4 * devicePixelRatio]);
  startWriting(ctx);
  for (const target of targets) {
    const y = Math.round(plot.valToPos(target.value, "y", true));
    ctx.strokeStyle = color(target.kind);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(right, y);
    ctx.stroke();
    const place = Math.min(y + 4 * devicePixelRatio, last - ROW * devicePixelRatio);
    ctx.fillStyle = color(target.kind);
    ctx.fillText(target.text, right + 8 * devicePixelRatio, place);
    last = place;
  }
  ctx.restore();
}

// What happened, at its moment: the pointer shows the text of what is near.
function drawMarks(plot, marks, color) {
  const { ctx, bbox } = plot;
  const px = devicePixelRatio;
  ctx.save();
  ctx.lineWidth = px;
  for (const { x, kind } of marks) {
    const at = plot.valToPos(x, "x", true);
    if (at < bbox.left || at > bbox.left + bbox.width) continue;
    ctx.strokeStyle = ctx.fillStyle = color(kind);
    ctx.globalAlpha = 0.5;
    ctx.beginPath();
    ctx.moveTo(at, bbox.top);
    ctx.lineTo(at, bbox.top + bbox.height);
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.beginPath();
    ctx.arc(at, bbox.top + 4 * px, 3.5 * px, 0, 2 * Math.PI);
    ctx.fill();
  }
  ctx.restore();
}

function startWriting(ctx) {
  ctx.font = FONT.replace(/^\d+/, (size) => size * devicePixelRatio);
  ctx.textAlign = "left";
  ctx.textBaseline = "alphabetic";
}

function showTip(plot, data, tip) {
  const { idx, left } = plot.cursor;
  tip.hidden = idx == null || left < 0;
  if (tip.hidden) return;
  const lines = data.series.map((series) => {
    const line = document.createElement("p");
    const key = document.createElement("span");
    key.className = `key key-${series.kind}`;
    line.append(key, `${series.name} `, strong(series.values[idx] == null ? "–" : measured(series.values[idx], data.unit)));
    return line;
  });
  const happened = data.marks.filter((mark) => Math.abs(plot.valToPos(mark.x, "x") - left) <= NEAR).map(({ x, text, kind }) => {
    const line = document.createElement("p");
    const key = document.createElement("span");
    line.className = "chart-event";
    key.className = `key key-mark key-${kind}`;
    line.append(key, `${clock(x)} ${text}`);
    return line;
  });
  const at = document.createElement("p");
  at.className = "soft";
  at.textContent = clock(data.x[idx]);
  tip.replaceChildren(at, ...lines, ...happened);
  tip.classList.toggle("chart-tip-left", left > plot.over.clientWidth / 2);
  tip.style.left = `${left}px`;
}

function strong(text) {
  const element = document.createElement("strong");
  element.textContent = text;
  return element;
}
