import { startChart } from "./chart.js";
import { connectLive } from "./live.js";
import "./dialog.js";

for (const element of document.querySelectorAll("[data-chart]")) startChart(element);
connectLive(document.getElementById("live"));
