// @ts-check
// Answers by layer and token: an ARIA grid with sticky heads and roving focus, filled as they come.
import { cividis, cividisGradient, element, keepBareKeys, listen, visible } from "./display.js";

const NARROWEST = 6; // of a column, in characters
const WIDEST = 18;

/** @param {import("./display.js").Context} context */
function render(context) {
  const { model, el, signal } = context;

  const title = element("span", { className: "ao-name" });
  const query = element("input", { type: "search", placeholder: "Search the answers", "aria-label": "Search the answers" });
  const previous = element("button", { type: "button", textContent: "Previous", disabled: true });
  const next = element("button", { type: "button", textContent: "Next", disabled: true });
  const found = element("span", { role: "status", className: "ao-found" });
  const wrap = element("div", { className: "ao-scroll" });
  const detail = element("span", { className: "ao-detail" });
  const legend = element("span", { className: "ao-scale" });
  const root = element(
    "div", { className: "ao ao-grid" },
    element(
      "div", { className: "ao-bar" }, title,
      element("span", { className: "ao-together" }, found, query, previous, next),
    ),
    wrap,
    element("div", { className: "ao-line" }, detail),
    element("div", { className: "ao-foot" }, legend, element("span", { className: "ao-key" })),
  );
  const key = /** @type {HTMLElement} */ (root.querySelector(".ao-key"));
  el.replaceChildren(root);

  /** @type {HTMLTableCellElement[][]} */
  let cells = [];
  let [row, column] = [0, 0]; // the one cell that Tab reaches
  let width = NARROWEST;
  /** @type {HTMLTableCellElement[]} */
  let matches = [];
  let match = -1;

  const at = (/** @type {string} */ name, /** @type {number} */ r, /** @type {number} */ c) => model.get(name)[r]?.[c];
  const rowOf = (/** @type {Element} */ cell) => Number(/** @type {HTMLElement} */ (cell).dataset.r);
  const columnOf = (/** @type {Element} */ cell) => Number(/** @type {HTMLElement} */ (cell).dataset.c);

  /** @param {number} r @param {number} c */
  function fill(r, c) {
    const cell = cells[r]?.[c];
    if (!cell) return;
    const text = at("texts", r, c) ?? "";
    const value = at("values", r, c);
    const support = at("supported", r, c);
    cell.textContent = text;
    const { paper, ink } = typeof value === "number" ? cividis(value) : { paper: "", ink: "" };
    cell.style.backgroundColor = paper;
    cell.style.color = ink;
    // Signs in the text, which the style sheet puts there: no second element for each of 4,608 cells.
    if (support === true || support === false) cell.dataset.support = support ? "yes" : "no";
    else delete cell.dataset.support;
    widen(text.length + 2);
  }

  /**
   * Columns are alike and grow together, so that a streamed answer moves nothing but itself.
   * @param {number} characters
   */
  function widen(characters) {
    if (characters <= width || width === WIDEST) return;
    width = Math.min(characters, WIDEST);
    wrap.style.setProperty("--ao-column", `${width}ch`);
  }

  /** @param {number} r @param {number} c */
  function describe(r, c) {
    const text = at("texts", r, c);
    const value = at("values", r, c);
    const support = at("supported", r, c);
    detail.textContent = [
      `layer ${model.get("layers")[r]}`,
      `token ${model.get("positions")[c]} “${visible(model.get("tokens")[c])}”`,
      ...(typeof value === "number" ? [`${model.get("value_label")} ${value.toFixed(3)}`] : []),
      ...(support === true ? ["no control says the same"] : []),
      ...(support === false ? ["not supported: a control says the same"] : []),
    ].join(" · ") + (text ? `: ${text}` : ": no answer yet");
  }

  /** @param {number} r @param {number} c */
  function moveTo(r, c) {
    cells[row]?.[column]?.setAttribute("tabindex", "-1");
    [row, column] = [r, c];
    cells[row]?.[column]?.setAttribute("tabindex", "0");
  }

  /** @param {number} r @param {number} c */
  function show(r, c) {
    moveTo(r, c);
    cells[r][c].scrollIntoView({ block: "nearest", inline: "nearest" });
    describe(r, c);
  }

  /** @param {number} r @param {number} c */
  function choose(r, c) {
    model.set("cell", [model.get("layers")[r], model.get("positions")[c]]);
    model.save_changes();
  }

  function mark() {
    const [layer, position] = model.get("cell") ?? [null, null];
    for (const cell of wrap.querySelectorAll('[aria-selected="true"]')) cell.setAttribute("aria-selected", "false");
    const r = model.get("layers").indexOf(layer);
    cells[r]?.[model.get("positions").indexOf(position)]?.setAttribute("aria-selected", "true");
  }

  function build() {
    /** @type {string[]} */
    const tokens = model.get("tokens");
    /** @type {number[]} */
    const positions = model.get("positions");
    const table = element("table", { role: "grid", "aria-label": model.get("label") });
    const head = table.createTHead().insertRow();
    head.append(element("th", { scope: "col", textContent: "layer" }));
    tokens.forEach((token, c) => head.append(element(
      "th", { scope: "col", title: `token ${positions[c]}` },
      element("span", { className: "ao-position", textContent: String(positions[c]) }),
      element("bdi", { textContent: visible(token) }),
    )));
    const body = table.createTBody();
    const pattern = element("td", { role: "gridcell", tabIndex: -1, "aria-selected": "false" });
    cells = model.get("layers").map((/** @type {number} */ layer, /** @type {number} */ r) => {
      const line = element("tr", {}, element("th", { scope: "row", textContent: String(layer) }));
      const own = tokens.map((_, c) => {
        const cell = /** @type {HTMLTableCellElement} */ (pattern.cloneNode());
        cell.dataset.r = String(r);
        cell.dataset.c = String(c);
        return cell;
      });
      line.append(...own);
      body.append(line);
      return own;
    });
    width = 0;
    widen(Math.max(NARROWEST, ...tokens.map((token) => Math.min(12, token.length + 2))));
    fillAll();
    wrap.replaceChildren(table);
    wrap.hidden = !cells.length || !tokens.length;
    moveTo(Math.min(row, Math.max(0, cells.length - 1)), Math.min(column, Math.max(0, tokens.length - 1)));
    detail.textContent = cells.length && tokens.length
      ? "Point at a cell, or walk there with the arrow keys, to read it whole."
      : "No layers or no tokens to show.";
    names();
    mark();
    search();
  }

  function fillAll() {
    cells.forEach((line, r) => line.forEach((_, c) => fill(r, c)));
  }

  function names() {
    title.textContent = model.get("label");
    wrap.firstElementChild?.setAttribute("aria-label", model.get("label"));
    const bar = element("i");
    bar.style.background = cividisGradient();
    legend.replaceChildren(model.get("value_label"), " 0", bar, "1");
    explain();
  }

  function explain() {
    const known = model.get("supported").flat();
    legend.hidden = !model.get("values").flat().some((/** @type {any} */ value) => typeof value === "number");
    key.textContent = [
      ...(known.includes(true) ? ["✓ no control says the same"] : []),
      ...(known.includes(false) ? ["∗ not supported: a control without the activations says the same"] : []),
    ].join(" · ");
  }

  function search() {
    for (const cell of matches) cell.classList.remove("ao-match", "ao-here");
    const wanted = query.value.trim().toLowerCase();
    const here = matches[match];
    matches = wanted ? cells.flat().filter((cell) => cell.textContent?.toLowerCase().includes(wanted)) : [];
    for (const cell of matches) cell.classList.add("ao-match");
    match = here ? matches.indexOf(here) : -1;
    if (match >= 0) here.classList.add("ao-here");
    previous.disabled = next.disabled = matches.length === 0;
    found.textContent = wanted ? `${match >= 0 ? `${match + 1} of ` : ""}${matches.length} found` : "";
  }

  /** @param {1 | -1} direction */
  function go(direction) {
    if (!matches.length) return;
    matches[match]?.classList.remove("ao-here");
    // The first step is to the first match, or backwards to the last.
    match = match < 0 && direction < 0 ? matches.length - 1 : (match + direction + matches.length) % matches.length;
    const cell = matches[match];
    cell.classList.add("ao-here");
    show(rowOf(cell), columnOf(cell));
    found.textContent = `${match + 1} of ${matches.length} found`;
  }

  query.addEventListener("input", () => {
    search();
    if (match < 0) go(1);
  }, { signal });
  query.addEventListener("keydown", (event) => {
    if (event.key === "Enter") go(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape") query.value = "";
    else return;
    if (event.key === "Escape") search();
    event.preventDefault();
  }, { signal });
  previous.addEventListener("click", () => go(-1), { signal });
  next.addEventListener("click", () => go(1), { signal });

  /** @param {Event} event @param {(r: number, c: number) => void} handler */
  function onCell(event, handler) {
    const cell = event.target instanceof Element ? event.target.closest("td") : null;
    if (cell) handler(rowOf(cell), columnOf(cell));
  }
  wrap.addEventListener("pointerover", (event) => onCell(event, describe), { signal });
  wrap.addEventListener("focusin", (event) => onCell(event, describe), { signal });
  wrap.addEventListener("click", (event) => onCell(event, (r, c) => {
    moveTo(r, c);
    cells[r][c].focus({ preventScroll: true });
    choose(r, c);
  }), { signal });

  wrap.addEventListener("keydown", (event) => {
    if (event.altKey || !(event.target instanceof HTMLTableCellElement)) return;
    const command = event.ctrlKey || event.metaKey;
    const [lastRow, lastColumn] = [cells.length - 1, (cells[0]?.length ?? 1) - 1];
    /** @type {Record<string, [number, number]>} */
    const moves = {
      ArrowUp: [Math.max(0, row - 1), column],
      ArrowDown: [Math.min(lastRow, row + 1), column],
      ArrowLeft: [row, Math.max(0, column - 1)],
      ArrowRight: [row, Math.min(lastColumn, column + 1)],
      Home: [command ? 0 : row, 0],
      End: [command ? lastRow : row, lastColumn],
      PageUp: [0, column],
      PageDown: [lastRow, column],
    };
    if (event.key in moves) {
      const [r, c] = moves[event.key];
      show(r, c);
      cells[r][c].focus({ preventScroll: true }); // `show` scrolls, past the heads that stick
    } else if (event.key === "Enter" || event.key === " ") {
      choose(row, column);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }, { signal });
  keepBareKeys(root, signal);

  let rebuild = false;
  let scheduled = false;
  /**
   * Several lists change together: they are drawn once.
   * @param {boolean} whole whether rows and columns may be others
   */
  function schedule(whole) {
    rebuild ||= whole;
    if (scheduled) return;
    scheduled = true;
    queueMicrotask(() => {
      scheduled = false;
      if (rebuild || cells.length !== model.get("texts").length) {
        build();
      } else {
        fillAll();
        search();
        explain();
      }
      rebuild = false;
    });
  }
  listen(context, ["change:tokens", "change:positions", "change:layers"], () => schedule(true));
  listen(context, ["change:texts", "change:values", "change:supported"], () => schedule(false));
  listen(context, ["change:label", "change:value_label"], names);
  listen(context, ["change:cell"], mark);

  let settling = false;
  listen(context, ["msg:custom"], (message) => {
    if (message?.kind !== "cell") return;
    // In place here as in Python: a new list would be sent back, and draw every cell again.
    for (const [list, name] of [["texts", "text"], ["values", "value"], ["supported", "supported"]]) {
      model.get(list)[message.row][message.column] = message[name];
    }
    fill(message.row, message.column);
    if (settling) return;
    settling = true;
    requestAnimationFrame(() => { // what looks at all cells waits for the next frame
      settling = false;
      search();
      explain();
    });
  });
  build();
  // Cells that were put before there was a view went unheard: Python sends the lists again.
  model.send({ kind: "opened" });
}

export default { render };
