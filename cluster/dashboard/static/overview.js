// Who is in charge, who is in sync, and how it moves.

import { post } from './api.js';
import { Chart } from './chart.js';
import { action, ask, count, h, milliseconds, notice, number, s, show, Table } from './dom.js';
import { stepRows, stepTable } from './history.js';

const RECENT = 6;
const TONES = { primary: 'good', backup: 'good', witness: 'good', learner: 'warn', snapshot: 'warn', unknown: 'warn', unreachable: 'bad' };
const WORDS = { snapshot: 'receives a snapshot', learner: 'catching up', unknown: 'position unknown', unreachable: 'does not answer' };

export function overview(root, { state, refresh }) {
  const message = h('div');
  const warnings = h('div');
  const facts = h('dl', { class: 'facts' });
  const map = h('div', { class: 'map', 'aria-hidden': 'true' });
  const nodes = new Table('Nodes and their state', ['Node', 'Role', 'State', 'In sync', 'Votes',
    { title: 'Applied', kind: 'number' }, { title: 'Durable', kind: 'number' }, { title: 'Behind', kind: 'number' }, { title: 'Action' }]);
  const recent = stepTable('Recent changes of the view');
  const lags = new Chart('Replicas behind', 'entries; all nodes', [], number);
  const charts = {
    commits: new Chart('Commits', 'entries per s; the whole cluster', [{ name: 'entries', tone: 'a' }], number),
    requests: new Chart('Requests', 'per s; this node', [{ name: 'reads', tone: 'a' }, { name: 'changes', tone: 'b' }, { name: 'failed', tone: 'c' }], number),
    writes: new Chart('Time of changes', 'this node; log scale', [{ name: 'median', tone: 'b' }, { name: '99 %', tone: 'c' }], milliseconds, true),
    reads: new Chart('Time of reads', 'this node; log scale', [{ name: 'median', tone: 'a' }, { name: '99 %', tone: 'c' }], milliseconds, true),
    clients: new Chart('Clients', 'this node', [{ name: 'connections', tone: 'a' }, { name: 'watchers', tone: 'b' }], number),
  };
  let lagChart = { chart: lags, key: '' };
  const lagPlace = h('div', { class: 'place' }, lags.element);
  root.append(message, warnings,
    h('section', { class: 'split', 'aria-labelledby': 'h-nodes' },
      h('div', {}, h('h2', { id: 'h-nodes', text: 'Nodes' }), facts, nodes.element), map),
    h('section', { 'aria-labelledby': 'h-charts' }, h('h2', { id: 'h-charts', text: 'The last five minutes' }),
      h('p', { class: 'hint', text: '“This node” is the one that serves this page; each node’s own dashboard, behind its name above, shows its own numbers.' }),
      h('div', { class: 'charts' }, ...Object.values(charts).map((chart) => chart.element), lagPlace)),
    h('section', { 'aria-labelledby': 'h-recent' }, h('h2', { id: 'h-recent' }, 'Recent changes of the view ', h('a', { href: '#/history', text: 'all' })), recent.element));

  async function handOver(to) {
    const sure = await ask(`Hand over to ${to}?`, h('p', { text: `${to} becomes the primary. Requests wait for a moment; none fails.` }), 'Hand over');
    if (!sure) return;
    try {
      await post('../v1/cluster/handover', { to });
      show(message, notice(`${to} is the primary now.`));
    } catch (error) {
      show(message, notice(error));
    }
    refresh();
  }

  function nodeRow(id, node, cluster) {
    const isInSync = cluster.in_sync.includes(id);
    const canLead = isInSync && id !== cluster.primary && node.votes !== false;
    const allowed = state.caller?.rights.admin;
    return {
      key: id,
      tone: id === cluster.primary ? 'leading' : '',
      cells: [
        { text: id, href: `${location.protocol}//${node.client}/ui/`, title: `The dashboard of ${id}, at ${node.client}`, current: id === state.node },
        node.role,
        { text: WORDS[node.state] ?? node.state, tone: TONES[node.state] },
        node.role === 'witness' ? '–' : isInSync ? 'yes' : 'no',
        node.votes == null ? '?' : node.votes ? 'yes' : 'not yet',
        count(node.applied_index), count(node.durable_index), count(node.lag),
        canLead ? { text: 'Hand over', action: action(() => handOver(id)), disabled: !allowed, title: allowed ? `Make ${id} the primary` : 'This needs the right admin, or a browser on the node’s own machine' } : '',
      ],
    };
  }

  let drawn = '';
  function drawMap(cluster) {
    const key = JSON.stringify([cluster.primary, cluster.in_sync, Object.entries(cluster.nodes).map(([id, node]) => [id, node.state, node.lag])]);
    if (key !== drawn) show(map, topology(cluster));
    drawn = key;
  }

  return {
    update() {
      const { cluster, samples, views } = state;
      root.classList.toggle('old', !!state.problem);
      if (!cluster) return;
      const facts_ = { Primary: cluster.primary || 'none', Epoch: count(cluster.epoch), View: count(cluster.version), 'In sync': cluster.in_sync.join(', '), 'Cluster id': cluster.cluster_id || 'none yet' };
      show(facts, Object.entries(facts_).map(([name, value]) => h('div', {}, h('dt', { text: name }), h('dd', { text: value }))));
      show(warnings, cluster.warnings.map((text) => h('p', { class: 'notice warn', text })));
      const ids = Object.keys(cluster.nodes);
      nodes.update(ids.map((id) => nodeRow(id, cluster.nodes[id], cluster)));
      drawMap(cluster);
      recent.update(stepRows(views ?? []).slice(0, RECENT));
      const replicas = ids.filter((id) => cluster.nodes[id].role === 'replica').slice(0, 5);
      if (lagChart.key !== replicas.join()) {
        const chart = new Chart('Replicas behind', 'entries; as the primary knows', replicas.map((name, index) => ({ name, tone: 'abcde'[index] })), number);
        lagChart = { chart, key: replicas.join() };
        show(lagPlace, chart.element);
      }
      const plot = (chart, pick) => chart.update(samples.map((item) => ({ at: item.at, values: pick(item) })));
      plot(charts.commits, ({ rates }) => [rates?.commits]);
      plot(charts.requests, ({ rates }) => [rates?.read, rates?.write, rates?.failed]);
      plot(charts.writes, ({ latency }) => [latency?.write.middle, latency?.write.high]);
      plot(charts.reads, ({ latency }) => [latency?.read.middle, latency?.read.high]);
      plot(charts.clients, ({ connections, watchers }) => [connections, watchers]);
      plot(lagChart.chart, (item) => replicas.map((id) => item.lags?.[id]));
    },
  };
}

