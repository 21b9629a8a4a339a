// Rewrites times, which the server writes in UTC, to the viewer's zone. The exact time stays the title.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
export const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const short = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

export function localizeTimes(root) {
  const today = day.format(new Date());
  for (const element of root.querySelectorAll("time[data-style]")) {
    const at = new Date(element.dateTime);
    const texts = {
      day: () => day.format(at),
      full: () => `${day.format(at)}, ${clock.format(at)}`,
      time: () => (day.format(at) === today ? clock.format(at) : short.format(at)),
    };
    const text = (texts[element.dataset.style] ?? texts.time)();
    if (element.textContent !== text) element.textContent = text;
    element.title = `${element.dateTime} (shown in ${zone})`;
  }
}
