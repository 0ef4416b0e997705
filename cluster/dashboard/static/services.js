// The services that this node has, and how often they are called.

import { json } from './api.js';
import { count, h, milliseconds, notice, number, show, Table } from './dom.js';

const REFRESH_MS = 5000;

export function services(root, { state, repeat, signal }) {
  const message = h('div');
  const list = new Table('Services', ['Service', { title: 'Version', kind: 'number' }, 'What it is', 'Operations', 'Queries', 'Timers', 'State'], 'This node has no services beside the key-value store.');
  const calls = new Table('Calls on this node', ['Service', 'Method', { title: 'Per s', kind: 'number' }, { title: 'Done', kind: 'number' }, { title: 'Others', kind: 'number' }, { title: 'Mean time', kind: 'number' }], 'No calls were executed here.');
  root.append(message, h('section', {}, h('h2', { text: 'Services' }), list.element,
    h('p', { class: 'hint', text: 'Services are those whose code the node that serves this page has; calls are executed on the primary, and counted there.' })),
  h('section', {}, h('h2', { text: 'Calls on this node' }), calls.element));

  repeat(REFRESH_MS, async () => {
    try {
      const { services: found } = await json('../v1/services', { signal });
      show(message);
      list.update(found.map((item) => ({
        key: item.name,
        cells: [item.name, count(item.version), item.summary, item.operations.join(', '), item.queries.join(', '), item.timers.join(', '),
          item.difference ? { text: item.difference, tone: 'bad' } : { text: 'as in the cluster', tone: 'good' }],
      })));
    } catch (error) {
      if (!signal.aborted) show(message, notice(error));
    }
  });

  return {
    update() {
      const found = new Map();
      for (const { labels, value } of state.metrics?.get('service_calls_total') ?? []) {
        const key = `${labels.service} ${labels.method}`;
        const row = found.get(key) ?? { ...labels, done: 0, others: 0 };
        if (labels.outcome === 'ok') row.done += value;
        else row.others += value;
        found.set(key, row);
      }
      const seconds = new Map((state.metrics?.get('service_call_seconds_total') ?? []).map(({ labels, value }) => [`${labels.service} ${labels.method}`, value]));
      const [before, now] = state.samples.slice(-2);
      calls.update([...found].map(([key, { service, method, done, others }]) => {
        const total = (item) => [...(item?.calls ?? [])].reduce((sum, [name, value]) => (name.startsWith(`${key} `) ? sum + value : sum), 0);
        const rate = now?.calls && before?.calls ? (total(now) - total(before)) / ((now.at - before.at) / 1000) : null;
        const mean = done + others ? (1000 * (seconds.get(key) ?? 0)) / (done + others) : null;
        return { key, cells: [service, method, number(rate), count(done), count(others), milliseconds(mean)] };
      }));
    },
  };
}