const BOX = { width: 104, height: 44 };

/** A drawing of who sends what to whom; the table beside it says the same. */
function topology(cluster) {
  const all = Object.entries(cluster.nodes);
  const others = all.filter(([id]) => id !== cluster.primary);
  const width = Math.max(2, others.length) * (BOX.width + 16);
  const middle = width / 2;
  const isLed = cluster.nodes[cluster.primary]?.state === 'primary';
  const drawing = s('svg', { viewBox: `0 0 ${width} 172`, class: 'topology' });
  others.forEach(([id, node], index) => {
    const x = (width / others.length) * (index + 0.5);
    const isInSync = cluster.in_sync.includes(id);
    const kind = node.state === 'unreachable' ? 'bad' : node.role === 'witness' ? 'vote' : isInSync && node.state !== 'unknown' ? 'good' : 'warn';
    if (cluster.primary) drawing.append(s('path', { class: `edge ${isLed ? kind : 'vote'}`, d: `M${middle} 52 C${middle} 88 ${x} 78 ${x} 112` }));
    const label = node.lag ? `${count(node.lag)} behind` : '';
    drawing.append(box(x, 112, id, node.role === 'witness' ? 'witness' : WORDS[node.state] ?? node.state, kind), s('text', { x, y: 166, class: 'label', text: label }));
  });
  if (cluster.primary) {
    drawing.append(box(middle, 8, cluster.primary, isLed ? 'primary' : 'no contact', isLed ? 'lead' : 'bad'));
  }
  return drawing;
}

function box(x, y, name, word, kind) {
  return s('g', { class: `box ${kind}` },
    s('rect', { x: x - BOX.width / 2, y, width: BOX.width, height: BOX.height, rx: 6 }),
    s('text', { x, y: y + 19, class: 'name', text: name }), s('text', { x, y: y + 35, class: 'word', text: word }));
}
