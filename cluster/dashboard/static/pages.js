// A list that is shown page by page, whatever its length: one page is held, and where the earlier ones began.

import { count, h, notice, show } from './dom.js';

const MAX_PAGES_BACK = 1000;

/**
 * `read(from, signal)` returns { rows, next, note } for the page that begins after `from` ('' is the first).
 * `table` shows its rows.
 */
export class Pager {
  #read;
  #table;
  #starts = [''];
  #next = null;
  #reading = null;
  #status = h('span', { class: 'hint', role: 'status' });
  #message = h('div');
  #buttons;

  constructor(table, read) {
    this.#table = table;
    this.#read = read;
    const button = (text, go) => h('button', { type: 'button', class: 'small', text, onclick: () => go() });
    this.#buttons = {
      first: button('First page', () => this.reset()),
      back: button('Previous', () => { this.#starts.pop(); this.reload(); }),
      on: button('Next', () => {
        this.#starts.push(this.#next);
        if (this.#starts.length > MAX_PAGES_BACK) this.#starts.splice(1, 1);
        this.reload();
      }),
    };
    this.element = h('div', {}, this.#message, table.element,
      h('div', { class: 'row' }, Object.values(this.#buttons), this.#status));
    this.rows = [];
    this.isLast = false;
    this.#show();
  }

  /** Show the first page. */
  reset() {
    this.#starts = [''];
    return this.reload();
  }

  /** Read the present page again. */
  async reload() {
    this.#reading?.abort();
    const reading = new AbortController();
    this.#reading = reading;
    try {
      const { rows, next, note } = await this.#read(this.#starts.at(-1), reading.signal);
      if (reading.signal.aborted) return;
      [this.rows, this.#next, this.isLast] = [rows, next, next == null];
      show(this.#message);
      show(this.#status, `page ${count(this.#starts.length)}${note ? `, ${note}` : ''}`);
    } catch (error) {
      if (reading.signal.aborted) return;
      show(this.#message, notice(error));
    }
    this.#show();
  }

  #show() {
    this.#buttons.first.disabled = this.#buttons.back.disabled = this.#starts.length === 1;
    this.#buttons.on.disabled = this.#next == null;
    this.draw();
  }

  /** Write the rows of the present page into the table. */
  draw() {
    this.#table.update(this.rows.map((row) => row()));
  }
}
