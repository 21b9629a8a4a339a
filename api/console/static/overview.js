import { startChart } from "./chart.js";
import { connectLive } from "./live.js";

const point = startChart(document.querySelector("[data-chart]"));
connectLive(document.getElementById("live"));

// What the pointer or the focus is on in the list of what happened is shown on the chart.
const list = document.querySelector("[data-part=events]");
const show = (event) => {
  const time = event.target.closest(".feed li")?.querySelector("time");
  point(time ? Math.floor(Date.parse(time.dateTime) / 1000) : null);
};
for (const type of ["pointerover", "focusin"]) list.addEventListener(type, show);
for (const type of ["pointerleave", "focusout"]) list.addEventListener(type, () => point(null));
