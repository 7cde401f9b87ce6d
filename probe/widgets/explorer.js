// One view of attention records, for a notebook (a kernel answers) and for a page (everything is in the file).
// Plain DOM; nothing is asked from any network. Whatever comes from data is shown with textContent and never parsed as HTML.

const VERSION = 1;
const MISSING = 255; // stands for a patch without a value
const MOST_PANELS = 8;
const KEPT_SHEETS = 12; // of about two megabytes each at 32 layers x 32 heads
const KEPT_BYTES = 60e6; // of unpacked words of a page
const PLAY_MS = 400;
const PANEL_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999"]; // Okabe and Ito
const KEYS = [
  ["← →", "head"], ["↑ ↓", "layer"], [", .", "word"], ["[ ]", "timestep"], ["r R", "record"], ["h", "mean over heads"],
  ["a", "mean over everything"], ["c", "keep this map to compare"], ["Esc", "drop what is compared"], ["Space", "play layers"],
  ["o", "outline"], ["e", "subtract the mean or not"], ["?", "these keys"],
];

// ---------------------------------------------------------------------------------------------------------------- small helpers

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(className, text, title, onClick) {
  const made = element("button", className, text);
  made.type = "button";
  if (title) made.title = title;
  made.addEventListener("click", onClick);
  return made;
}

function replaceText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const sameList = (one, other) => one.length === other.length && one.every((each, i) => each === other[i]);

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// A number with as many digits as its error leaves it; exact ones with four.
function number(value, slack = 0) {
  if (!Number.isFinite(value)) return "none";
  if (value === 0 && !slack) return "0";
  if (!slack) return String(Number(value.toPrecision(4)));
  const digits = clamp(Math.ceil(-Math.log10(slack)), 0, 12);
  return `${value.toFixed(digits)} ± ${slack.toPrecision(1)}`;
}

function share(value) {
  return `${Number((100 * value).toPrecision(3))} %`;
}

// --------------------------------------------------------------------------------------------------------- sheets: maps of a word

// The maps of some tokens of one view: {overall, means[layer], heads[layer][head]} as Float32Arrays in reading order of the
// patches, with the largest error of each: {means[layer], heads[layer][head]}; heads is null where the file leaves them out.

const cells = (grid) => grid.rows.length * grid.cols.length;

// Maps of so many patches each: scales, levels, the commonest number of each, and numbers counted from there; or exact ones.
function unpack(bytes, offset, counts, exact) {
  if (exact) return unpackExact(bytes, offset, counts);
  const scales = new Float32Array(bytes.slice(offset, offset + counts.length * 8).buffer);
  const levels = bytes.subarray(offset + counts.length * 8);
  const commonest = levels.subarray(counts.length);
  let at = offset + counts.length * 10;
  const errors = [];
  const all = new Float32Array(counts.reduce((sum, count) => sum + count, 0));
  let to = 0;
  const maps = counts.map((count, index) => {
    const low = scales[2 * index];
    const step = (scales[2 * index + 1] - low) / levels[index];
    const start = commonest[index];
    for (let i = 0; i < count; i += 1) {
      const moved = bytes[at + i] + start;
      all[to + i] = bytes[at + i] === MISSING ? NaN : low + (moved >= MISSING ? moved - MISSING : moved) * step;
    }
    at += count;
    errors.push(step / 2);
    return all.subarray(to, (to += count));
  });
  return { maps, errors };
}

function unpackExact(bytes, offset, counts) {
  const all = new Float32Array(bytes.slice(offset).buffer);
  let at = 0;
  const maps = counts.map((count) => all.subarray(at, (at += count)));
  return { maps, errors: counts.map(() => 0) };
}

function readMeans(bytes, view, exact) {
  const count = cells(view.grids[view.overall]);
  const overall = new Float32Array(bytes.slice(0, 4 * count).buffer);
  const counts = view.layers.map((one) => cells(view.grids[one.grid]));
  const { maps, errors } = unpack(bytes, 4 * count, counts, exact);
  return { overall, means: maps, meanErrors: errors };
}

function readHeads(bytes, view, exact) {
  const counts = view.layers.flatMap((one) => one.heads.map(() => cells(view.grids[one.grid])));
  const { maps, errors } = unpack(bytes, 0, counts, exact);
  let at = 0;
  const heads = [];
  const headErrors = [];
  for (const one of view.layers) {
    heads.push(maps.slice(at, at + one.heads.length));
    headErrors.push(errors.slice(at, at + one.heads.length));
    at += one.heads.length;
  }
  return { heads, headErrors };
}

function addScaled(target, source, factor) {
  for (let i = 0; i < target.length; i += 1) target[i] += factor * source[i];
}

// The weighted sum of several sheets, errors added: how a phrase's mean and the other reading are made in a page.
function combine(sheets, factors) {
  if (sheets.length === 1) return sheets[0];
  const blank = (map) => new Float32Array(map.length);
  const [first] = sheets;
  const sum = {
    overall: blank(first.overall),
    means: first.means.map(blank),
    heads: first.heads && first.heads.map((layer) => layer.map(blank)),
    meanErrors: first.meanErrors.map(() => 0),
    headErrors: first.headErrors && first.headErrors.map((layer) => layer.map(() => 0)),
  };
  sheets.forEach((sheet, index) => {
    const factor = factors[index];
    addScaled(sum.overall, sheet.overall, factor);
    sum.means.forEach((map, layer) => addScaled(map, sheet.means[layer], factor));
    addScaled(sum.meanErrors, sheet.meanErrors, factor);
    if (sum.heads) {
      sum.heads.forEach((layer, i) => layer.forEach((map, j) => addScaled(map, sheet.heads[i][j], factor)));
      sum.headErrors.forEach((layer, i) => addScaled(layer, sheet.headErrors[i], factor));
    }
  });
  return sum;
}

class Cache {
  constructor(size) {
    this.size = size;
    this.kept = new Map();
  }

  get(key, make) {
    const known = this.kept.get(key);
    const value = known === undefined ? make() : known;
    this.kept.delete(key);
    this.kept.set(key, value);
    if (this.kept.size > this.size) this.kept.delete(this.kept.keys().next().value);
    // What failed once may succeed the next time.
    if (value instanceof Promise) value.catch(() => this.kept.delete(key));
    return value;
  }
}

// Maps that are in the page itself.
class PageSource {
  constructor(contents, page) {
    this.contents = contents;
    this.page = page;
    this.blocks = new Map();
    this.unpacked = 0; // bytes of blocks that are kept
    this.tokens = new Cache(KEPT_SHEETS);
    this.sheets = new Cache(KEPT_SHEETS);
    this.numbers = new Cache(400);
  }

  sheet(selection) {
    const { record, view, timestep, tokens, reading } = selection;
    return this.sheets.get([record, view, timestep, tokens.join("+"), reading].join("|"), () => this.made(selection));
  }

  async made({ record, view, timestep, tokens, reading }) {
    const base = this.contents.records[record].readings[0];
    const parts = tokens.map((token) => this.token(record, view, timestep, token));
    const factors = tokens.map(() => 1 / tokens.length);
    if (reading !== base) {
      parts.push(this.token(record, view, timestep, null));
      factors.push(1);
    }
    return combine(await Promise.all(parts), factors);
  }

  token(record, view, timestep, token) {
    const place = [record, view, timestep ?? "mean", token ?? "mean"].join("-");
    return this.tokens.get(place, async () => {
      const shape = this.contents.records[record].views[view];
      const [means, heads] = await Promise.all([this.block(`means-${place}`), this.block(`heads-${place}`)]);
      const { exact } = this.contents.kept;
      const missing = { heads: null, headErrors: null };
      return { ...readMeans(means, shape, exact), ...(heads ? readHeads(heads, shape, exact) : missing) };
    });
  }

  block(name) {
    const known = this.blocks.get(name);
    if (known) return known;
    const found = this.page.getElementById(name);
    if (!found) return Promise.resolve(null);
    const made = inflate(bytesOf(found.textContent));
    if (this.unpacked < KEPT_BYTES) {
      this.blocks.set(name, made);
      made.then((bytes) => (this.unpacked += bytes.length), () => this.blocks.delete(name));
    }
    return made;
  }

  // While nobody waits, the words that may be clicked next are unpacked.
  prepare({ record, view, timestep }) {
    const tokens = this.contents.records[record].tokens.map((_, token) => token);
    const names = [...tokens, "mean"].flatMap((token) => ["means", "heads"].map((kind) => [kind, record, view, timestep ?? "mean", token].join("-")));
    const wait = window.requestIdleCallback ?? ((work) => setTimeout(work, 50));
    const next = () => {
      const name = names.shift();
      if (name && this.unpacked < KEPT_BYTES) this.block(name).then(() => wait(next), () => {});
    };
    wait(next);
  }

