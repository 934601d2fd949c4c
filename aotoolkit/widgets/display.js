// @ts-check
// What both widgets share. Python puts this file where a widget imports it (base.py says why).

/**
 * What a front end is given: anywidget's model, or the one of an exported page.
 * @typedef {object} Model
 * @property {(name: string) => any} get
 * @property {(name: string, value: any) => void} set
 * @property {() => void} save_changes
 * @property {(message: object) => void} send
 * @property {(event: string, handler: (message?: any) => void) => void} on
 * @property {(event: string, handler: (message?: any) => void) => void} off
 */

/** @typedef {{ model: Model, el: HTMLElement, signal?: AbortSignal }} Context */

/**
 * Parts of a token, those that stand for white space and invisible characters marked.
 * Control and format characters are spelled out: one that turns the direction of the text would
 * else rearrange the page. A joiner between emoji stays, unless it stands alone.
 * @param {string} token
 * @returns {{ text: string, mark: boolean }[]}
 */
export function visibleParts(token) {
  if (token === "") return [{ text: "∅", mark: true }];
  const unseen = /^ +| +$|\n|\t|(?!\u200d)[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]|^\u200d$|^\u2025$|\ufffd/gu;
  const parts = [];
  let end = 0;
  for (const match of token.matchAll(unseen)) {
    const start = match.index ?? 0;
    if (start > end) parts.push({ text: token.slice(end, start), mark: false });
    end = start + match[0].length;
    const shown =
      match[0][0] === " " ? "·".repeat(match[0].length)
      : match[0] === "\n" ? "⏎"
      : match[0] === "\t" ? "⇥"
      : match[0] === "\ufffd" || match[0] === "\u2025" ? match[0]
      : `⟨${(match[0].codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
    parts.push({ text: shown, mark: true });
  }
  if (end < token.length) parts.push({ text: token.slice(end), mark: false });
  return parts;
}

/** @param {string} token */
export function visible(token) {
  return visibleParts(token).map((part) => part.text).join("");
}

/** @param {string} token as a reader of screens says it */
export function spoken(token) {
  if (token === "") return "empty";
  if (/^[\ufffd\u2025]+$/u.test(token)) return "part of a character";
  if (token.trim() !== "") return token.trim();
  return token.includes("\n") ? "new line" : token.includes("\t") ? "tab" : "space";
}

// Ten stops of cividis, which is monotone in lightness and reads alike with any colour vision.
const CIVIDIS = [
  [0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115],
  [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56],
];

/** @param {number} value from 0 to 1 @returns {{ paper: string, ink: string }} */
export function cividis(value) {
  const x = Math.min(1, Math.max(0, value)) * (CIVIDIS.length - 1);
  const stop = Math.min(CIVIDIS.length - 2, Math.floor(x));
  const rgb = CIVIDIS[stop].map((c, k) => Math.round(c + (CIVIDIS[stop + 1][k] - c) * (x - stop)));
  const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  // At this luminance black and white stand out alike: at least 4.5:1 on either side of it.
  const light = 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179;
  return { paper: `rgb(${rgb.join(" ")})`, ink: light ? "#000" : "#fff" };
}

/** The whole scale, for a legend. */
export function cividisGradient() {
  return `linear-gradient(to right, ${CIVIDIS.map((rgb) => `rgb(${rgb.join(" ")})`).join(", ")})`;
}

/**
 * An element with properties, and children in it.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} properties those with "-" or "role" become attributes
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name.includes("-")) made.setAttribute(name, value);
    else /** @type {any} */ (made)[name] = value;
  }
  made.append(...children);
  return made;
}

/**
 * @param {Context} context
 * @param {string[]} events
 * @param {(message?: any) => void} handler
 */
export function listen({ model, signal }, events, handler) {
  for (const event of events) {
    model.on(event, handler);
    signal?.addEventListener("abort", () => model.off(event, handler));
  }
}

/**
 * JupyterLab binds bare keys ("a", "d d", Enter, arrows) for whatever has the focus inside a
 * notebook, and listens on the document as events bubble up: such keys end here. Tab, and what is
 * pressed with Ctrl, Meta or Alt, goes on, so that Ctrl+S still saves.
 * @param {HTMLElement} root
 * @param {AbortSignal | undefined} signal
 */
export function keepBareKeys(root, signal) {
  const stop = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Tab" && !event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
  };
  root.addEventListener("keydown", stop, { signal });
}
