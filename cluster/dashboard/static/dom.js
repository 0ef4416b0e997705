// Elements, tables that are updated in place, and how numbers and times are written.

const SVG = 'http://www.w3.org/2000/svg';

/** Make an element. `props`: attributes; `class`, `text`, and `onclick` and the like. */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** Make an element of SVG. */
export function s(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name === 'text') element.textContent = value;
    else if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null));
  return element;
}

/** Replace what an element holds, unless it is the same text. */
export function show(element, ...children) {
  const [only] = children;
  if (children.length === 1 && typeof only === 'string') {
    if (element.textContent !== only) element.textContent = only;
  } else {
    element.replaceChildren(...children.flat(Infinity).filter((child) => child != null));
  }
}

export function pill(text, tone = '') {
  return h('span', { class: `pill ${tone}`, text });
}

/** A message that stands beside what it is about; `error` may be a Problem of the API. */
export function notice(error, ...more) {
  if (!error) return null;
  const text = error instanceof Error ? error.message : String(error);
  const code = error.code ? h('code', { text: `${error.status} ${error.code}` }) : null;
  const tone = error instanceof Error ? 'bad' : 'good';
  return h('p', { class: `notice ${tone}`, role: tone === 'bad' ? 'alert' : 'status' }, code, ` ${text} `, more);
}

const numbers = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });
const times = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
const dates = new Intl.DateTimeFormat('sv', { dateStyle: 'short', timeStyle: 'medium' });

/** Write a count; a dash for what is not known. */
export function count(value) {
  return value == null ? '–' : numbers.format(value);
}

export function number(value) {
  if (value == null || Number.isNaN(value)) return '–';
  return Math.abs(value) >= 1000 ? numbers.format(value) : fine.format(value);
}

export function milliseconds(value) {
  if (value == null) return '–';
  return value >= 1000 ? `${fine.format(value / 1000)} s` : `${fine.format(value)} ms`;
}

export function clock(at) {
  return times.format(at);
}

export function date(at) {
  return at ? dates.format(at) : 'unknown';
}

export function size(bytes) {
  if (bytes < 1024) return `${bytes} bytes`;
  return bytes < 1024 * 1024 ? `${fine.format(bytes / 1024)} KiB` : `${fine.format(bytes / 1024 / 1024)} MiB`;
}

/**
 * A table whose rows are kept by their keys, so that focus and selection stay where they are.
 *
 * A cell is a text, or { text, tone } (a pill), { text, href }, { text, click, disabled, title }.
 */
export class Table {
  #rows = new Map();
  #body = h('tbody');
  #columns;
  #empty;

  constructor(caption, columns, empty = 'Nothing here.') {
    this.#columns = columns;
    this.#empty = h('tr', {}, h('td', { class: 'empty', colspan: columns.length, text: empty }));
    const heads = columns.map((column) => h('th', { scope: 'col', class: column.kind, text: column.title ?? column }));
    this.element = h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption },
      h('table', {}, h('caption', { class: 'unseen', text: caption }), h('thead', {}, h('tr', {}, heads)), this.#body));
    this.update([]);
  }

  /** `items`: { key, cells, selected, tone } each, in the order in which they are shown. */
  update(items) {
    const left = new Set(this.#rows.keys());
    let before = this.#body.firstChild;
    for (const item of items) {
      let row = this.#rows.get(item.key);
      if (!row) {
        row = { element: h('tr'), cells: [], written: [] };
        this.#rows.set(item.key, row);
      }
      left.delete(item.key);
      this.#write(row, item);
      if (row.element === before) before = before.nextSibling;
      else this.#body.insertBefore(row.element, before);
    }
    for (const key of left) {
      this.#rows.get(key).element.remove();
      this.#rows.delete(key);
    }
    if (items.length) this.#empty.remove();
    else this.#body.append(this.#empty);
  }

  #write(row, item) {
    row.item = item;
    const tone = `${item.tone ?? ''}${item.selected ? ' selected' : ''}`;
    if (row.element.className !== tone) row.element.className = tone;
    item.cells.forEach((cell, at) => {
      const written = JSON.stringify(cell ?? null);
      if (row.written[at] === written) return;
      row.written[at] = written;
      if (!row.cells[at]) {
        row.cells[at] = h(at ? 'td' : 'th', { class: this.#columns[at].kind, scope: at ? null : 'row' });
        row.element.append(row.cells[at]);
      }
      show(row.cells[at], draw(cell, () => row.item.cells[at]));
    });
  }
}

function draw(cell, now) {
  if (cell == null) return '';
  if (typeof cell !== 'object') return String(cell);
  if ('href' in cell) return h('a', { href: cell.href, text: cell.text, title: cell.title, 'aria-current': cell.current ? 'true' : null });
  if ('action' in cell) {
    return h('button', { type: 'button', class: `small ${cell.class ?? ''}`, text: cell.text, disabled: cell.disabled, title: cell.title, onclick: () => now().action.run() });
  }
  if ('tone' in cell) return pill(cell.text, cell.tone);
  return h('span', { text: cell.text, title: cell.title, class: cell.class });
}

/** An action for a cell; it is not part of what is compared. */
export function action(run) {
  return { run, toJSON: () => 0 };
}

const dialog = () => document.getElementById('dialog');

/** Ask in a dialog; `fields` are elements. Returns whether it was confirmed. */
export function ask(title, fields, confirm, { dangerous = false } = {}) {
  const box = dialog();
  return new Promise((resolve) => {
    const ok = h('button', { type: 'submit', class: dangerous ? 'danger' : 'primary', text: confirm });
    const form = h('form', { method: 'dialog' },
      h('h2', { id: 'dialog-title', text: title }), fields,
      h('div', { class: 'row end' }, h('button', { type: 'button', text: 'Cancel', onclick: () => box.close() }), ok));
    let confirmed = false;
    form.addEventListener('submit', (event) => { event.preventDefault(); confirmed = true; box.close(); });
    show(box, form);
    box.addEventListener('close', () => resolve(confirmed), { once: true });
    box.showModal();
  });
}