  exact() {
    return null; // a page holds nothing more exact than its sheets
  }

  async scores({ record, view, timestep, layer, head, reading }, phrase) {
    const own = this.contents.records[record].views[view].scores;
    const step = own?.[reading]?.[timestep === null ? "mean" : String(timestep)];
    if (!step) return null;
    const { metrics, columns } = this.contents;
    const count = this.contents.records[record].phrases.filter((one) => one.mask !== null).length;
    const place = this.decoded(step.places[layer === null ? 0 : layer + 1]);
    const rows = metrics.map((metric, m) => ({
      metric,
      reason: "",
      values: columns.map((_, c) => place[(m * columns.length + c) * count + phrase]),
    }));
    if (head !== null) {
      if (!step.heads) return null;
      const heads = this.decoded(step.heads[layer]);
      const several = this.contents.records[record].views[view].layers[layer].heads.length;
      rows.forEach((row, m) => {
        row.values[0] = heads[(m * several + head) * count + phrase];
        row.values[columns.indexOf("other_phrase")] = undefined;
      });
    }
    return rows;
  }

  decoded(text) {
    return this.numbers.get(text, () => new Float64Array(bytesOf(text).buffer));
  }
}

// Maps that the kernel of a notebook makes when they are asked for.
class KernelSource {
  constructor(contents, model) {
    this.contents = contents;
    this.model = model;
    this.waiting = new Map();
    this.patience = 20000; // milliseconds
    this.sheets = new Cache(KEPT_SHEETS);
    this.maps = new Cache(400);
    this.next = 0;
    this.answered = (answer, buffers) => this.receive(answer, buffers);
    model.on("msg:custom", this.answered);
  }

  close() {
    this.model.off("msg:custom", this.answered);
    for (const { timer } of this.waiting.values()) clearTimeout(timer);
  }

