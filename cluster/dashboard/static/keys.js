// Keys: page by page, one to read and change, and what changes as it changes.

import { encoded, json, request, stream } from './api.js';
import { action, ask, clock, count, h, notice, show, size, Table } from './dom.js';
import { Pager } from './pages.js';

const PAGE_KEYS = 50;
const MAX_EVENTS = 100;
const MAX_SHOWN_BYTES = 256 * 1024;
const MAX_SHOWN_LENGTH = 80;
const MAX_TOLD_LENGTH = 500;
const MAX_HEX_BYTES = 1024;
const RELOAD_MS = 1000;
const DRAW_MS = 250;

export function keys(root, { state, params, signal }) {
  let prefix = params.get('prefix') ?? '';
  const prefixField = h('input', { id: 'prefix', type: 'search', spellcheck: 'false', autocomplete: 'off', placeholder: 'all keys', value: prefix });
  const live = h('input', { id: 'live', type: 'checkbox', onchange: () => watch() });
  const liveState = h('span', { class: 'hint', role: 'status' });
  const message = h('div');
  const editor = new Editor({ state, onChanged: () => pager.reload(), onClosed: () => choose('') });
  const table = new Table('Keys', [{ title: 'Key', kind: 'key' }, { title: 'Version', kind: 'number' }, { title: 'Revision', kind: 'number' }, { title: 'Lease' }], 'No keys here.');
  const pager = new Pager(table, readPage);
  const events = new Table('Changes', ['Time', { title: 'Revision', kind: 'number' }, { title: 'Key', kind: 'key' }, { title: 'Change', kind: 'key' }], 'Nothing has changed since then.');
  const log = h('section', { class: 'panel', hidden: true, 'aria-labelledby': 'h-log' }, h('h2', { id: 'h-log', text: 'Changes as they are made' }), events.element);
  const search = h('form', { class: 'row', role: 'search' },
    h('label', { for: 'prefix', text: 'Keys with the prefix' }), prefixField, h('button', { type: 'submit', text: 'Show' }),
    h('label', { for: 'live' }, live, ' watch live'), liveState,
    h('button', { type: 'button', class: 'end', text: 'New key', onclick: () => editor.begin(prefix) }));
  search.addEventListener('submit', (event) => {
    event.preventDefault();
    prefix = prefixField.value;
    go();
    pager.reset();
    watch();
  });
  root.append(h('h2', { class: 'unseen', text: 'Keys' }), search, message, h('div', { class: 'split' }, pager.element, h('div', {}, editor.element, log)));

  function go(key) {
    const wanted = new URLSearchParams({ ...(prefix && { prefix }), ...(key && { key }) });
    globalThis.history.replaceState(null, '', `#/keys${wanted.size ? `?${wanted}` : ''}`);
  }

  async function readPage(cursor, reading) {
    const asked = new URLSearchParams({ limit: PAGE_KEYS, keys_only: true, ...(prefix && { prefix }), ...(cursor && { cursor }) });
    const found = await json(`../v1/kv?${asked}`, { signal: AbortSignal.any([reading, signal]) });
    const rows = found.items.map((item) => Object.assign(() => ({
      key: item.key,
      selected: item.key === editor.key,
      cells: [{ text: item.key, action: action(() => choose(item.key)), class: 'link', title: `Open ${item.key}` }, count(item.version), count(item.revision), item.lease ? { text: item.lease, href: `#/leases?lease=${item.lease}` } : ''],
    }), { item }));
    return { rows, next: found.cursor, note: `at revision ${count(found.revision)}` };
  }

  function choose(key) {
    go(key);
    if (key) {
      editor.open(key);
      editor.element.scrollIntoView({ block: 'nearest' });
    }
    pager.draw();
  }

  // --- live

  let watching = null;
  let held = [];
  let missed = 0;
  let [reloadAt, drawAt] = [null, null];

  function watch() {
    watching?.abort();
    held = [];
    missed = 0;
    events.update([]);
    log.hidden = !live.checked;
    show(liveState, '');
    show(message);
    if (!live.checked) return;
    watching = new AbortController();
    const ended = AbortSignal.any([watching.signal, signal]);
    stream(`../v1/watch?${new URLSearchParams({ prefix })}`, {
      signal: ended, onEvent: take, onState: (text) => show(liveState, text),
    }).catch((error) => {
      if (ended.aborted) return;
      live.checked = false;
      watch();
      show(message, notice(error));
    });
  }

  function take({ changes }) {
    for (const change of changes) {
      const { key, revision } = change; // no more is kept: values may be long
      held.push({ at: Date.now(), key, revision, what: whatChanged(change) });
      editor.changed(change);
    }
    missed += Math.max(0, held.length - MAX_EVENTS);
    if (held.length > MAX_EVENTS) held = held.slice(-MAX_EVENTS);
    if (changes.some(({ key }) => isOnPage(key))) reloadAt ??= setTimeout(() => { reloadAt = null; if (!signal.aborted) pager.reload(); }, RELOAD_MS);
    drawAt ??= setTimeout(() => { drawAt = null; drawEvents(); }, DRAW_MS);
  }

  function isOnPage(key) {
    const [first, last] = [pager.rows.at(0)?.item.key, pager.rows.at(-1)?.item.key];
    return first == null || (key >= first && (pager.isLast || key <= last));
  }

  function drawEvents() {
    const told = missed ? `live; the last ${MAX_EVENTS} of ${count(missed + held.length)} changes` : 'live';
    if (watching && !watching.signal.aborted) show(liveState, told);
    events.update(held.map(({ at, key, revision, what }) => ({
      key: `${revision} ${key}`,
      cells: [{ text: clock(at), class: 'time' }, count(revision), { text: key, action: action(() => choose(key)), class: 'link', title: key }, what],
    })).reverse());
  }

  pager.reload();
  if (params.get('key')) editor.open(params.get('key'));
  return {
    navigate(next) {
      const wanted = next.get('prefix') ?? '';
      if (wanted !== prefix) {
        prefix = prefixField.value = wanted;
        pager.reset();
        watch();
      }
      if (next.get('key') && next.get('key') !== editor.key) editor.open(next.get('key'));
    },
    update() { editor.update(); },
  };
}

