// Draws time series with uPlot, in the colours of the style sheet. The data is JSON in `data-chart`:
// {x: [Unix seconds], series: [{name, kind, values}], targets: [{value, text, kind}], marks: [{x, text, kind}], unit}.
const HEIGHT = 240;
const COLORS = { info: "--blue", batch: "--teal", tail: "--orange", bad: "--red", good: "--green", near: "--amber", plain: "--soft" };
const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

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
  new ResizeObserver(() => plot?.setSize({ width: element.clientWidth, height: HEIGHT })).observe(element);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", build);
  build();
}

const columns = (data) => [data.x, ...data.series.map((series) => series.values)];

function options(element, current, tip) {
  const style = getComputedStyle(element);
  const color = (kind) => style.getPropertyValue(COLORS[kind] ?? COLORS.plain).trim();
  const faint = style.getPropertyValue("--faint").trim();
  const line = style.getPropertyValue("--line").trim();
  const data = current();
  return {
    width: element.clientWidth,
    height: HEIGHT,
    padding: [12, 8, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
    scales: { y: { range: (_, low, high) => [0, Math.max(high ?? 0, ...current().targets.map((target) => target.value)) * 1.2 || 1] } },
    axes: [
      { stroke: faint, font: FONT, grid: { show: false }, ticks: { show: false }, size: 28, space: 72, values: (_, splits) => splits.map(clock) },
      { stroke: faint, font: FONT, grid: { stroke: line, width: 1 }, ticks: { show: false }, size: 44, gap: 8, space: 44 },
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
      draw: [(plot) => drawTargets(plot, current().targets, color, faint), (plot) => drawMarks(plot, current().marks, color, faint)],
      setCursor: [(plot) => showTip(plot, current(), tip)],
    },
  };
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });

// A value between two gaps has no line: it gets a point.
function lonelyValues(plot, index) {
  const values = plot.data[index];
  return values.flatMap((value, at) => (value != null && values[at - 1] == null && values[at + 1] == null ? [at] : []));
}

function drawTargets(plot, targets, color, faint) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([3 * devicePixelRatio, 4 * devicePixelRatio]);
  writeLeft(ctx);
  for (const target of targets) {
    const y = Math.round(plot.valToPos(target.value, "y", true));
    ctx.strokeStyle = color(target.kind);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.fillStyle = faint;
    ctx.fillText(target.text, bbox.left + 6 * devicePixelRatio, y - 6 * devicePixelRatio);
  }
  ctx.restore();
}

function drawMarks(plot, marks, color, faint) {
  const { ctx, bbox } = plot;
  const right = bbox.left + bbox.width;
  ctx.save();
  writeLeft(ctx);
  const taken = [];
  for (const mark of marks) {
    const x = plot.valToPos(mark.x, "x", true);
    if (x < bbox.left || x > right) continue;
    ctx.strokeStyle = ctx.fillStyle = color(mark.kind);
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.globalAlpha = 0.5;
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.beginPath();
    ctx.arc(x, bbox.top + 4 * devicePixelRatio, 3.5 * devicePixelRatio, 0, 2 * Math.PI);
    ctx.fill();
    // The newest marks are the first, and get a text as long as it fits.
    const width = ctx.measureText(mark.text).width;
    const left = x + 8 * devicePixelRatio + width < right ? x + 8 * devicePixelRatio : x - 8 * devicePixelRatio - width;
    if (left < bbox.left || taken.some(([from, to]) => left < to && left + width > from)) continue;
    taken.push([left, left + width]);
    ctx.fillStyle = faint;
    ctx.fillText(mark.text, left, bbox.top + 8 * devicePixelRatio);
  }
  ctx.restore();
}

function writeLeft(ctx) {
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
    line.append(key, `${series.name} `, strong(series.values[idx] == null ? "–" : `${Math.round(series.values[idx]).toLocaleString("en")} ${data.unit}`));
    return line;
  });
  const at = document.createElement("p");
  at.className = "soft";
  at.textContent = clock(data.x[idx]);
  tip.replaceChildren(at, ...lines);
  tip.classList.toggle("chart-tip-left", left > plot.over.clientWidth / 2);
  tip.style.left = `${left}px`;
}

function strong(text) {
  const element = document.createElement("strong");
  element.textContent = text;
  return element;
}
