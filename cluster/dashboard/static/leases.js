// Client leases: what hangs on each, and how long it lasts without a keep-alive.

import { json } from './api.js';
import { action, ask, count, h, milliseconds, notice, show, Table } from './dom.js';
import { Pager } from './pages.js';

const PAGE_LEASES = 50;
const REFRESH_MS = 2000;
const MAX_SHOWN_KEYS = 100;

export function leases(root, { state, params, signal, repeat }) {
  let chosen = '';
  const table = new Table('Client leases', [{ title: 'Lease' }, { title: 'TTL', kind: 'number' }, { title: 'Keys', kind: 'number' }], 'There are no leases.');
  const pager = new Pager(table, readPage);
  const [title, facts, message, held] = [h('h2'), h('div'), h('div'), h('div')];
  const revoke = h('button', { type: 'button', class: 'danger', text: 'Revoke', onclick: () => end() });
  const panel = h('section', { class: 'panel', 'aria-label': 'One lease', hidden: true }, title, message, facts, held,
    h('div', { class: 'row' }, h('button', { type: 'button', text: 'Close', onclick: () => choose('') }), revoke));
  root.append(h('h2', { text: 'Client leases' }), h('div', { class: 'split' }, pager.element, panel));

  async function readPage(after, reading) {
    const asked = new URLSearchParams({ limit: PAGE_LEASES, ...(after && { after }) });
    const found = await json(`../v1/leases?${asked}`, { signal: AbortSignal.any([reading, signal]) });
    const rows = found.leases.map((item) => () => ({
      key: item.lease,
      selected: item.lease === chosen,
      cells: [{ text: item.lease, action: action(() => choose(item.lease)), class: 'link', title: `Open lease ${item.lease}` }, milliseconds(item.ttl_ms), count(item.keys)],
    }));
    return { rows, next: found.next };
  }

  function choose(lease) {
    chosen = lease;
    panel.hidden = !lease;
    globalThis.history.replaceState(null, '', `#/leases${lease ? `?lease=${lease}` : ''}`);
    show(title, `Lease ${lease}`);
    for (const place of [message, facts, held]) show(place);
    pager.draw();
    look();
  }

  async function look() {
    const lease = chosen;
    if (!lease) return;
    try {
      const found = await json(`../v1/leases/${lease}`, { signal });
      if (lease !== chosen) return;
      show(message);
      show(facts, h('dl', { class: 'facts' }, ...Object.entries({ TTL: milliseconds(found.ttl_ms), 'At least left': milliseconds(found.left_ms), Keys: count(found.keys.length), Locks: count(found.locks.length) })
        .map(([term, value]) => h('div', {}, h('dt', { text: term }), h('dd', { text: value })))));
      drawHeld(found);
      revoke.disabled = !state.may('lease');
    } catch (error) {
      if (signal.aborted || lease !== chosen) return;
      show(message, notice(error));
      revoke.disabled = true;
    }
  }

  let drawn = '';
  function drawHeld({ keys, locks }) {
    const key = JSON.stringify([chosen, keys, locks]);
    if (key === drawn && held.hasChildNodes()) return;
    drawn = key;
    const list = (name, items, page, field) => (items.length ? [h('h3', { text: name }), h('ul', { class: 'plain' },
      items.slice(0, MAX_SHOWN_KEYS).map((item) => h('li', {}, h('a', { href: `#/${page}?${new URLSearchParams({ [field]: item })}`, text: item }))),
      items.length > MAX_SHOWN_KEYS ? h('li', { class: 'hint', text: `and ${count(items.length - MAX_SHOWN_KEYS)} more` }) : null)] : []);
    show(held, ...list('Keys', keys, 'keys', 'key'), ...list('Locks that it holds or waits for', locks, 'locks', 'lock'));
  }

  async function end() {
    const lease = chosen;
    if (!await ask(`Revoke lease ${lease}?`, h('p', { text: 'Its keys are deleted and its locks pass on, at once.' }), 'Revoke', { dangerous: true })) return;
    try {
      const { deleted } = await json(`../v1/leases/${lease}`, { method: 'DELETE' });
      choose('');
      panel.hidden = false;
      show(title, `Lease ${lease}`);
      show(message, notice(`It is revoked; ${count(deleted)} keys went with it.`));
    } catch (error) {
      show(message, notice(error));
    }
    pager.reload();
  }

  repeat(REFRESH_MS, () => Promise.all([pager.reload(), look()]));
  if (params.get('lease')) choose(params.get('lease'));
  return {
    navigate(next) {
      if ((next.get('lease') ?? '') !== chosen) choose(next.get('lease') ?? '');
    },
  };
}
