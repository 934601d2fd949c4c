// @ts-check
// Tokens of a prompt as a list box in which any number can be selected (WAI-ARIA, roving focus).
import { cividis, cividisGradient, element, keepBareKeys, listen, spoken, visible, visibleParts } from "./display.js";

/** @typedef {[first: number, last: number]} Unit what one gesture takes at a token */

const GRANULARITIES = ["token", "word", "message"];

/** @param {string[]} tokens @param {Set<number>} special @param {(i: number) => number} groupOf */
function wordUnits(tokens, special, groupOf) {
  // U+FFFD and U+2025 stand for a part of a character, whose other parts are in tokens beside it.
  const begins = /^[\p{L}\p{N}\p{M}_'’\ufffd\u2025]/u;
  const ends = /[\p{L}\p{N}\p{M}_'’\ufffd\u2025]$/u;
  /** @type {Unit[]} */
  const units = [];
  tokens.forEach((token, i) => {
    const joins = i > 0 && groupOf(i) === groupOf(i - 1) && !special.has(i) && !special.has(i - 1)
      && begins.test(token) && ends.test(tokens[i - 1]);
    const unit = joins ? units[i - 1] : /** @type {Unit} */ ([i, i]);
    unit[1] = i; // the unit is shared by all of its tokens
    units.push(unit);
  });
  return units;
}

/**
 * Messages, and without a role what stands between them.
 * @param {[role: string, start: number, stop: number][]} roles
 * @param {number} count
 */
function groupsOf(roles, count) {
  /** @type {{ role: string, start: number, stop: number }[]} */
  const groups = [];
  let shown = 0;
  for (const [role, start, stop] of [...roles, /** @type {const} */ (["", count, count])]) {
    if (shown < start) groups.push({ role: "", start: shown, stop: start });
    if (start < stop) groups.push({ role, start, stop });
    shown = stop;
  }
  return groups;
}

/** @param {number[]} sorted */
function rangesText(sorted) {
  /** @type {Unit[]} */
  const ranges = [];
  for (const i of sorted) {
    const last = ranges.at(-1);
    if (last && last[1] === i - 1) last[1] = i;
    else ranges.push([i, i]);
  }
  const texts = ranges.slice(0, 4).map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`));
  return texts.join(", ") + (ranges.length > 4 ? ", …" : "");
}

/** @param {import("./display.js").Context} context */
function render(context) {
  const { model, el, signal } = context;
  const name = `ao-${Math.random().toString(36).slice(2)}`; // one group of radio buttons a view

  const title = element("span", { className: "ao-name" });
  const radios = GRANULARITIES.map((value) => element("input", { type: "radio", name, value }));
  const choice = element(
    "fieldset", { className: "ao-choice" },
    element("legend", { textContent: "Select by" }),
    ...radios.map((radio) => element("label", {}, radio, element("span", { textContent: radio.value }))),
  );
  const all = element("button", { type: "button", textContent: "All" });
  const none = element("button", { type: "button", textContent: "None" });
  const list = element("div", { className: "ao-tokens", role: "listbox", "aria-multiselectable": "true", dir: "ltr" });
  const status = element("span", { role: "status" });
  const detail = element("span", { className: "ao-detail" });
  const legend = element("span", { className: "ao-scale" });
  const root = element(
    "div", { className: "ao ao-select" },
    element("div", { className: "ao-bar" }, title, choice, element("span", { className: "ao-together" }, all, none)),
    list,
    element("div", { className: "ao-foot" }, status, detail, legend),
  );
  el.replaceChildren(root);

  /** @type {HTMLElement[]} */
  let cells = [];
  /** @type {{ role: string, start: number, stop: number }[]} */
  let groups = [];
  /** @type {number[]} which group each token is in */
  let groupOf = [];
  /** @type {Unit[]} */
  let words = [];
  /** @type {Set<number>} */
  let special = new Set();
  let anchor = 0; // the end of a range that stays
  let cursor = 0; // the end that moves; the one token that Tab reaches
  let dragging = false;
  let takesAway = false;
  let full = false; // whether the cap cut the last gesture short
  /** @type {Set<number>} the selection before a gesture, so that a drag can shrink again */
  let before = new Set();
  /** @type {Set<number> | null} the selection in the middle of a gesture: shown, not sent yet */
  let draft = null;
  /** @type {Set<number>} */
  let painted = new Set();

  const sent = () => /** @type {Set<number>} */ (new Set(model.get("selection")));
  const last = () => cells.length - 1;

  /** @param {number} i @returns {Unit} */
  function unit(i) {
    const granularity = model.get("granularity");
    if (granularity === "token") return [i, i];
    if (granularity === "word") return words[i];
    const { start, stop } = groups[groupOf[i]];
    if (special.has(i)) return [start, stop - 1];
    let [first, end] = [start, stop - 1];
    while (special.has(first)) first += 1;
    while (special.has(end)) end -= 1;
    return [first, end];
  }

  /** @param {number} a @param {number} b @returns {number[]} those nearest to a first */
  function between(a, b) {
    const first = Math.min(unit(a)[0], unit(b)[0]);
    const end = Math.max(unit(a)[1], unit(b)[1]);
    const range = Array.from({ length: end - first + 1 }, (_, i) => first + i);
    return range.sort((x, y) => Math.abs(x - a) - Math.abs(y - a));
  }

  /**
   * `base` and as much of a range as may be selected.
   * @param {Set<number>} base
   * @param {number[]} range
   */
  function joined(base, range) {
    const cap = model.get("max_positions") ?? Infinity;
    const result = new Set(base);
    full = false;
    for (const i of range) {
      if (result.has(i)) continue;
      if (result.size >= cap) {
        full = true;
        break;
      }
      result.add(i);
    }
    return result;
  }

  /** @param {Set<number>} base @param {number[]} range */
  function without(base, range) {
    full = false;
    const away = new Set(range);
    return new Set([...base].filter((i) => !away.has(i)));
  }

  /** @param {Set<number>} chosen */
  function commit(chosen) {
    draft = null;
    const selection = [...chosen].sort((a, b) => a - b);
    if (String(selection) !== String(model.get("selection"))) {
      model.set("selection", selection);
      model.save_changes(); // one message to the kernel a gesture
    }
    paint();
    if (full) {
      list.classList.remove("ao-full");
      void list.offsetWidth; // restarts the animation
      list.classList.add("ao-full");
    }
  }

  function paint() {
    const chosen = draft ?? sent();
    // Of 2,000 tokens a move changes a few: only those are touched.
    for (const i of painted) if (!chosen.has(i)) cells[i]?.setAttribute("aria-selected", "false");
    for (const i of chosen) if (!painted.has(i)) cells[i]?.setAttribute("aria-selected", "true");
    painted = new Set(chosen);
    const count = `${chosen.size ? chosen.size : "none"} of ${cells.length} tokens selected`;
    const where = chosen.size ? ` (${rangesText([...chosen].sort((a, b) => a - b))})` : "";
    const limit = model.get("max_positions");
    const notice = full ? `. At most ${limit}: those nearest to where you began were kept` : "";
    status.textContent = count + where + notice;
    none.disabled = model.get("disabled") || chosen.size === 0;
  }

  /** @param {number} i */
  function moveTo(i) {
    cells[cursor]?.setAttribute("tabindex", "-1");
    cursor = i;
    cells[cursor]?.setAttribute("tabindex", "0");
  }

  /** @param {number} i */
  function describe(i) {
    const score = model.get("scores")[i];
    const role = groups[groupOf[i]].role;
    detail.textContent = [
      `token ${i} “${visible(model.get("tokens")[i])}”`,
      ...(role ? [role] : []),
      ...(special.has(i) ? ["template"] : []),
      ...(typeof score === "number" ? [`${model.get("score_label")} ${rounded(score)}`] : []),
    ].join(" · ");
  }

  /** @param {number} number */
  const rounded = (number) => String(Number(number.toPrecision(3)));

  function heat() {
    /** @type {(number | null)[]} */
    const scores = model.get("scores");
    const known = /** @type {number[]} */ (scores.filter((score) => score !== null));
    root.classList.toggle("ao-scored", known.length > 0);
    // From nought, so that the height of a bar says how much; lower where a score is negative.
    const low = Math.min(0, ...known);
    const high = Math.max(...known);
    cells.forEach((cell, i) => {
      const score = scores[i];
      if (typeof score !== "number") return cell.style.removeProperty("--ao-heat");
      const share = high > low ? (score - low) / (high - low) : 0;
      cell.style.setProperty("--ao-heat", cividis(share).paper);
      cell.style.setProperty("--ao-high", `${(1 + 5 * share).toFixed(1)}px`);
    });
    legend.hidden = known.length === 0;
    const bar = element("i");
    bar.style.background = cividisGradient();
    legend.replaceChildren(model.get("score_label"), " ", known.length ? rounded(low) : "", bar, known.length ? rounded(high) : "");
  }

  /** @param {string} token */
  function contents(token) {
    const parts = visibleParts(token);
    return parts.flatMap(({ text, mark }, place) => {
      const part = mark ? element("span", { className: "ao-mark", textContent: text }) : text;
      // A new line is shown as a sign and as what it does; one at the end breaks after the token,
      // whose box would else go on in the next line.
      return mark && text === "⏎" && place < parts.length - 1 ? [part, "\n"] : [part];
    });
  }

  function build() {
    /** @type {string[]} */
    const tokens = model.get("tokens");
    special = new Set(model.get("special"));
    groups = groupsOf(model.get("roles"), tokens.length);
    groupOf = groups.flatMap(({ start, stop }, group) => Array(stop - start).fill(group));
    words = wordUnits(tokens, special, (i) => groupOf[i]);
    draft = null;
    dragging = full = false;
    painted = new Set();
    cells = tokens.map((token, i) => element("span", {
      className: special.has(i) ? "ao-token ao-template" : "ao-token",
      role: "option",
      "aria-selected": "false",
      "aria-label": `${i}: ${spoken(token)}`,
      "data-i": String(i),
      tabIndex: -1,
      // Each token by itself: the order on the page is the model's, in any script.
      dir: "auto",
    }, ...contents(token)));
    list.replaceChildren(...groups.map(({ role, start, stop }, group) => {
      const body = element("div", { className: "ao-body" });
      for (let i = start; i < stop; i += 1) {
        // Tokens have no space between them at which a line could end.
        body.append(cells[i], document.createElement(tokens[i].endsWith("\n") && i < stop - 1 ? "br" : "wbr"));
      }
      const heading = element("span", { className: "ao-role", "aria-hidden": "true", "data-group": String(group), textContent: role });
      const names = role ? { "aria-label": `${role} message` } : {};
      return element("div", { className: "ao-message", role: role ? "group" : "presentation", "data-role": role, ...names }, heading, body);
    }));
    if (!cells.length) list.append(element("div", { className: "ao-empty", role: "option", "aria-disabled": "true", textContent: "no tokens" }));
    root.classList.toggle("ao-chat", groups.some(({ role }) => role));
    detail.textContent = cells.length && !model.get("disabled")
      ? "Drag over tokens; or arrow keys, with Shift to select"
      : "";
    anchor = Math.min(anchor, Math.max(0, last()));
    moveTo(Math.min(cursor, Math.max(0, last())));
    heat();
    options();
  }

  function options() {
    title.textContent = model.get("label");
    list.setAttribute("aria-label", model.get("label"));
    const disabled = model.get("disabled");
    list.setAttribute("aria-disabled", String(disabled));
    all.disabled = disabled || !cells.length;
    choice.disabled = disabled;
    for (const radio of radios) radio.checked = radio.value === model.get("granularity");
    paint();
  }

  /** @param {PointerEvent} event */
  function hit(event) {
    // In a shadow root (marimo), document.elementFromPoint sees only the host. A drag that leaves
    // the list goes on at its edge.
    const scope = /** @type {Document | ShadowRoot} */ (list.getRootNode());
    const box = list.getBoundingClientRect();
    const y = Math.min(Math.max(event.clientY, box.top + 4), box.bottom - 4);
    const x = Math.min(Math.max(event.clientX, box.left + 2), box.right - 2);
    return scope.elementFromPoint(x, y)?.closest(".ao-token, .ao-role") ?? null;
  }

  const indexOf = (/** @type {Element | null} */ cell) =>
    cell instanceof HTMLElement && cell.dataset.i !== undefined ? Number(cell.dataset.i) : null;

  list.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || model.get("disabled")) return;
    const target = hit(event);
    const add = event.ctrlKey || event.metaKey;
    if (target instanceof HTMLElement && target.dataset.group !== undefined) {
      event.preventDefault();
      const { start, stop } = groups[Number(target.dataset.group)];
      const range = Array.from({ length: stop - start }, (_, i) => start + i);
      const words = range.filter((i) => !special.has(i));
      anchor = (words.length ? words : range)[0];
      moveTo(anchor);
      commit(joined(add ? sent() : new Set(), words.length ? words : range));
      return;
    }
    const i = indexOf(target);
    if (i === null) return;
    event.preventDefault(); // no selection of text
    list.setPointerCapture(event.pointerId);
    dragging = true;
    before = add ? sent() : new Set();
    if (!event.shiftKey) anchor = i;
    takesAway = add && !event.shiftKey && before.has(i);
    moveTo(i);
    cells[i].focus({ preventScroll: true });
    draft = (takesAway ? without : joined)(before, between(anchor, i));
    paint();
  }, { signal });

  list.addEventListener("pointermove", (event) => {
    const i = indexOf(hit(event));
    if (i !== null) describe(i);
    if (!dragging) return;
    const box = list.getBoundingClientRect();
    if (event.clientY > box.bottom) list.scrollTop += 12;
    if (event.clientY < box.top) list.scrollTop -= 12;
    if (i === null || i === cursor) return;
    moveTo(i);
    draft = (takesAway ? without : joined)(before, between(anchor, i));
    paint();
  }, { signal });

  list.addEventListener("pointerup", () => {
    if (!dragging) return;
    dragging = false;
    cells[cursor].focus({ preventScroll: true });
    if (draft) commit(draft);
  }, { signal });

  list.addEventListener("pointercancel", () => {
    dragging = false;
    draft = null;
    paint();
  }, { signal });

  list.addEventListener("focusin", (event) => {
    const i = indexOf(/** @type {Element} */ (event.target));
    if (i === null) return;
    describe(i);
    if (i === cursor) return;
    moveTo(i); // a reader of screens may put the focus anywhere
    anchor = i;
  }, { signal });

  /**
   * The token on the next line in a direction that is nearest sidewards.
   * @param {1 | -1} direction
   */
  function onNextLine(direction) {
    // A token with a new line in it has several boxes: it is left from its last, and met at its first.
    const boxes = cells[cursor].getClientRects();
    const here = direction > 0 ? boxes[boxes.length - 1] : boxes[0];
    const middle = here.left + here.width / 2;
    let [best, nearestLine, nearest] = [cursor, Infinity, Infinity];
    cells.forEach((cell, i) => {
      const own = cell.getClientRects();
      const box = direction > 0 ? own[0] : own[own.length - 1];
      const line = (box.top - here.top) * direction;
      if (line < here.height / 2) return;
      const aside = Math.max(box.left - middle, 0, middle - box.right);
      if (line < nearestLine - 3 || (line < nearestLine + 3 && aside < nearest)) {
        [best, nearestLine, nearest] = [i, line, aside];
      }
    });
    return best;
  }

  /** @type {Record<string, () => number>} */
  const moves = {
    ArrowLeft: () => unit(Math.max(0, unit(cursor)[0] - 1))[0],
    ArrowRight: () => Math.min(last(), unit(cursor)[1] + 1),
    ArrowUp: () => onNextLine(-1),
    ArrowDown: () => onNextLine(1),
    Home: () => 0,
    End: last,
  };

  list.addEventListener("keydown", (event) => {
    if (!cells.length || dragging || event.altKey) return;
    const command = event.ctrlKey || event.metaKey;
    const fixed = model.get("disabled");
    if (event.key in moves) {
      moveTo(moves[event.key]());
      cells[cursor].focus({ preventScroll: true });
      cells[cursor].scrollIntoView({ block: "nearest" });
      if (!event.shiftKey) {
        anchor = cursor;
      } else if (!fixed) {
        draft = joined(new Set(), between(anchor, cursor)); // sent when the key comes up
        paint();
      }
    } else if (event.key === " " && !fixed) {
      anchor = cursor;
      const range = between(cursor, cursor);
      commit(range.every((i) => sent().has(i)) ? without(sent(), range) : joined(sent(), range));
    } else if (event.key.toLowerCase() === "a" && command && !fixed) {
      commit(joined(new Set(), everything()));
    } else if (event.key === "Escape" && !fixed) {
      full = false;
      commit(new Set());
    } else {
      return; // Tab and all others are not ours
    }
    event.preventDefault();
    event.stopPropagation(); // also with Ctrl: JupyterLab has its own Ctrl+A
  }, { signal });

  /** All tokens, those nearest to the cursor first. */
  const everything = () =>
    cells.map((_, i) => i).sort((x, y) => Math.abs(x - cursor) - Math.abs(y - cursor));

  const commitDraft = () => {
    if (draft && !dragging) commit(draft);
  };
  list.addEventListener("keyup", commitDraft, { signal });
  list.addEventListener("focusout", (event) => {
    // The key may come up elsewhere; from token to token the gesture goes on.
    if (!list.contains(/** @type {Node | null} */ (event.relatedTarget))) commitDraft();
  }, { signal });

  all.addEventListener("click", () => commit(joined(new Set(), everything())), { signal });
  none.addEventListener("click", () => {
    full = false;
    commit(new Set());
  }, { signal });
  choice.addEventListener("change", (event) => {
    model.set("granularity", /** @type {HTMLInputElement} */ (event.target).value);
    model.save_changes();
  }, { signal });
  keepBareKeys(root, signal);

  listen(context, ["change:tokens", "change:special", "change:roles"], build);
  listen(context, ["change:scores", "change:score_label"], heat);
  listen(context, ["change:label", "change:disabled", "change:granularity", "change:max_positions"], options);
  listen(context, ["change:selection"], paint);
  build();
}

export default { render };
