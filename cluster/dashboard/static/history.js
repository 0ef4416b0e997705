// Who became primary, who joined and left the in-sync set, when and why.

import { count, date, h, Table } from './dom.js';

const TONES = { take_over: 'bad', restart: 'warn', removed_from_in_sync: 'warn', handover: 'good', bootstrap: 'good', added_to_in_sync: 'good' };
const TITLES = {
  bootstrap: 'begun', take_over: 'take-over', restart: 'restart', handover: 'handover', removed_from_in_sync: 'left the set',
  added_to_in_sync: 'in sync', member_added: 'member added', member_changed: 'member changed', member_removed: 'member removed',
};
const OF_PRIMARY = new Set(['bootstrap', 'take_over', 'restart', 'handover']);

export function stepTable(caption) {
  return new Table(caption, ['When', 'What', 'Why', 'Primary', 'In sync', { title: 'Epoch', kind: 'number' }, { title: 'View', kind: 'number' }], 'No change is known.');
}

/** The rows of changes, newest first. */
export function stepRows(views) {
  return views.map((step) => ({
    key: step.version,
    cells: [
      { text: date(step.at_ms), class: 'time' }, { text: TITLES[step.kind] ?? step.kind, tone: TONES[step.kind] ?? '' }, step.reason, step.primary,
      step.in_sync.join(', '), count(step.epoch), count(step.version),
    ],
  })).reverse();
}

export function history(root, { state }) {
  const only = h('input', { type: 'checkbox', id: 'only', onchange: () => update() });
  const table = stepTable('Changes of the view');
  root.append(h('section', {}, h('div', { class: 'row' }, h('h2', { text: 'Changes of the view' }),
    h('label', { for: 'only' }, only, ' only changes of the primary')), table.element,
  h('p', { class: 'hint', text: 'The last 100 changes, as consensus remembers them: they survive restarts, and are the same on every node. The time is that of the clock of the node that asked for the change.' })));

  function update() {
    const views = state.views ?? [];
    table.update(stepRows(only.checked ? views.filter(({ kind }) => OF_PRIMARY.has(kind)) : views));
  }
  return { update };
}