function whatChanged(change) {
  if (change.deleted) return { text: change.reason ?? 'deleted', tone: 'warn' };
  if (change.text != null) return { text: change.text.slice(0, MAX_SHOWN_LENGTH), title: change.text.slice(0, MAX_TOLD_LENGTH) };
  return { text: `binary, about ${size(Math.floor((change.value.length * 3) / 4))}`, class: 'hint' };
}

/** One key: its value, and what changes it. A change is made only to the revision that is shown (If-Match). */
class Editor {
  #state;
  #onChanged;
  #onClosed;
  #shown = null;
  #value = h('textarea', { id: 'value', rows: '8', spellcheck: 'false', oninput: () => this.update() });
  #name = h('input', { id: 'new-key', spellcheck: 'false', autocomplete: 'off', oninput: () => this.update() });
  #title = h('h2');
  #facts = h('p', { class: 'hint' });
  #hex = h('pre', { class: 'hex', hidden: true, tabindex: '0' });
  #message = h('div');
  #newKey = h('div', { hidden: true }, h('label', { for: 'new-key', text: 'Key' }), this.#name);
  #label = h('label', { for: 'value', text: 'Value' });
  #save = h('button', { type: 'submit', class: 'primary', text: 'Save' });
  #reload = h('button', { type: 'button', text: 'Read again', onclick: () => this.open(this.key) });
  #download = h('button', { type: 'button', text: 'Download', onclick: () => this.#offer() });
  #remove = h('button', { type: 'button', class: 'danger', text: 'Delete', onclick: () => this.#delete() });

