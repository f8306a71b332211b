"use strict";
// Charts are drawn by Vega-Lite; here is what hands them their data, moves sliders and sorts tables.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data"), specs = read("specs"), config = read("config");
const views = new Map();

/** Give a chart the data that it names, wherever in it they are named. */
function withData(spec) {
  const names = new Set();
  JSON.stringify(spec, (key, value) => {
    if (key === "data" && value && value.name) names.add(value.name);
    return value;
  });
  return { ...spec, datasets: Object.fromEntries([...names].map((name) => [name, data[name]])) };
}

async function draw(place) {
  const key = place.dataset.chart;
  const actions = { export: true, source: false, compiled: false, editor: false };
  const tooltip = { theme: "page", disableDefaultStyle: true };
  // Only errors are told: that nothing was expected of a chosen search is none.
  const options = { logLevel: 1, mode: "vega-lite", renderer: "svg", config, actions, tooltip, downloadFileName: key };
  const { view } = await window.vegaEmbed(place, withData(specs[key]), options);
  views.set(key, view);
  place.querySelector("summary")?.setAttribute("aria-label", "Save the chart");
  place.dataset.drawn = "true";
}

/** One chart that cannot be drawn costs itself alone. */
function sayWhyNot(place, error) {
  console.error(error);
  const said = document.createElement("p");
  said.className = "warning";
  said.textContent = `This chart cannot be drawn: ${error?.message ?? error}`;
  place.replaceChildren(said);
}

/** Views of the charts of a group that have a signal. */
function viewsOf(group) {
  return [...group.querySelectorAll("[data-chart]")].map((each) => views.get(each.dataset.chart)).filter(Boolean);
}

function control(group) {
  const box = group.querySelector(".control");
  const field = box.querySelector("input, select"), output = box.querySelector("output");
  const choices = JSON.parse(box.dataset.choices);
  const specsOf = [...group.querySelectorAll("[data-chart]")].map((each) => specs[each.dataset.chart]);
  const first = specsOf[0].params.find((each) => each.name === "chosen").value;
  field.addEventListener("input", () => {
    const place = field.tagName === "SELECT" ? field.selectedIndex : Number(field.value);
    if (output) output.textContent = choices[place];
    field.setAttribute("aria-valuetext", choices[place]);
    for (const view of viewsOf(group)) view.signal("chosen", first + place).runAsync();
  });
}

/** Mark the direction that is pointed at in all charts of its group. */
function point(group) {
  const found = viewsOf(group).filter((view) => "pointed" in view.getState().signals);
  for (const view of found) {
    view.addSignalListener("hover", (_, value) => {
      const direction = value?.direction?.[0] ?? 0;
      for (const each of found) each.signal("pointed", direction).runAsync();
    });
  }
}

/** What Vega shows of an element, and where its middle is. */
const toldOf = (element) => [element?.__data__].flat()[0];
function middleOf(element) {
  const { x, y, width, height } = element.getBoundingClientRect();
  return { clientX: x + width / 2, clientY: y + height / 2 };
}

/** The mark at a place or, as fingers are broad, the nearest one beside it. */
function markNear({ target, clientX, clientY }) {
  const answers = (element) => toldOf(element)?.tooltip && toldOf(element).mark.marktype !== "line";
  if (answers(target)) return target;
  let [nearest, least] = [null, 20];
  for (const each of target.closest("[data-chart] svg")?.querySelectorAll(".mark-symbol path") ?? []) {
    const middle = middleOf(each), distance = Math.hypot(middle.clientX - clientX, middle.clientY - clientY);
    if (distance < least && answers(each)) [nearest, least] = [each, distance];
  }
  return nearest;
}

/** A finger does not hover: what it taps is pointed at, until it taps elsewhere. */
let tapped = null;
function tap(event) {
  if (event.pointerType !== "touch") return;
  const point = (mark, type) => mark.dispatchEvent(new PointerEvent(type, { bubbles: true, ...middleOf(mark) }));
  if (tapped) point(tapped, "pointerout");
  document.getElementById("vg-tooltip-element")?.classList.remove("visible"); // the mark may be drawn anew
  tapped = markNear(event);
  if (tapped) for (const type of ["pointerover", "pointermove"]) point(tapped, type);
}
document.addEventListener("click", tap);

function sort(button) {
  const header = button.closest("th"), table = button.closest("table");
  const column = header.cellIndex, body = table.tBodies[0];
  const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const each of header.parentNode.cells) each.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", order);
  const value = (row) => row.cells[column].dataset.sort;
  const compare = (a, b) =>
    a !== "" && b !== "" && Number.isFinite(+a) && Number.isFinite(+b)
      ? a - b
      : a.localeCompare(b, "en", { numeric: true });
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].sort((a, b) => {
    const [first, second] = [value(a), value(b)];
    if ((first === "") !== (second === "")) return first === "" ? 1 : -1; // empty ones stay below
    return sign * compare(first, second);
  });
  body.append(...rows);
}

for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sort(button));

(async () => {
  for (const place of document.querySelectorAll("[data-chart]")) {
    try {
      await draw(place);
    } catch (error) {
      sayWhyNot(place, error);
    }
    await new Promise(requestAnimationFrame); // the page stays alive meanwhile
  }
  for (const group of document.querySelectorAll(".charts")) {
    if (group.querySelector(".control")) control(group);
    point(group);
  }
  document.documentElement.dataset.ready = "true";
})();
