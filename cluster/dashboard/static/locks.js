// Locks and elections, which are the same: who holds one, who waits, and how it changes hands.

import { encoded, json, stream } from './api.js';
import { action, clock, count, h, notice, pill, show, Table } from './dom.js';
import { Pager } from './pages.js';

const PAGE_LOCKS = 50;
const REFRESH_MS = 2000;
const MAX_EVENTS = 50;

export function locks(root, { state, params, signal, repeat }) {
  let chosen = '';
  let following = null;
  let held = [];
  const table = new Table('Locks and elections that are held', [{ title: 'Name', kind: 'key' }, { title: 'Token', kind: 'number' }, { title: 'Lease' }, { title: 'Holder’s note', kind: 'key' }], 'No lock is held.');
  const pager = new Pager(table, readPage);
  const nameField = h('input', { id: 'lock', type: 'search', spellcheck: 'false', autocomplete: 'off' });
  const form = h('form', { class: 'row', role: 'search' }, h('label', { for: 'lock', text: 'Follow the lock or election' }), nameField, h('button', { type: 'submit', text: 'Follow' }));
  form.addEventListener('submit', (event) => { event.preventDefault(); choose(nameField.value); });
  const [title, holder, message, liveState] = [h('h2'), h('div'), h('div'), h('span', { class: 'hint', role: 'status' })];
  const queue = new Table('Those that wait', [{ title: 'Place', kind: 'number' }, { title: 'Lease' }, { title: 'Note', kind: 'key' }], 'Nobody waits.');
  const hands = new Table('How it changed hands', ['Time', { title: 'Revision', kind: 'number' }, { title: 'Token', kind: 'number' }, { title: 'Holder’s note', kind: 'key' }], 'Nothing yet.');
  const panel = h('section', { class: 'panel', 'aria-label': 'One lock', hidden: true }, title, message, holder, h('h3', { text: 'Queue' }), queue.element,
    h('h3', {}, 'Changes of hands ', liveState), hands.element,
    h('div', { class: 'row' }, h('button', { type: 'button', text: 'Close', onclick: () => choose('') })));
  root.append(h('h2', { class: 'unseen', text: 'Locks and elections' }), form, h('div', { class: 'split' }, pager.element, panel));

  async function readPage(after, reading) {
    const asked = new URLSearchParams({ limit: PAGE_LOCKS, ...(after && { after }) });
    const found = await json(`../v1/locks?${asked}`, { signal: AbortSignal.any([reading, signal]) });
    const rows = found.locks.map((item) => () => ({
      key: item.lock,
      selected: item.lock === chosen,
      cells: [{ text: item.lock, action: action(() => choose(item.lock)), class: 'link', title: `Follow ${item.lock}` }, item.token, { text: item.lease, href: `#/leases?lease=${item.lease}` }, item.note],
    }));
    return { rows, next: found.next };
  }

  function choose(name) {
    following?.abort();
    chosen = name;
    held = [];
    panel.hidden = !name;
    globalThis.history.replaceState(null, '', `#/locks${name ? `?${new URLSearchParams({ lock: name })}` : ''}`);
    pager.draw();
    if (!name) return;
    show(title, name);
    show(holder);
    show(message);
    show(liveState);
    queue.update([]);
    hands.update([]);
    look();
    follow(name);
  }

  function follow(name) {
    following = new AbortController();
    const ended = AbortSignal.any([following.signal, signal]);
    stream(`../v1/elections/${encoded(name)}/observe`, {
      signal: ended,
      onState: (text) => show(liveState, text),
      onEvent: (event) => {
        if (!('leader' in event)) return;
        held = [{ at: Date.now(), ...event }, ...held].slice(0, MAX_EVENTS);
        hands.update(held.map(({ at, revision, leader }, index) => ({
          key: `${revision} ${leader?.token}`,
          tone: index ? '' : 'leading',
          cells: [clock(at), count(revision), leader ? leader.token : '–', leader ? leader.value : { text: 'free', tone: '' }],
        })));
        look();
        pager.reload();
      },
    }).catch((error) => { // a witness has no data to follow: it is asked again and again instead
      if (!ended.aborted) show(liveState, error.code === 'no_data' ? 'not on a witness: open a replica’s dashboard' : error.message);
    });
  }

  async function look() {
    const name = chosen;
    if (!name) return;
    try {
      const found = await json(`../v1/locks/${encoded(name)}`, { signal });
      if (name !== chosen) return;
      show(message);
      show(holder, h('dl', { class: 'facts' }, ...Object.entries({ 'Held by': found.note || '(no note)', Token: found.token, Lease: found.lease, Waiting: count(found.waiting) })
        .map(([term, value]) => h('div', {}, h('dt', { text: term }), h('dd', { text: value })))));
      queue.update(found.queue.map((item, index) => ({ key: item.lease, cells: [index + 1, { text: item.lease, href: `#/leases?lease=${item.lease}` }, item.note] })));
    } catch (error) {
      if (signal.aborted || name !== chosen) return;
      if (error.code === 'not_held') {
        show(message);
        show(holder, pill('free'));
        queue.update([]);
      } else {
        show(message, notice(error));
      }
    }
  }

  /** Look at what is not followed: while the lock is free, its next holder is told of. */
  const lookAgain = () => (held[0]?.leader === null ? null : look());
  repeat(REFRESH_MS, () => Promise.all([pager.reload(), lookAgain()]));
  if (params.get('lock')) choose(params.get('lock'));
  return {
    navigate(next) {
      if ((next.get('lock') ?? '') !== chosen) choose(next.get('lock') ?? '');
    },
  };
}
