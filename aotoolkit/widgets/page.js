// @ts-check
// Runs widgets in a page without a kernel: a model for each, with what anywidget's models have.

/** @param {Record<string, any>} state */
function fakeModel(state) {
  /** @type {Map<string, Set<(message?: any) => void>>} */
  const handlers = new Map();
  const emit = (/** @type {string} */ event, /** @type {any} */ message = undefined) => {
    for (const handler of [...(handlers.get(event) ?? [])]) handler(message);
  };
  /** @type {Set<string>} */
  let changed = new Set();
  return {
    get: (/** @type {string} */ name) => state[name],
    set(/** @type {string} */ name, /** @type {any} */ value) {
      state[name] = value;
      changed.add(name);
      emit(`change:${name}`);
    },
    save_changes() {
      const saved = Object.fromEntries([...changed].map((name) => [name, state[name]]));
      changed = new Set();
      emit("saved", saved); // no widget listens to it: it says what a kernel would have been sent
    },
    send: (/** @type {object} */ message) => emit("sent", message),
    on(/** @type {string} */ event, /** @type {(message?: any) => void} */ handler) {
      handlers.set(event, (handlers.get(event) ?? new Set()).add(handler));
    },
    off: (/** @type {string} */ event, /** @type {(message?: any) => void} */ handler) => handlers.get(event)?.delete(handler),
    emit,
  };
}

const read = (/** @type {string} */ id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");

/** @type {Record<string, string>} */
const sources = read("ao-modules");
/** @type {Record<string, Promise<any>>} */
const modules = {};
for (const [name, source] of Object.entries(sources)) {
  // A module's address of its own: an inline module cannot be imported, and a file cannot be here.
  modules[name] = import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
}
const models = [];
for (const el of document.querySelectorAll("[data-widget]")) {
  const name = /** @type {HTMLElement} */ (el).dataset.widget ?? "";
  const model = fakeModel(read(`${el.id}-state`));
  models.push(model);
  (await modules[name]).default.render({ model, el, signal: new AbortController().signal });
}
Object.assign(window, { aoModels: models }); // for tests, and for who wants to look
export {}; // makes it a module also to who reads it without the page: `await` stands outside functions