  ask(kind, selection) {
    const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}-${(this.next += 1)}`;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.waiting.delete(id);
        reject(new Error("The kernel does not answer: it is busy or gone. Run the cell again when it is free."));
      }, this.patience);
      this.waiting.set(id, { resolve, reject, timer });
      this.model.send({ id, kind, ...selection });
    });
  }

  receive(answer, buffers) {
    const waiting = this.waiting.get(answer.id);
    if (!waiting) return; // another view of the same widget asked
    this.waiting.delete(answer.id);
    clearTimeout(waiting.timer);
    if (answer.error) waiting.reject(new Error(answer.error));
    else {
      const bytes = buffers.map((one) => new Uint8Array(one.buffer ?? one, one.byteOffset ?? 0, one.byteLength));
      waiting.resolve({ answer, bytes });
    }
  }

  sheet(selection) {
    const { record, view, timestep, tokens, reading } = selection;
    return this.sheets.get([record, view, timestep, tokens.join("+"), reading].join("|"), async () => {
      const { bytes } = await this.ask("sheet", { record, view, timestep, tokens, reading });
      const shape = this.contents.records[record].views[view];
      return { ...readMeans(bytes[0], shape, true), ...readHeads(bytes[1], shape, false) };
    });
  }

  exact({ record, view, timestep, tokens, reading, layer, head }) {
    const key = [record, view, timestep, tokens.join("+"), reading, layer, head].join("|");
    return this.maps.get(key, async () => {
      const { answer, bytes } = await this.ask("map", { record, view, timestep, tokens, reading, layer, head });
      return { values: new Float32Array(bytes[0].slice().buffer), scores: answer.scores };
    });
  }

  async scores(selection) {
    return (await this.exact(selection)).scores;
  }
}

// -------------------------------------------------------------------------------------------------------------------- colours

class Colours {
  constructor(tables) {
    this.tables = Object.fromEntries(Object.entries(tables).map(([name, text]) => [name, new Uint32Array(bytesOf(text).buffer)]));
  }

  table(dark, signed) {
    return this.tables[`${dark ? "dark" : "light"}${signed ? " signed" : ""}`];
  }
}

// The colour's place in a table, or -1 for what is not drawn: no value, or one below a scale that begins at zero.
function level(value, [low, high], signed) {
  if (!(value >= low) && !signed) return -1;
  if (Number.isNaN(value)) return -1;
  return clamp(Math.round((255 * (value - low)) / (high - low)), 0, 255);
}

function css(table, index) {
  const word = table[index];
  return `rgba(${word & 255},${(word >> 8) & 255},${(word >> 16) & 255},${((word >>> 24) / 255).toFixed(4)})`;
}

// Largest value, and with signed maps the largest distance from zero, of the patches that show some of the image.
function extreme({ values, grid }, signed) {
  let most = 0;
  const cols = grid.cols.length;
  for (let row = 0; row < grid.rows.length; row += 1) {
    if (!grid.rows[row][2]) continue;
    for (let col = 0; col < cols; col += 1) {
      const value = values[row * cols + col];
      const size = signed && value < 0 ? -value : value;
      if (size > most && grid.cols[col][2]) most = size;
    }
  }
  return most;
}

function limitsOf(most, signed) {
  const top = most > 0 ? most : 1; // nothing above zero: an empty picture, whatever the scale
  return [signed ? -top : 0, top];
}

function isDark(node) {
  const themed = node.closest("[data-theme], [data-jp-theme-light]") ?? document.querySelector("[data-jp-theme-light]");
  if (themed?.dataset.theme) return themed.dataset.theme === "dark";
  if (themed?.dataset.jpThemeLight) return themed.dataset.jpThemeLight === "false";
  if (document.body.classList.contains("vscode-dark")) return true;
  if (document.body.classList.contains("vscode-light")) return false;
  return window.matchMedia("(prefers-color-scheme: dark)").matches;
}

// --------------------------------------------------------------------------------------------------------- one map on its image

class Panel {
  constructor(explorer) {
    this.explorer = explorer;
    this.root = element("figure", "panel");
    this.title = element("figcaption", "panel-title");
    this.badge = element("span", "badge");
    this.name = element("span", "panel-name");
    this.close = button("plain close", "×", "Drop this map from the comparison", () => explorer.drop(this.override));
    this.title.append(this.badge, this.name, this.close);
    this.stage = element("div", "stage");
    this.image = element("img");
    this.image.alt = "";
    this.map = element("canvas", "map");
    this.marks = element("canvas", "marks");
    this.marks.setAttribute("role", "img");
    this.message = element("p", "message");
    this.stage.append(this.image, this.map, this.marks, this.message);
    this.readout = element("p", "readout");
    this.table = element("div", "scores");
    this.root.append(this.title, this.stage, this.readout, this.table);
    this.marks.addEventListener("pointermove", (event) => this.point(event));
    this.marks.addEventListener("pointerleave", () => explorer.hover(null));
  }

  point(event) {
    const box = this.marks.getBoundingClientRect();
    const [height, width] = this.view.size;
    const row = ((event.clientY - box.top) / box.height) * height;
    const col = ((event.clientX - box.left) / box.width) * width;
    this.explorer.hover([clamp(row, 0, height - 1e-6), clamp(col, 0, width - 1e-6)]);
  }

  // What is shown: the resolved selection, its map {values, grid, error}, and why there is none.
  show(selection, map, why) {
    const { contents } = this.explorer;
    const record = contents.records[selection.record];
    this.selection = selection;
    this.view = record.views[selection.view];
    this.data = map;
    const picture = this.view.picture === null ? undefined : contents.images[this.view.picture];
    this.image.hidden = !picture;
    this.stage.classList.toggle("alone", !picture);
    this.stage.classList.toggle("sharp", Boolean(picture?.sharp));
    if (picture && this.image.src !== picture.source) this.image.src = picture.source;
    this.stage.style.setProperty("--shape", `${this.view.size[1]} / ${this.view.size[0]}`);
    this.stage.style.setProperty("--ratio", `${this.view.size[1] / this.view.size[0]}`);
    this.why = why;
    this.phrase = this.explorer.maskedPhrase(selection);
    replaceText(this.name, this.explorer.describe(selection));
    this.marks.setAttribute("aria-label", `Map of ${this.explorer.describe(selection)}`);
  }

  draw(limits, dark) {
    const box = this.stage.getBoundingClientRect();
    const density = window.devicePixelRatio || 1;
    for (const canvas of [this.map, this.marks]) {
      const width = Math.max(1, Math.round(box.width * density));
      const height = Math.max(1, Math.round(box.height * density));
      if (canvas.width !== width || canvas.height !== height) {
        canvas.width = width;
        canvas.height = height;
      }
    }
    this.limits = limits;
    const context = this.map.getContext("2d", { willReadFrequently: true });
    context.clearRect(0, 0, this.map.width, this.map.height);
    replaceText(this.message, this.why ?? "");
    this.message.hidden = !this.why;
    if (this.data) this.patches(context, limits, dark);
    this.mark();
  }

  // Each patch as the rectangle of the image that it covers, up to whole pixels of the screen so that neighbours meet.
  patches(context, limits, dark) {
    const { values, grid } = this.data;
    const { signed } = this.explorer.contents.records[this.selection.record];
    const table = this.explorer.colours.table(dark, signed);
    const rows = this.edges(grid.rows, this.view.size[0], this.map.height);
    const cols = this.edges(grid.cols, this.view.size[1], this.map.width);
    for (let row = 0; row < rows.length; row += 1) {
      const [top, bottom] = rows[row];
      if (bottom <= top) continue;
      for (let col = 0; col < cols.length; col += 1) {
        const [left, right] = cols[col];
        const index = level(values[row * cols.length + col], limits, signed);
        if (index < 0 || right <= left) continue;
        context.fillStyle = css(table, index);
        context.fillRect(left, top, right - left, bottom - top);
      }
    }
  }

  edges(axis, length, pixels) {
    return axis.map(([low, high]) => [Math.round((low / length) * pixels), Math.round((high / length) * pixels)]);
  }

  mark() {
    const context = this.marks.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.marks.width, this.marks.height);
    const [height, width] = this.view.size;
    const scale = [this.marks.width / width, this.marks.height / height];
    context.setTransform(scale[0], 0, 0, scale[1], 0, 0);
    const pixel = (window.devicePixelRatio || 1) / scale[0];
    this.hatch(context, pixel);
    if (this.phrase && this.explorer.state.outline) this.outline(context, pixel);
    const cell = this.cell();
    if (cell) {
      const { grid } = this.data;
      const [top, bottom] = grid.rows[cell[0]];
      const [left, right] = grid.cols[cell[1]];
      for (const [style, wide] of [["#000", 3], ["#fff", 1.3]]) {
        context.strokeStyle = style;
        context.lineWidth = wide * pixel;
        context.strokeRect(left, top, right - left, bottom - top);
      }
    }
  }

  outline(context, pixel) {
    const path = new Path2D(this.phrase.outline);
    context.strokeStyle = "#000";
    context.lineWidth = 3.4 * pixel;
    context.stroke(path);
    context.strokeStyle = "#fff";
    context.lineWidth = 1.6 * pixel;
    context.stroke(path);
  }

  // What the model never saw, because it was cropped away.
  hatch(context, pixel) {
    this.unseen = false;
    const grid = this.data?.grid;
    if (!grid) return;
    const [height, width] = this.view.size;
    const top = clamp(grid.row_edges[0], 0, height);
    const bottom = clamp(grid.row_edges.at(-1), 0, height);
    const left = clamp(grid.col_edges[0], 0, width);
    const right = clamp(grid.col_edges.at(-1), 0, width);
    const bands = [[0, 0, top, width], [bottom, 0, height, width], [top, 0, bottom, left], [top, right, bottom, width]];
    for (const [low, from, high, to] of bands) {
      if (Math.min(high - low, to - from) < 0.5) continue; // slivers from the processor's rounding are no crop
      this.unseen = true;
      context.save();
      context.beginPath();
      context.rect(from, low, to - from, high - low);
      context.fillStyle = "rgba(200,200,200,0.75)";
      context.fill();
      context.clip();
      context.strokeStyle = "rgba(90,90,90,0.8)";
      context.lineWidth = pixel;
      context.beginPath();
      for (let at = from - (high - low); at < to; at += 7 * pixel) {
        context.moveTo(at, high);
        context.lineTo(at + (high - low), low);
      }
      context.stroke();
      context.restore();
    }
  }

  // (row, col) of the patch under the pointer, or null.
  cell() {
    const at = this.explorer.pointed;
    if (!at || !this.data) return null;
    const find = (axis, place) => axis.findIndex(([low, high]) => place >= low && place < high);
    const found = [find(this.data.grid.rows, at[0]), find(this.data.grid.cols, at[1])];
    return found.includes(-1) ? null : found;
  }

  read() {
    const at = this.explorer.pointed;
    if (!this.data) {
      replaceText(this.readout, "");
      return;
    }
    const { values, grid, error } = this.data;
    const cell = this.cell();
    if (!at) {
      replaceText(this.readout, `${grid.rows.length} × ${grid.cols.length} patches; largest ${number(extreme(this.data, false), error)}`);
    } else if (!cell) {
      replaceText(this.readout, "no patch: cropped away, unseen by the model");
    } else {
      const [row, col] = cell;
      const [top, bottom, tall] = grid.rows[row];
      const [left, right, wide] = grid.cols[col];
      const value = number(values[row * grid.cols.length + col], error);
      const part = tall * wide < 1 ? `; ${share(tall * wide)} of the patch is image` : "";
      const pixels = `pixel rows ${number(top)} to ${number(bottom)}, cols ${number(left)} to ${number(right)}`;
      replaceText(this.readout, `row ${row}, col ${col}: ${value}; ${pixels}${part}`);
    }
  }

  // Metrics across; the map and what it must be compared with down.
  score(rows, columns) {
    this.table.replaceChildren();
    if (!rows) return;
    const table = element("table");
    const head = element("tr");
    head.append(element("th", "", ""), ...rows.map((one) => element("th", "", one.metric)));
    table.append(head);
    columns.forEach((name, i) => {
      const line = element("tr");
      line.append(element("th", "", name.replaceAll("_", " ")));
      rows.forEach(({ values, reason }) => {
        const value = values[i] ?? undefined;
        const known = Number.isFinite(value);
        const cell = element("td", "", known ? value.toFixed(3) : "–");
        if (!known) cell.title = (i === 0 && reason) || "no answer, or not kept in this file";
        line.append(cell);
      });
      table.append(line);
    });
    this.table.append(table);
    if (rows.some((one) => one.values.includes(undefined))) {
      this.table.append(element("p", "small", "“other phrase” of single heads is not kept in this file."));
    }
  }
}

// ------------------------------------------------------------------------------------------------- layers x heads, small multiples

class HeadGrid {
  constructor(explorer) {
    this.explorer = explorer;
    this.root = element("div", "grid");
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "application");
    this.root.setAttribute("aria-label", "Layers down, heads across; arrow keys move, C compares");
    this.canvas = element("canvas", "cells");
    this.marks = element("canvas", "cells");
    this.space = element("div", "space");
    this.window = element("div", "window");
    this.window.append(this.canvas, this.marks);
    this.root.append(this.space, this.window);
    this.readout = element("p", "readout");
    this.rows = new Map(); // layer -> its maps side by side as pixels, made when they are first scrolled into view
    this.drawn = 0;
    this.root.addEventListener("scroll", () => this.draw());
    this.marks.addEventListener("click", (event) => {
      const found = this.find(event);
      if (!found) return;
      if (event.shiftKey) explorer.compare(found);
      else explorer.set(found);
    });
    this.marks.addEventListener("pointermove", (event) => this.say(this.find(event)));
    this.marks.addEventListener("pointerleave", () => this.say(null));
  }

  show(selection, sheet) {
    const record = this.explorer.contents.records[selection.record];
    this.selection = selection;
    this.record = record;
    this.view = record.views[selection.view];
    this.sheet = sheet;
    this.scale = this.explorer.state.gridScale;
    this.rows.clear();
  }

  // One scale for all maps ends where one patch in 200 goes beyond it: a single patch of great weight would leave all else blank.
  limits() {
    if (!this.sheet || this.explorer.state.gridScale === "own") return null;
    const { signed } = this.record;
    const total = this.view.layers.reduce((sum, one) => sum + one.heads.length * cells(this.view.grids[one.grid]), 0);
    const every = Math.ceil(total / 20000); // of very many patches some tell enough
    const sizes = [];
    this.view.layers.forEach((layer, i) => {
      const { rows, cols } = this.view.grids[layer.grid];
      for (const values of this.sheet.heads ? this.sheet.heads[i] : [this.sheet.means[i]]) {
        for (let at = i % every; at < values.length; at += every) {
          const value = signed ? Math.abs(values[at]) : values[at];
          if (value === value && rows[Math.floor(at / cols.length)][2] && cols[at % cols.length][2]) sizes.push(value);
        }
      }
    });
    const sorted = Float32Array.from(sizes).sort();
    return limitsOf(sorted[Math.floor(0.995 * (sorted.length - 1))] ?? 0, signed);
  }

  // Sizes in pixels of the page: a cell has the shape of the image, as large as fits.
  layout() {
    const width = this.root.clientWidth || 300;
    const most = Math.max(...this.view.layers.map((one) => one.heads.length));
    const [tall, wide] = this.view.size;
    this.left = 34;
    this.top = 18;
    this.gap = 2;
    this.columns = 1 + (this.sheet?.heads ? most : 0);
    const room = (width - this.left - 8) / this.columns - this.gap;
    // Wide cells of few layers would fill the screen, and of many be too small to see.
    const shape = clamp(wide / tall, 0.5, 2);
    const high = ((0.78 * window.innerHeight - this.top - 20) / this.view.layers.length - this.gap) * shape;
    this.cellWidth = clamp(Math.min(room, Math.max(high, 30)), 16, 110 * Math.sqrt(shape));
    this.cellHeight = clamp(this.cellWidth / shape, 10, 140);
    this.meanGap = 6; // between the layer's mean and its heads
  }

  x(column) {
    return this.left + column * (this.cellWidth + this.gap) + (column > 0 ? this.meanGap : 0);
  }

  y(layer) {
    return this.top + layer * (this.cellHeight + this.gap);
  }

  draw() {
    if (!this.view) return;
    this.layout();
    const density = window.devicePixelRatio || 1;
    this.space.style.width = `${this.x(this.columns)}px`;
    this.space.style.height = `${this.y(this.view.layers.length)}px`;
    this.root.style.setProperty("--grid-height", `${this.y(this.view.layers.length) + 18}px`);
    const width = this.root.clientWidth;
    const height = this.root.clientHeight;
    for (const canvas of [this.canvas, this.marks]) {
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      if (canvas.width !== Math.round(width * density)) canvas.width = Math.round(width * density);
      if (canvas.height !== Math.round(height * density)) canvas.height = Math.round(height * density);
    }
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, width, height);
    const dark = isDark(this.root);
    if (dark !== this.dark) this.rows.clear();
    this.dark = dark;
    if (!this.rows.size) this.shared = this.limits();
    const [scrollX, scrollY] = [this.root.scrollLeft, this.root.scrollTop];
    const colour = getComputedStyle(this.root);
    const ground = colour.getPropertyValue("--ground");
    context.font = "10px system-ui, sans-serif";
    this.drawn = 0;
    const first = Math.max(0, Math.floor((scrollY - this.top) / (this.cellHeight + this.gap)));
    for (let layer = first; layer < this.view.layers.length && this.y(layer) < scrollY + height; layer += 1) {
      this.drawRow(context, layer, scrollX, scrollY, width, dark, ground);
    }
    this.names(context, scrollX, scrollY, width, colour);
    this.mark();
    this.say(null);
  }

  drawRow(context, layer, scrollX, scrollY, width, dark, ground) {
    if (!this.sheet) return;
    const one = this.view.layers[layer];
    const grid = this.view.grids[one.grid];
    const atlas = this.atlas(layer, dark);
    const count = 1 + (this.sheet.heads ? one.heads.length : 0);
    const place = placeOf(grid, this.view.size);
    const y = this.y(layer) - scrollY;
    context.fillStyle = ground;
    // Fewer pixels than patches are averaged, and more show each patch as it is.
    context.imageSmoothingEnabled = this.cellWidth * (window.devicePixelRatio || 1) < grid.cols.length;
    for (let column = 0; column < count; column += 1) {
      const x = this.x(column) - scrollX;
      if (x + this.cellWidth < this.left || x > width) continue;
      context.fillRect(x, y, this.cellWidth, this.cellHeight);
      context.drawImage(
        atlas, column * grid.cols.length + place.from[1], place.from[0], place.size[1], place.size[0],
        x + place.to[1] * this.cellWidth, y + place.to[0] * this.cellHeight,
        place.part[1] * this.cellWidth, place.part[0] * this.cellHeight,
      );
      this.drawn += 1;
    }
  }

  // A layer's maps side by side, one pixel a patch.
  atlas(layer, dark) {
    if (this.rows.has(layer)) return this.rows.get(layer);
    const grid = this.view.grids[this.view.layers[layer].grid];
    const maps = [this.sheet.means[layer], ...(this.sheet.heads ? this.sheet.heads[layer] : [])];
    const [rows, cols] = [grid.rows.length, grid.cols.length];
    const canvas = document.createElement("canvas");
    canvas.width = cols * maps.length;
    canvas.height = rows;
    const pixels = new ImageData(canvas.width, canvas.height);
    const words = new Uint32Array(pixels.data.buffer);
    const { signed } = this.record;
    const table = this.explorer.colours.table(dark, signed);
    maps.forEach((values, index) => {
      const [low, high] = this.shared ?? limitsOf(extreme({ values, grid }, signed), signed);
      const factor = 255 / (high - low);
      for (let row = 0, at = 0; row < rows; row += 1) {
        for (let col = 0, to = row * canvas.width + index * cols; col < cols; col += 1, at += 1, to += 1) {
          const place = (values[at] - low) * factor + 0.5;
          if (place >= 255) words[to] = table[255];
          else if (place >= 0.5) words[to] = table[place | 0];
          else if (signed && place < 0.5) words[to] = table[0]; // below a scale that begins at zero, and without a value: nothing
        }
      }
    });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    this.rows.set(layer, canvas);
    return canvas;
  }

  names(context, scrollX, scrollY, width, colour) {
    context.fillStyle = colour.getPropertyValue("--paper");
    context.fillRect(0, 0, width, this.top - 2);
    context.fillRect(0, 0, this.left - 4, this.root.clientHeight);
    context.fillStyle = colour.getPropertyValue("--quiet");
    context.textAlign = "center";
    const heads = this.view.layers.reduce((one, two) => (two.heads.length > one.heads.length ? two : one)).heads;
    const every = Math.ceil(22 / (this.cellWidth + this.gap));
    for (let column = 0; column < this.columns; column += 1) {
      if (column > 1 && (column - 1) % every) continue;
      const x = this.x(column) + this.cellWidth / 2 - scrollX;
      if (x > this.left - 8) context.fillText(column ? headName(heads[column - 1]) : "mean", x, 11);
    }
    context.textAlign = "right";
    const steps = Math.ceil(12 / (this.cellHeight + this.gap));
    for (let layer = 0; layer < this.view.layers.length; layer += steps) {
      const y = this.y(layer) + this.cellHeight / 2 + 3.5 - scrollY;
      if (y > this.top + 4 && y < this.root.clientHeight + 8) context.fillText(String(layer), this.left - 8, y);
    }
  }

  // Frames around what the panels show, in their colours.
  mark() {
    const density = window.devicePixelRatio || 1;
    const context = this.marks.getContext("2d");
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, this.marks.width, this.marks.height);
    context.beginPath();
    context.rect(this.left - 4, this.top - 3, this.root.clientWidth, this.root.clientHeight);
    context.save();
    context.clip();
    const framed = new Map();
    this.explorer.panels.forEach((panel, index) => {
      const { record, layer, head } = panel.selection;
      if (layer === null || record !== this.selection.record) return;
      const column = head === null ? 0 : head + 1;
      const inside = framed.get(`${layer} ${column}`) ?? 0; // a second frame of one map stands within the first
      framed.set(`${layer} ${column}`, inside + 3);
      const x = this.x(column) - this.root.scrollLeft;
      const y = this.y(layer) - this.root.scrollTop;
      context.lineWidth = 2.5;
      context.strokeStyle = this.explorer.colourOf(index);
      context.strokeRect(x - 1 + inside, y - 1 + inside, this.cellWidth + 2 - 2 * inside, this.cellHeight + 2 - 2 * inside);
    });
    context.restore();
  }

  find(event) {
    const box = this.root.getBoundingClientRect();
    const x = event.clientX - box.left + this.root.scrollLeft - this.root.clientLeft;
    const y = event.clientY - box.top + this.root.scrollTop - this.root.clientTop;
    const layer = Math.floor((y - this.top) / (this.cellHeight + this.gap));
    const from = x - this.left;
    const column = from < this.cellWidth + this.gap ? 0 : Math.floor((from - this.meanGap) / (this.cellWidth + this.gap));
    const one = this.view?.layers[layer];
    if (!one || from < 0 || column < 0 || column > (this.sheet?.heads ? one.heads.length : 0)) return null;
    return { layer, head: column ? column - 1 : null };
  }

  // Scrolls until a map is in sight.
  reveal({ layer, head }) {
    if (layer === null || !this.view) return;
    const { root } = this;
    const before = [root.scrollLeft, root.scrollTop];
    const [x, y] = [this.x(head === null ? 0 : head + 1), this.y(layer)];
    root.scrollTop = clamp(root.scrollTop, y + this.cellHeight + this.gap - root.clientHeight, y - this.top);
    root.scrollLeft = clamp(root.scrollLeft, x + this.cellWidth + this.gap - root.clientWidth, x - this.left);
    if (root.scrollLeft !== before[0] || root.scrollTop !== before[1]) this.draw();
  }

  say(found) {
    if (!found || !this.sheet) {
      const scale = this.shared ? "One patch in 200 goes beyond the scale and is drawn as its end." : "Colours tell shapes here, not sizes.";
      replaceText(this.readout, `Click a map to see it large, shift-click to compare. ${scale}`);
      return;
    }
    const layer = this.view.layers[found.layer];
    const grid = this.view.grids[layer.grid];
    const one = found.head === null;
    const values = one ? this.sheet.means[found.layer] : this.sheet.heads[found.layer][found.head];
    const error = one ? this.sheet.meanErrors[found.layer] : this.sheet.headErrors[found.layer][found.head];
    const what = one ? `mean over ${layer.heads.length} heads` : `head ${headName(layer.heads[found.head])}`;
    replaceText(this.readout, `layer ${found.layer}, ${what}: largest ${number(extreme({ values, grid }, false), error)} (${layer.name})`);
  }
}

const headName = (head) => (head === -1 ? "mean" : String(head));

// Which part of a grid's patches lies on the image, and where on it, as shares.
function placeOf(grid, size) {
  const found = { from: [], size: [], to: [], part: [] };
  [[grid.row_edges, size[0]], [grid.col_edges, size[1]]].forEach(([edges, length]) => {
    const span = edges.at(-1) - edges[0];
    const patches = edges.length - 1;
    const low = Math.max(0, edges[0]);
    const high = Math.min(length, edges.at(-1));
    found.from.push(((low - edges[0]) / span) * patches);
    found.size.push(((high - low) / span) * patches);
    found.to.push(low / length);
    found.part.push((high - low) / length);
  });
  return found;
}

// ----------------------------------------------------------------------------------------------------------------- the whole view

export class Explorer {
  constructor(root, contents, source, start, onChange = () => {}) {
    this.root = root;
    this.contents = contents;
    this.source = source;
    this.onChange = onChange;
    this.colours = new Colours(contents.colours);
    this.panels = [];
    this.pointed = null;
    this.ticket = 0;
    this.state = {
      record: 0, view: 0, tokens: [], layer: null, head: null, timestep: null, reading: contents.records[0].readings[0],
      compare: [], beside: false, scale: "shown", gridScale: "shared", opacity: 1, outline: true, ...start,
    };
    this.settle();
    this.build();
    this.listen();
    this.settled = this.update();
  }

  // ------------------------------------------------------------------------------------------------------------------- building

  build() {
    this.root.replaceChildren();
    this.root.classList.add("groundprobe");
    this.root.tabIndex = -1;
    this.top = element("header", "top");
    this.heading = element("span", "heading");
    this.help = button("plain", "keys", "Which keys do what", () => this.keys.toggleAttribute("hidden"));
    this.top.append(this.heading, this.help);
    this.keys = element("dl", "keys");
    this.keys.hidden = true;
    KEYS.forEach(([key, does]) => this.keys.append(element("dt", "", key), element("dd", "", does)));
    this.alert = element("p", "alert");
    this.alert.setAttribute("role", "alert");
    this.alert.hidden = true;
    this.answer = element("section", "answer");
    this.words = element("p", "words");
    this.words.dir = "auto";
    this.phrases = element("div", "chips");
    this.extra = element("div", "chips quiet");
    this.answer.append(this.words, this.phrases, this.extra);
    const main = element("section", "main");
    const left = element("div", "left");
    this.stages = element("div", "panels");
    this.bar = element("div", "bar");
    this.barCanvas = element("canvas");
    this.barNumbers = element("div", "bar-numbers");
    this.barLabel = element("p", "bar-label");
    this.bar.append(this.barCanvas, this.barNumbers, this.barLabel);
    this.controls = element("div", "controls");
    left.append(this.stages, this.bar, this.controls);
    const right = element("div", "right");
    this.grid = new HeadGrid(this);
    const above = element("div", "grid-head");
    this.gridTitle = element("span", "small-heading");
    this.gridScale = this.choice([["shared", "one scale for all"], ["own", "each map its own scale"]], "gridScale");
    this.gridBar = element("span", "mini");
    above.append(this.gridTitle, this.gridBar, this.gridScale);
    right.append(above, this.grid.root, this.grid.readout);
    main.append(left, right);
    this.facts = element("dl", "facts");
    this.root.append(this.top, this.keys, this.alert, this.answer, main, this.facts);
    this.buildControls();
  }

  buildControls() {
    this.sliders = {};
    const add = (name, title) => {
      const line = element("div", "slider");
      const label = element("label");
      const input = element("input");
      input.type = "range";
      input.setAttribute("aria-label", title);
      const value = element("span", "value");
      const play = button("plain play", "▶", `Play ${title}s`, () => this.play(name));
      label.append(element("span", "name", title), input);
      line.append(label, value, play);
      input.addEventListener("input", () => this.slide(name, Number(input.value)));
      this.sliders[name] = { line, input, value, play };
      this.controls.append(line);
    };
    add("layer", "layer");
    add("head", "head");
    add("timestep", "timestep");
    add("record", "record");
    this.choices = element("div", "choices");
    this.reading = this.choice([], "reading");
    this.viewChoice = this.choice([], "view", Number);
    this.scale = this.choice([["shown", "scale: maps shown"], ["layers", "scale: the same for all layers"]], "scale");
    this.outlineBox = this.tick("outline of the mask", "outline");
    this.besideBox = this.tick("records side by side", "beside");
    const opacity = element("label", "opacity");
    this.opacity = element("input");
    this.opacity.type = "range";
    Object.assign(this.opacity, { min: 0, max: 1, step: 0.05 });
    this.opacity.addEventListener("input", () => this.set({ opacity: Number(this.opacity.value) }));
    opacity.append(element("span", "", "map opacity"), this.opacity);
    this.choices.append(this.reading, this.viewChoice, this.scale, opacity, this.outlineBox.label, this.besideBox.label);
    this.controls.append(this.choices);
  }

  choice(options, name, read = String) {
    const made = element("select");
    made.setAttribute("aria-label", name);
    options.forEach(([value, text]) => {
      const option = element("option", "", text);
      option.value = value;
      made.append(option);
    });
    made.addEventListener("change", () => this.set({ [name]: read(made.value) }));
    return made;
  }

  tick(text, name) {
    const label = element("label", "tick");
    const input = element("input");
    input.type = "checkbox";
    input.addEventListener("change", () => this.set({ [name]: input.checked }));
    label.append(input, element("span", "", text));
    return { label, input };
  }

  listen() {
    this.onKey = (event) => this.key(event);
    this.root.addEventListener("keydown", this.onKey);
    this.watchSize = new ResizeObserver(() => this.redraw());
    this.watchSize.observe(this.root);
    this.watchTheme = new MutationObserver(() => this.redraw());
    for (const node of [document.documentElement, document.body]) {
      this.watchTheme.observe(node, { attributes: true, attributeFilter: ["class", "data-jp-theme-light", "data-theme"] });
    }
    this.watchScheme = window.matchMedia("(prefers-color-scheme: dark)");
    this.onScheme = () => this.redraw();
    this.watchScheme.addEventListener("change", this.onScheme);
  }

  close() {
    clearInterval(this.player);
    this.watchSize.disconnect();
    this.watchTheme.disconnect();
    this.watchScheme.removeEventListener("change", this.onScheme);
    this.root.removeEventListener("keydown", this.onKey);
    this.source.close?.();
  }

  // -------------------------------------------------------------------------------------------------------------------- choosing

  set(change, { quiet = false } = {}) {
    const before = this.state;
    this.state = { ...before, ...change };
    if ("record" in change && change.record !== before.record) this.follow(before);
    this.settle();
    if (!quiet) this.onChange(this.state);
    this.settled = this.update();
    return this.settled;
  }

  // The state never points at what is not there.
  settle() {
    const { layer, head, timestep, reading, view } = this.resolve({});
    Object.assign(this.state, { layer, head, timestep, reading, view });
  }

  // Of another record the same words, the same view and the nearest layer and head.
  follow(before) {
    const known = this.wordsElsewhere(before.tokens, before.record, this.state.record);
    this.state.tokens = known ?? this.firstTokens(this.state.record);
    this.notice = known ? "" : `“${this.wordsOf(before)}” is not in the text of this record; its first words are shown.`;
    const name = this.contents.records[before.record].views[before.view].name;
    this.state.view = Math.max(0, this.contents.records[this.state.record].views.findIndex((one) => one.name === name));
  }

  firstTokens(record) {
    const { phrases, words } = this.contents.records[record];
    return (phrases[0] ?? words.find((one) => one.tokens.length) ?? { tokens: [0] }).tokens;
  }

  // Tokens of the same words in another record's text, said as often before; null where it does not say them.
  wordsElsewhere(tokens, from, to) {
    const [one, other] = [this.contents.records[from], this.contents.records[to]];
    if (one === other || (one.text === other.text && sameList(one.tokens, other.tokens))) return tokens;
    const plain = (record) => record.words.map((word) => word.text.toLowerCase());
    const said = one.words.map((word, i) => [i, word]).filter(([, word]) => word.tokens.some((t) => tokens.includes(t)));
    if (!said.length) return null;
    const phrase = one.words.slice(said[0][0], said.at(-1)[0] + 1).map((word) => word.text.toLowerCase());
    const places = (words) => words.flatMap((_, i) => (sameList(words.slice(i, i + phrase.length), phrase) ? [i] : []));
    const nth = places(plain(one)).indexOf(said[0][0]);
    const at = places(plain(other))[nth];
    if (at === undefined) return null;
    const found = [...new Set(other.words.slice(at, at + phrase.length).flatMap((word) => word.tokens))];
    return found.length ? found : null;
  }

  compare(override) {
    const { compare } = this.state;
    const same = (one) => JSON.stringify(one) === JSON.stringify(override);
    if (compare.some(same)) this.set({ compare: compare.filter((one) => !same(one)) });
    else if (compare.length + 1 >= MOST_PANELS) this.say(`At most ${MOST_PANELS} maps stand side by side; drop one first.`);
    else this.set({ compare: [...compare, override] });
  }

  drop(override) {
    if (override.record !== undefined && !this.state.compare.includes(override)) this.set({ beside: false });
    else this.set({ compare: this.state.compare.filter((one) => one !== override) });
  }

  chooseWord(tokens, event) {
    if (!tokens.length) return;
    if (event?.shiftKey) this.compare({ tokens });
    else this.set({ tokens });
  }

  stepWord(by) {
    const words = this.contents.records[this.state.record].words.filter((one) => one.tokens.length);
    if (!words.length) return;
    const here = words.findIndex((one) => one.tokens.some((token) => this.state.tokens.includes(token)));
    const next = here < 0 ? 0 : (here + by + words.length) % words.length;
    this.set({ tokens: words[next].tokens });
  }

  // Sliders: position 0 is the mean, then one by one; of records there is no mean.
  slide(name, place) {
    if (name === "record") this.set({ record: place });
    else if (name === "layer") this.set(place ? { layer: place - 1 } : { layer: null, head: null });
    else this.set({ [name]: place ? place - 1 : null, ...(name === "head" && place && this.state.layer === null ? { layer: 0 } : {}) });
  }

  counts() {
    const view = this.viewOf(this.state);
    return {
      layer: view.layers.length,
      head: view.layers[this.state.layer ?? 0].heads.length,
      timestep: view.timesteps.length,
      record: this.contents.records.length,
    };
  }

  play(name) {
    const running = this.playing === name;
    clearInterval(this.player);
    this.playing = null;
    if (!running) {
      this.playing = name;
      const step = () => {
        const count = this.counts()[name];
        const next = ((this.state[name] ?? -1) + 1) % count;
        if (name === "head" && this.state.layer === null) this.set({ layer: 0, head: next });
        else this.set({ [name]: next });
      };
      // Frames on scales of their own would flicker and could not be compared.
      if (name === "layer" || name === "head") this.set({ scale: "layers" });
      step();
      this.player = setInterval(step, PLAY_MS);
    }
    for (const [each, { play }] of Object.entries(this.sliders)) {
      play.textContent = each === this.playing ? "⏸" : "▶";
      play.setAttribute("aria-pressed", String(each === this.playing));
    }
  }

  key(event) {
    const inside = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    // Letters are commands of a notebook too, also those that do nothing here: "x" would cut the cell. It may run its cells.
    if (!(event.key === "Enter" && event.shiftKey)) event.stopPropagation();
    if (inside.matches("select, input[type=range], input[type=checkbox]")) return;
    if (inside.matches("button") && (event.key === " " || event.key === "Enter")) return;
    const { layer, head } = this.state;
    const counts = this.counts();
    const records = this.contents.records.length;
    const move = (value, by, count) => {
      if (value === null) return by > 0 ? 0 : count - 1;
      return value + by < 0 ? null : Math.min(value + by, count - 1);
    };
    const actions = {
      ArrowUp: () => this.set(move(layer, -1, counts.layer) === null ? { layer: null, head: null } : { layer: move(layer, -1, counts.layer) }),
      ArrowDown: () => this.set({ layer: move(layer, 1, counts.layer) }),
      ArrowRight: () => this.set({ layer: layer ?? 0, head: move(head, 1, counts.head) }),
      ArrowLeft: () => layer !== null && this.set({ head: head === null ? null : move(head, -1, counts.head) }),
      ",": () => this.stepWord(-1),
      ".": () => this.stepWord(1),
      "[": () => counts.timestep && this.set({ timestep: move(this.state.timestep, -1, counts.timestep) }),
      "]": () => counts.timestep && this.set({ timestep: move(this.state.timestep, 1, counts.timestep) }),
      r: () => this.set({ record: (this.state.record + 1) % records }),
      R: () => this.set({ record: (this.state.record + records - 1) % records }),
      h: () => this.set({ head: null }),
      a: () => this.set({ layer: null, head: null, timestep: null }),
      c: () => this.compare({ layer, head, tokens: this.state.tokens, timestep: this.state.timestep, record: this.state.record }),
      Escape: () => this.set({ compare: [], beside: false }),
      " ": () => this.play(this.playing ?? "layer"),
      o: () => this.set({ outline: !this.state.outline }),
      e: () => this.switchReading(),
      "?": () => this.keys.toggleAttribute("hidden"),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  switchReading() {
    const { readings } = this.contents.records[this.state.record];
    this.set({ reading: readings[(readings.indexOf(this.state.reading) + 1) % readings.length] });
  }

  // --------------------------------------------------------------------------------------------------------------------- showing

  viewOf(selection) {
    return this.contents.records[selection.record].views[selection.view];
  }

  // A whole selection, cut to what that record has.
  resolve(override) {
    const wanted = { ...this.state, ...override };
    const record = this.contents.records[wanted.record];
    const name = this.viewOf(this.state).name;
    const view = Math.max(0, record.views.findIndex((one) => one.name === name));
    const { layers, timesteps } = record.views[view];
    const layer = wanted.layer === null ? null : Math.min(wanted.layer, layers.length - 1);
    const head = layer === null || wanted.head === null ? null : Math.min(wanted.head, layers[layer].heads.length - 1);
    const from = override.tokens ? (override.record ?? this.state.record) : this.state.record;
    return {
      record: wanted.record, view, layer, head,
      tokens: this.wordsElsewhere(wanted.tokens, from, wanted.record),
      timestep: wanted.timestep === null || !timesteps.length ? null : Math.min(wanted.timestep, timesteps.length - 1),
      reading: record.readings.includes(wanted.reading) ? wanted.reading : record.readings[0],
    };
  }

  overrides() {
    const { compare, beside, record } = this.state;
    const others = beside ? this.contents.records.map((_, i) => i).filter((i) => i !== record) : [];
    return [{}, ...compare, ...others.map((one) => ({ record: one }))].slice(0, MOST_PANELS);
  }

  colourOf(index) {
    return PANEL_COLOURS[index % PANEL_COLOURS.length];
  }

  wordsOf({ record, tokens }) {
    const { words, tokens: names } = this.contents.records[record];
    const said = words.filter((one) => one.tokens.some((token) => tokens.includes(token)));
    const { text } = this.contents.records[record];
    if (said.length) return text.slice(...this.letters(text, said[0].start, said.at(-1).end));
    return tokens.map((one) => names[one]).join(" ");
  }

  // Python counts characters, JavaScript halves of some of them.
  letters(text, start, end) {
    const all = Array.from(text);
    const from = all.slice(0, start).join("").length;
    return [from, from + all.slice(start, end).join("").length];
  }

  describe(selection) {
    const record = this.contents.records[selection.record];
    const view = record.views[selection.view];
    const words = selection.tokens ? `“${this.wordsOf(selection)}”` : "these words";
    const where = selection.layer === null
      ? (view.layers.length > 1 ? `mean of ${view.layers.length} layers` : "the layer")
      : `layer ${selection.layer}, ${selection.head === null ? "mean of heads" : `head ${headName(view.layers[selection.layer].heads[selection.head])}`}`;
    const when = !view.timesteps.length ? "" : selection.timestep === null
      ? `, mean of ${view.timesteps.length} timesteps` : `, timestep ${view.timesteps[selection.timestep]}`;
    const who = this.contents.records.length > 1 ? `${record.label}: ` : "";
    return `${who}${words}, ${where}${when}`;
  }

  maskedPhrase(selection) {
    const record = this.contents.records[selection.record];
    if (!selection.tokens || !record.views[selection.view].masks) return null;
    const known = record.phrases.filter((one) => one.mask !== null);
    return known.find((one) => sameList(one.tokens, selection.tokens))
      ?? known.find((one) => selection.tokens.every((token) => one.tokens.includes(token))) ?? null;
  }

  async update() {
    const ticket = (this.ticket += 1);
    try {
      const overrides = this.overrides();
      const selections = overrides.map((one) => this.resolve(one));
      const sheets = await Promise.all(selections.map((one) => (one.tokens ? this.source.sheet(one) : null)));
      if (ticket !== this.ticket) return;
      this.fitPanels(overrides);
      selections.forEach((one, i) => this.panels[i].show(one, ...this.mapOf(one, sheets[i])));
      this.sheets = sheets;
      const { grid } = this;
      const inGrid = this.isWhole(selections[0]) ? null : sheets[0];
      const other = inGrid !== grid.sheet || this.viewOf(selections[0]) !== grid.view || this.state.gridScale !== grid.scale;
      if (other) this.grid.show(selections[0], inGrid);
      this.grid.selection = selections[0];
      this.showText();
      this.showControls();
      this.showFacts();
      this.redraw({ grid: other });
      this.grid.reveal(this.state);
      this.say(this.notice ?? "");
      this.notice = "";
      if (this.firstPaint === undefined) this.firstPaint = performance.now();
      await this.refine(selections, ticket);
      if (ticket === this.ticket) this.source.prepare?.(selections[0]);
    } catch (error) {
      if (ticket === this.ticket) this.say(error.message);
    }
  }

  // Whether nothing but rounding is left of these tokens minus the mean, since they are all that it was taken over.
  isWhole(selection) {
    const { averaged } = this.contents.records[selection.record];
    return selection.reading === "minus mean" && selection.tokens?.length > 0 && sameList(selection.tokens, averaged);
  }

  // The map of a selection, and why there is none.
  mapOf(selection, sheet) {
    const record = this.contents.records[selection.record];
    const view = record.views[selection.view];
    if (!sheet) return [null, "This record's text does not say these words."];
    const { layer, head } = selection;
    const grid = view.grids[layer === null ? view.overall : view.layers[layer].grid];
    if (this.isWhole(selection)) {
      return [null, "All tokens of the text: their mean minus itself is zero everywhere. Choose some words."];
    }
    if (layer === null) return [{ values: sheet.overall, grid, error: 0 }, null];
    if (head === null) return [{ values: sheet.means[layer], grid, error: sheet.meanErrors[layer] }, null];
    if (!sheet.heads) {
      return [null, `This map is not in this file. ${this.contents.kept?.said}`];
    }
    return [{ values: sheet.heads[layer][head], grid, error: sheet.headErrors[layer][head] }, null];
  }

  // Exact values where the kernel has them, and scores.
  async refine(selections, ticket) {
    await Promise.all(selections.map(async (one, i) => {
      const panel = this.panels[i];
      const { phrase } = panel;
      const exact = panel.data ? await this.source.exact(one) : null;
      if (ticket !== this.ticket) return;
      if (exact) {
        panel.data = { ...panel.data, values: exact.values, error: 0 };
        panel.read();
        panel.draw(panel.limits, isDark(this.root));
      }
      const whole = phrase && sameList(phrase.tokens, one.tokens);
      const rows = whole && panel.data ? await this.source.scores(one, phrase.mask) : null;
      if (ticket !== this.ticket) return;
      panel.score(rows, this.contents.columns);
      if (whole && panel.data && !rows) panel.table.append(element("p", "small", "Scores of this map are not kept in this file."));
      if (phrase && !whole && panel.data) panel.table.append(element("p", "small", `Scores are of the whole phrase “${phrase.text}”.`));
    }));
  }

  fitPanels(overrides) {
    while (this.panels.length > overrides.length) this.panels.pop().root.remove();
    while (this.panels.length < overrides.length) {
      const made = new Panel(this);
      this.panels.push(made);
      this.stages.append(made.root);
    }
    const several = overrides.length > 1;
    this.stages.classList.toggle("several", several);
    this.panels.forEach((panel, i) => {
      panel.override = overrides[i];
      panel.close.hidden = i === 0;
      panel.badge.hidden = !several;
      panel.badge.textContent = String.fromCharCode(65 + i);
      panel.badge.style.background = this.colourOf(i);
    });
  }

  // Maps that can be compared share one scale; those of other quantities have their own.
  limits() {
    const kind = (panel) => JSON.stringify([...this.contents.records[panel.selection.record].kind, panel.selection.reading]);
    const groups = new Map();
    this.panels.forEach((panel, i) => {
      const { signed } = this.contents.records[panel.selection.record];
      const most = panel.data ? Math.max(...this.scaleMaps(panel, i).map((map) => extreme(map, signed))) : 0;
      groups.set(kind(panel), Math.max(groups.get(kind(panel)) ?? 0, most));
    });
    this.scales = groups.size;
    return this.panels.map((panel) => limitsOf(groups.get(kind(panel)), this.contents.records[panel.selection.record].signed));
  }

  scaleMaps(panel, index) {
    const { selection } = panel;
    if (this.state.scale === "shown" || selection.layer === null) return [panel.data];
    const view = this.viewOf(selection);
    const sheet = this.sheets[index];
    return view.layers.flatMap((layer, i) => (selection.head === null ? [sheet.means[i]] : sheet.heads[i]).map(
      (values) => ({ values, grid: view.grids[layer.grid] })));
  }

  redraw({ grid = true } = {}) {
    if (!this.panels.length || !this.panels[0].selection) return;
    const dark = isDark(this.root);
    this.root.classList.toggle("dark", dark);
    this.root.classList.toggle("narrow", this.root.clientWidth < 820);
    this.root.style.setProperty("--opacity", String(this.state.opacity));
    const limits = this.limits();
    this.panels.forEach((panel, i) => {
      panel.draw(limits[i], dark);
      panel.read();
    });
    if (grid) {
      this.grid.draw();
      this.drawGridBar(dark);
    } else this.grid.mark();
    this.drawBar(limits[0], dark);
    this.painted = (this.painted ?? 0) + 1;
  }

  // The colours of a scale from left to right.
  gradient(canvas, table) {
    [canvas.width, canvas.height] = [256, 1];
    const pixels = new ImageData(256, 1);
    new Uint32Array(pixels.data.buffer).set(table);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  drawGridBar(dark) {
    const { shared, record } = this.grid;
    const [low, high] = shared ? shared.map((one) => number(one)) : [record.signed ? "−largest" : "0", "largest"];
    const canvas = this.gradient(element("canvas"), this.colours.table(dark, record.signed));
    this.gridBar.replaceChildren(element("span", "", low), canvas, element("span", "", high));
  }

  drawBar([low, high], dark) {
    const record = this.contents.records[this.state.record];
    this.gradient(this.barCanvas, this.colours.table(dark, record.signed));
    this.barNumbers.replaceChildren(...[low, (low + high) / 2, high].map((one) => element("span", "", String(Number(one.toPrecision(3))))));
    const { reading } = this.state;
    const minus = reading === "minus mean" ? " minus its mean over all tokens of the text (Eq. 3)" : "";
    const below = record.signed ? "" : "; below zero not drawn";
    const notes = [`${record.label_of_values}${minus}${below}`];
    if (this.panels.length > 1) {
      notes.push(this.scales > 1 ? "other quantities: each kind of map has its own scale, and the bar is A's" : "one scale for all maps");
    }
    if (this.state.scale === "layers" && this.state.layer !== null) notes.push("scale of all layers");
    if (this.panels.some((one) => one.phrase) && this.state.outline) notes.push("outline: true mask");
    if (this.panels.some((one) => one.unseen)) notes.push("hatched: cropped away, unseen");
    const { picture } = this.viewOf(this.state);
    if (picture === null || !this.contents.images[picture]) notes.push("no image of this view was given, so the map stands alone");
    replaceText(this.barLabel, notes.join("; "));
  }

  hover(place) {
    this.pointed = place;
    this.panels.forEach((panel) => {
      panel.mark();
      panel.read();
    });
  }

  say(text) {
    this.alert.hidden = !text;
    replaceText(this.alert, text);
  }

  // ------------------------------------------------------------------------------------------------------------------------ text

  showText() {
    const { record: index, tokens } = this.state;
    const record = this.contents.records[index];
    if (this.textOf !== index) {
      this.textOf = index;
      this.fillWords(record);
    }
    const chosen = new Set(tokens);
    for (const { node, own } of this.marked) {
      const on = own.length > 0 && own.every((token) => chosen.has(token));
      node.classList.toggle("on", on);
      node.setAttribute("aria-pressed", String(on));
    }
    replaceText(this.heading, this.contents.records.length > 1 ? `${record.label} (record ${index + 1} of ${this.contents.records.length})` : record.label);
  }

  fillWords(record) {
    this.marked = [];
    const letters = Array.from(record.text);
    const parts = [];
    let at = 0;
    record.words.forEach((word) => {
      if (word.start > at) parts.push(document.createTextNode(letters.slice(at, word.start).join("")));
      parts.push(this.wordButton("word", word.text, word.tokens));
      at = word.end;
    });
    const [hiddenWords, hiddenTokens] = record.hidden;
    if (!hiddenWords) parts.push(document.createTextNode(letters.slice(at).join("")));
    else parts.push(element("span", "small", ` … and ${hiddenWords} more words, which can be chosen from Python`));
    this.words.replaceChildren(...parts);
    this.words.hidden = !record.words.length;
    const chips = record.phrases.map((one) => {
      const made = this.wordButton(one.mask === null ? "chip" : "chip masked", one.text, one.tokens);
      if (one.mask !== null) made.title = "its true mask is known";
      return made;
    });
    this.phrases.replaceChildren(...(chips.length ? [element("span", "small", "phrases"), ...chips] : []));
    if (record.note) this.phrases.append(element("span", "small", record.note));
    const others = record.unplaced.map((token) => this.wordButton("chip", record.tokens[token], [token]));
    this.extra.replaceChildren(...(others.length ? [element("span", "small", record.words.length ? "other tokens" : "tokens"), ...others] : []));
    if (hiddenTokens) this.extra.append(element("span", "small", `… and ${hiddenTokens} more, which can be chosen from Python`));
  }

  wordButton(className, text, tokens) {
    const node = button(className, text, "", (event) => this.chooseWord(tokens, event));
    node.disabled = !tokens.length;
    if (!tokens.length) node.title = "not among the recorded tokens";
    this.marked.push({ node, own: tokens });
    return node;
  }

  showControls() {
    const counts = this.counts();
    const view = this.viewOf(this.state);
    const record = this.contents.records[this.state.record];
    const fill = (name, value, text, usable = true) => {
      const { line, input, value: shown } = this.sliders[name];
      line.hidden = counts[name] < (name === "layer" || name === "head" ? 1 : 2);
      const max = String(name === "record" ? counts[name] - 1 : counts[name]);
      if (input.max !== max) Object.assign(input, { min: "0", max, step: "1" });
      input.value = String(value);
      input.disabled = !usable;
      input.setAttribute("aria-valuetext", text);
      replaceText(shown, text);
    };
    const { layer, head, timestep } = this.state;
    const heads = view.layers[layer ?? 0].heads;
    fill("layer", layer === null ? 0 : layer + 1, layer === null ? `mean of ${counts.layer}` : `${layer} of ${counts.layer}`);
    fill("head", head === null ? 0 : head + 1, head === null ? `mean of ${layer === null ? "all" : counts.head}` : headName(heads[head]));
    fill("timestep", timestep === null ? 0 : timestep + 1, timestep === null ? `mean of ${counts.timestep}` : String(view.timesteps[timestep]));
    fill("record", this.state.record, record.label);
    const quantity = record.label_of_values;
    this.options(this.reading, record.readings.map((one) => [one, one === "minus mean" ? `${quantity} minus mean (Eq. 3)` : `${quantity} as recorded`]), this.state.reading);
    this.options(this.viewChoice, record.views.map((one, i) => [String(i), `view: ${one.name}`]), String(this.state.view));
    this.viewChoice.hidden = record.views.length < 2;
    this.scale.value = this.state.scale;
    this.gridScale.value = this.state.gridScale;
    this.opacity.value = String(this.state.opacity);
    this.outlineBox.input.checked = this.state.outline;
    this.outlineBox.label.hidden = !record.phrases.some((one) => one.mask !== null);
    this.besideBox.input.checked = this.state.beside;
    this.besideBox.label.hidden = this.contents.records.length < 2;
    const what = this.sheets[0]?.heads ? "layers (down) × heads (across)" : "layers, mean over heads";
    replaceText(this.gridTitle, `${what} of ${this.panels.length > 1 ? "A" : `“${this.wordsOf(this.state)}”`}`);
  }

  options(select, wanted, chosen) {
    const key = JSON.stringify(wanted);
    if (select.dataset.key !== key) {
      select.dataset.key = key;
      select.replaceChildren(...wanted.map(([value, text]) => {
        const option = element("option", "", text);
        option.value = value;
        return option;
      }));
    }
    select.value = chosen;
  }

  showFacts() {
    if (this.factsOf === this.state.record) return;
    this.factsOf = this.state.record;
    const { facts } = this.contents.records[this.state.record];
    const kept = this.contents.kept?.said;
    const all = kept ? [...facts, ["in this file", kept]] : facts;
    this.facts.replaceChildren(...all.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
  }
}

function refuse(root, text) {
  root.classList.add("groundprobe");
  const message = element("p", "alert", text);
  message.setAttribute("role", "alert");
  root.replaceChildren(message);
}

function open(root, contents, makeSource, start, onChange) {
  if (contents?.version !== VERSION) {
    refuse(root, `These contents are of version ${contents?.version}, and this view reads version ${VERSION}; make them again with the version of groundprobe that shows them.`);
    return null;
  }
  if (typeof DecompressionStream === "undefined") {
    refuse(root, "This browser is too old to unpack the maps; use one from 2023 or later.");
    return null;
  }
  try {
    const explorer = new Explorer(root, contents, makeSource(contents), start, onChange);
    root.explorer = explorer; // for tests, and for the console
    return explorer;
  } catch (error) {
    refuse(root, `The view could not be made: ${error.message}`);
    return null;
  }
}

// ------------------------------------------------------------------------------------------------------------------------ a notebook

const SHARED = ["record", "tokens", "layer", "head", "timestep", "reading", "compare"];

function render({ model, el }) {
  const root = element("div");
  el.append(root);
  const contents = model.get("contents");
  const read = () => {
    const found = Object.fromEntries(SHARED.map((name) => [name, model.get(name)]));
    const names = contents.records?.[found.record]?.views.map((one) => one.name) ?? [];
    return { ...found, view: Math.max(0, names.indexOf(model.get("view"))) };
  };
  const explorer = open(root, contents, () => new KernelSource(contents, model), contents.version === VERSION ? read() : {}, (state) => {
    SHARED.forEach((name) => model.set(name, state[name]));
    model.set("view", contents.records[state.record].views[state.view].name);
    model.save_changes();
  });
  if (!explorer) return undefined;
  // Several changes in one go, such as a record and its words, are one.
  let waiting = false;
  const changed = () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => {
      waiting = false;
      const wanted = read();
      if (JSON.stringify(wanted) !== JSON.stringify(Object.fromEntries(Object.keys(wanted).map((name) => [name, explorer.state[name]])))) {
        explorer.state = { ...explorer.state, ...wanted };
        explorer.settle();
        explorer.settled = explorer.update();
      }
    });
  };
  [...SHARED, "view"].forEach((name) => model.on(`change:${name}`, changed));
  return () => {
    [...SHARED, "view"].forEach((name) => model.off(`change:${name}`, changed));
    explorer.close();
  };
}

export default { render };

// ---------------------------------------------------------------------------------------------------------------------------- a page

export function openPage(page) {
  const root = page.getElementById("explorer");
  let contents;
  try {
    contents = JSON.parse(page.getElementById("contents").textContent);
  } catch (error) {
    refuse(root, `This file is damaged: ${error.message}`);
    return;
  }
  const names = contents.records?.[contents.start?.record ?? 0]?.views.map((one) => one.name) ?? [];
  const start = { ...contents.start, view: Math.max(0, names.indexOf(contents.start?.view)) };
  const explorer = open(root, contents, () => new PageSource(contents, page), start);
  if (!explorer) return;
  const turn = button("plain", "light / dark", "Change between light and dark", () => {
    page.documentElement.dataset.theme = isDark(root) ? "light" : "dark";
  });
  explorer.top.append(turn);
  page.body.classList.add("groundprobe-page");
}