  constructor({ state, onChanged, onClosed }) {
    this.#state = state;
    this.#onChanged = onChanged;
    this.#onClosed = onClosed;
    this.key = '';
    const form = h('form', {}, this.#title, this.#facts, this.#message, this.#newKey, this.#label, this.#value, this.#hex,
      h('div', { class: 'row' }, this.#save, this.#reload, this.#download, h('button', { type: 'button', text: 'Close', onclick: () => this.#close() }), this.#remove));
    form.addEventListener('submit', (event) => { event.preventDefault(); this.#write(); });
    this.element = h('section', { class: 'panel', 'aria-label': 'One key', hidden: true }, form);
  }

  /** Show a key's value as it is now. */
  async open(key, told = null) {
    this.key = key;
    try {
      const answer = await request(`../v1/kv/${encoded(key)}`);
      const bytes = new Uint8Array(await answer.arrayBuffer());
      if (key !== this.key) return;
      const header = (name) => answer.headers.get(name);
      this.#show({
        bytes, text: asText(bytes), etag: header('ETag'), lease: header('Onecopy-Lease'),
        facts: `${size(bytes.length)}, revision ${count(header('ETag').replaceAll('"', ''))}, version ${count(header('Onecopy-Key-Version'))}, created at revision ${count(header('Onecopy-Create-Revision'))}`,
      }, told);
    } catch (error) {
      if (key === this.key) this.#show(null, notice(error));
    }
  }

  /** Ask for a new key. */
  begin(prefix) {
    this.key = '';
    this.#show({ bytes: new Uint8Array(), text: '', etag: null, lease: null, facts: 'It is created only if it does not exist yet.' }, null);
    this.#name.value = prefix;
    this.#name.focus();
    this.update();
  }

  /** A key was changed by somebody. */
  changed(change) {
    if (change.key !== this.key || `"${change.revision}"` === this.#shown?.etag) return;
    if (change.deleted) show(this.#message, notice(new Error(`It was deleted meanwhile (${change.reason}).`)));
    else if (!this.#isEdited()) this.open(this.key);
    else show(this.#message, notice(new Error('It was changed meanwhile: saving will be refused. “Read again” drops your changes.')));
  }

  #isEdited() {
    return this.#shown?.text != null && this.#value.value !== this.#shown.text;
  }

  #show(shown, told) {
    this.#shown = shown;
    this.element.hidden = false;
    show(this.#title, this.key || 'New key');
    show(this.#facts, shown ? h('span', {}, shown.facts, shown.lease ? [', on lease ', h('a', { href: `#/leases?lease=${shown.lease}`, text: shown.lease })] : null) : '');
    show(this.#message, told);
    this.#newKey.hidden = !!this.key;
    const isText = shown?.text != null;
    this.#value.hidden = this.#label.hidden = !isText;
    if (isText) this.#value.value = shown.text;
    this.#hex.hidden = !shown || isText;
    if (shown && !isText) show(this.#hex, shown.bytes.length > MAX_SHOWN_BYTES ? `${size(shown.bytes.length)}: too long to be shown and changed here.\n\n${hex(shown.bytes)}` : hex(shown.bytes));
    this.update();
  }

  /** Allow what the caller may do. */
  update() {
    const name = this.key || this.#name.value;
    const mayWrite = this.#state.may('write', name) && (this.#state.may('read', name) || !this.key);
    const why = mayWrite ? '' : 'The caller’s role does not allow to write this key';
    const isText = this.#shown?.text != null;
    this.#value.readOnly = !mayWrite;
    this.#save.hidden = !isText;
    this.#save.disabled = !mayWrite || !name || (!!this.key && !this.#isEdited());
    this.#save.title = this.#remove.title = why;
    show(this.#save, this.key ? 'Save' : 'Create');
    this.#remove.hidden = !this.key || !this.#shown;
    this.#remove.disabled = !mayWrite;
    this.#reload.hidden = !this.key;
    this.#download.hidden = !this.key || !this.#shown;
  }

  #close() {
    this.key = '';
    this.#shown = null;
    this.element.hidden = true;
    this.#onClosed();
  }

  async #write() {
    const key = this.key || this.#name.value;
    const { etag, lease } = this.#shown;
    const condition = etag ? { 'If-Match': etag } : { 'If-None-Match': '*' };
    const query = lease ? `?lease=${lease}` : '';
    const done = await this.#try(`../v1/kv/${encoded(key)}${query}`, { method: 'PUT', body: this.#value.value, headers: { ...condition, 'Content-Type': 'application/octet-stream' } });
    if (!done) return;
    this.open(key, notice(`Saved at revision ${done.revision}, on ${done.copies} ${done.copies === 1 ? 'replica' : 'replicas'}.`));
    this.#onChanged();
  }

  async #delete() {
    const { key } = this;
    if (!await ask('Delete this key?', h('p', {}, h('code', { text: key })), 'Delete', { dangerous: true })) return;
    const done = await this.#try(`../v1/kv/${encoded(key)}`, { method: 'DELETE', headers: { 'If-Match': this.#shown.etag } });
    if (!done) return;
    this.#close();
    this.#onChanged();
  }

  async #try(path, options) {
    this.#save.disabled = this.#remove.disabled = true;
    try {
      return await json(path, options);
    } catch (error) {
      const isOld = error.code === 'precondition_failed';
      const told = isOld ? new Error(this.key ? 'Nothing was changed: somebody has changed it since it was read. “Read again” shows the present value.' : 'Nothing was changed: this key exists already.') : error;
      show(this.#message, notice(Object.assign(told, { status: error.status, code: error.code })));
      return null;
    } finally {
      this.update();
    }
  }

  #offer() {
    const url = URL.createObjectURL(new Blob([this.#shown.bytes]));
    h('a', { href: url, download: this.key.replaceAll('/', '_') }).click();
    URL.revokeObjectURL(url);
  }
}

/** The text that bytes are, if they are UTF-8 that a text field gives back unchanged; else null. */
function asText(bytes) {
  if (bytes.length > MAX_SHOWN_BYTES) return null;
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    return /[\r\0]/.test(text) ? null : text; // a text field makes \r\n of one kind
  } catch {
    return null;
  }
}

function hex(bytes) {
  const lines = [];
  for (let at = 0; at < Math.min(bytes.length, MAX_HEX_BYTES); at += 16) {
    const part = [...bytes.subarray(at, at + 16)];
    const codes = part.map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
    const text = part.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : '.')).join('');
    lines.push(`${at.toString(16).padStart(6, '0')}  ${codes.padEnd(47)}  ${text}`);
  }
  return lines.join('\n') + (bytes.length > MAX_HEX_BYTES ? '\n…' : '');
}
