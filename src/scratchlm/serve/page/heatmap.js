// Numbers in rows and columns as colours, on a canvas: one pixel each, or a large one with labels and a cursor.

import { colour, recoloured, scale } from "./colours.js";
import { h, short } from "./dom.js";

/**
 * What is drawn: `value(row, column)` from 0 to 1 (or -1 to 1 where `signed`), null where there is nothing to see;
 * `rows` and `columns` are labels; `says(row, column)` is the cell in words.
 * `square` cells are as high as wide.
 * @typedef {{rows: string[], columns: string[], value: Function, says: Function, signed?: boolean,
 *   square?: boolean}} Grid
 */

/** Draw the numbers one pixel a cell. */
export function paint(canvas, grid) {
  const [height, width] = [grid.rows.length, grid.columns.length];
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const shade = scale(grid.signed);
  for (let row = 0, at = 0; row < height; row++) {
    for (let column = 0; column < width; column++, at += 4) {
      const value = grid.value(row, column);
      if (value === null) continue; // stays transparent: the ground of the canvas shows
      const [red, green, blue] = shade(value);
      image.data[at] = red;
      image.data[at + 1] = green;
      image.data[at + 2] = blue;
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

const FONT = 11; // pixels
const CHARACTER = 6.7; // its width in the font of the labels
const LONGEST = 10; // characters of a label
const KEYS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

/** The large one. `point(row, column)` when a cell is pointed at, `press(row, column)` when it is chosen. */
export function heatMap(name, { point = () => {}, press = () => {} } = {}) {
  const canvas = h("canvas", { class: "heat", tabindex: 0, role: "application", "aria-label": name,
    "aria-roledescription": "heat map, arrow keys move" });
  const scroller = h("div", { class: "scroller" }, canvas);
  const readout = h("p", { class: "readout", role: "status" });
  const element = h("div", { class: "heat-map" }, scroller, readout);
  const cells = document.createElement("canvas");
  let grid = null;
  let cursor = null;
  let at = { left: 0, top: 0, width: 1, height: 1 }; // of the cells, in pixels

  function layout() {
    const rows = grid.rows.map((label) => short(label, LONGEST));
    const columns = grid.columns.map((label) => short(label, LONGEST));
    const longest = (labels) => Math.max(...labels.map((label) => [...label].length), 1);
    const left = Math.ceil(longest(rows) * CHARACTER) + 8;
    const upright = longest(columns) === 1;
    const top = upright ? FONT + 8 : Math.ceil(longest(columns) * CHARACTER) + 8;
    const room = scroller.clientWidth - left - 2;
    const width = Math.max(Math.min(Math.floor(room / columns.length), 26), grid.square ? 4 : 6);
    const height = grid.square ? width : Math.max(2, Math.min(14, Math.floor(520 / rows.length)));
    at = { left, top, width, height, rows, columns };
  }

  function draw() {
    if (!grid || !scroller.clientWidth) return;
    layout();
    const { left, top, width, height, rows, columns } = at;
    const [wide, high] = [left + width * columns.length + 1, top + height * rows.length + 1];
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.ceil(wide * ratio);
    canvas.height = Math.ceil(high * ratio);
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${high}px`;
    paint(cells, grid);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    context.fillStyle = colour("--unseen");
    context.fillRect(left, top, width * columns.length, height * rows.length);
    context.drawImage(cells, left, top, width * columns.length, height * rows.length);
    context.font = `${FONT}px ui-monospace, monospace`;
    context.fillStyle = colour("--muted");
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = (size) => Math.ceil((FONT + 1) / size);
    for (let row = 0; row < rows.length; row += every(height)) {
      context.fillText(rows[row], left - 5, top + (row + 0.5) * height);
    }
    for (let column = 0; column < columns.length; column += every(width)) {
      context.save();
      context.translate(left + (column + 0.5) * width, top - 5);
      const stands = [...columns[column]].length === 1;
      context.textAlign = stands ? "center" : "left";
      context.textBaseline = stands ? "bottom" : "middle";
      if (!stands) context.rotate(-Math.PI / 2);
      context.fillText(columns[column], 0, 0);
      context.restore();
    }
    if (cursor) {
      context.strokeStyle = colour("--ink");
      context.lineWidth = 1.5;
      context.strokeRect(left + cursor[1] * width, top + cursor[0] * height, width, height);
    }
  }

  function go(row, column) {
    if (cursor?.[0] === row && cursor?.[1] === column) return;
    cursor = [row, column];
    readout.textContent = grid.says(row, column);
    draw();
    point(row, column);
  }

  function under(event) {
    const box = canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top - at.top) / at.height);
    const column = Math.floor((event.clientX - box.left - at.left) / at.width);
    const inside = grid && row >= 0 && column >= 0 && row < grid.rows.length && column < grid.columns.length;
    return inside ? [row, column] : null;
  }

  canvas.addEventListener("pointermove", (event) => {
    const cell = under(event);
    if (cell) go(...cell);
  });
  canvas.addEventListener("click", (event) => {
    const cell = under(event);
    if (!cell) return;
    go(...cell);
    press(...cell);
  });
  canvas.addEventListener("keydown", (event) => {
    if (!grid) return;
    if (event.key === "Enter" && cursor) press(...cursor);
    const step = KEYS[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = cursor ?? [0, 0];
    const inside = (value, size) => Math.min(Math.max(value, 0), size - 1);
    if (cursor) go(inside(row + step[0], grid.rows.length), inside(column + step[1], grid.columns.length));
    else go(0, 0);
  });
  let drawn = 0;
  new ResizeObserver(() => {
    if (scroller.clientWidth === drawn) return;
    drawn = scroller.clientWidth;
    draw();
  }).observe(scroller);
  recoloured(draw);

  return {
    element,
    canvas,
    /** Show this grid; `hint` stands where a cell's numbers will. */
    set(shown, hint) {
      grid = shown;
      cursor = null;
      readout.textContent = hint;
      draw();
    },
  };
}

/** The scale, with numbers: `marks` are [where from 0 to 1, what is written there]. */
export function legend(words, marks) {
  return h("p", { class: "legend" }, h("span", {}, words),
    marks.map(([value, text]) => {
      const swatch = h("span", { class: value < 0 ? "swatch cold" : "swatch" });
      const strength = Math.abs(value);
      swatch.style.setProperty("--s", `${Math.round(100 * (strength < 0.5 ? 2 * strength : 2 * strength - 1))}%`);
      swatch.classList.toggle("strong", strength >= 0.5);
      return h("span", { class: "mark" }, swatch, text);
    }));
}
