// The frame: what is asked of the node again and again, the pages, the token.

import { json, pause, parseMetrics, request, token, useCluster } from './api.js';
import { ask, h, notice, pill, show } from './dom.js';
import { history } from './history.js';
import { keys } from './keys.js';
import { leases } from './leases.js';
import { locks } from './locks.js';
import { overview } from './overview.js';
import { services } from './services.js';

const STATUS_MS = 1000;
const METRICS_MS = 2000;
const VIEWS_MS = 5000;
const CALLER_MS = 30_000;
const MAX_SAMPLES = 300;
const HIDDEN_MS = 10_000;

const PAGES = { overview, keys, locks, leases, services, history };
const at = (id) => document.getElementById(id);

/**
 * What is known. `cluster`, `metrics`, `views`, `caller`: the last answers, or null. `problem`: why the
 * status is not the present one. `samples`: of the last minutes, oldest first.
 */
const state = {
  cluster: null, metrics: null, views: null, caller: null, problem: null, node: '', samples: [],
  /** Whether the caller has a right; `name`: of the key or lock, or of the service. */
  may(right, name) {
    const rights = state.caller?.rights;
    if (!rights || rights.admin) return !!rights;
    if (right === 'lease') return !!(rights.write?.length || rights.lock?.length);
    const given = rights[right];
    if (!Array.isArray(given)) return false;
    if (name == null) return given.length > 0;
    return given.some((prefix) => name.startsWith(prefix));
  },
};

let page = null;

/** Call `work` every `ms`, one call at a time, until `signal` aborts; seldom while nobody looks. */
async function repeat(ms, work, signal) {
  while (!signal?.aborted) {
    await work();
    const waiting = new AbortController();
    const end = () => waiting.abort();
    document.addEventListener('visibilitychange', end, { signal: waiting.signal });
    signal?.addEventListener('abort', end, { signal: waiting.signal });
    await pause(document.hidden ? HIDDEN_MS : ms, waiting.signal);
    end();
  }
}

async function readStatus() {
  try {
    const answer = await request('../v1/cluster', { timeout: 3000 });
    state.node = answer.headers.get('Onecopy-Node') ?? state.node;
    const known = state.cluster;
    state.cluster = await answer.json();
    state.problem = null;
    useCluster(state.cluster.cluster_id);
    if (!state.caller) await readCaller();
    if (known?.version !== state.cluster.version) await readViews();
  } catch (error) {
    state.problem = error;
  }
  draw();
}

async function readViews() {
  try {
    state.views = (await json('../v1/cluster/views', { timeout: 3000 })).views;
  } catch {
    // The status says what is wrong.
  }
}

async function readCaller() {
  try {
    state.caller = await json('../v1/whoami', { timeout: 3000 });
  } catch (error) {
    if (error.status === 401) state.caller = null;
  }
}

async function readMetrics() {
  try {
    const metrics = parseMetrics(await (await request('../metrics', { timeout: 3000 })).text());
    const before = state.samples.at(-1);
    state.metrics = metrics;
    state.samples.push(sample(metrics, before));
    if (state.samples.length > MAX_SAMPLES) state.samples.shift();
  } catch {
    state.samples.push({ at: Date.now() });
  }
}

function one(metrics, name) {
  return metrics.get(name)?.[0].value;
}

function sample(metrics, before) {
  const found = { at: Date.now(), totals: { read: 0, write: 0, failed: 0 }, buckets: { read: new Map(), write: new Map() } };
  const kind = ({ method }) => (method === 'GET' || method === 'HEAD' ? 'read' : 'write');
  for (const { labels, value } of metrics.get('http_requests_total') ?? []) {
    found.totals[kind(labels)] += value;
    if (labels.status === '5xx') found.totals.failed += value;
  }
  for (const { labels, value } of metrics.get('http_request_duration_seconds_bucket') ?? []) {
    const buckets = found.buckets[kind(labels)];
    const bound = labels.le === '+Inf' ? Infinity : Number(labels.le);
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  found.calls = new Map((metrics.get('service_calls_total') ?? []).map(({ labels, value }) => [`${labels.service} ${labels.method} ${labels.outcome}`, value]));
  found.connections = one(metrics, 'http_open_connections');
  found.watchers = one(metrics, 'watchers');
  const status = state.cluster;
  const indices = Object.values(status?.nodes ?? {}).map((node) => node.applied_index ?? 0);
  found.index = Math.max(0, ...indices) || null;
  found.lags = Object.fromEntries(Object.entries(status?.nodes ?? {}).map(([id, node]) => [id, node.lag]));
  if (!before?.totals) return found;
  const seconds = (found.at - before.at) / 1000;
  const rate = (now, then) => (now == null || then == null || now < then ? null : (now - then) / seconds);
  found.rates = { commits: rate(found.index, before.index), ...Object.fromEntries(Object.keys(found.totals).map((name) => [name, rate(found.totals[name], before.totals[name])])) };
  found.latency = {};
  for (const name of ['read', 'write']) {
    const counts = [...found.buckets[name]].map(([bound, value]) => [bound, value - (before.buckets[name].get(bound) ?? 0)]);
    found.latency[name] = { middle: quantile(counts, 0.5), high: quantile(counts, 0.99) };
  }
  return found;
}

/** A quantile in ms, from cumulative counts by bound in s; null where nothing was counted. */
function quantile(counts, share) {
  const total = counts.at(-1)?.[1] ?? 0;
  if (!(total > 0)) return null;
  let [below, passed] = [0, 0];
  for (const [bound, value] of counts) {
    if (value >= share * total) {
      if (bound === Infinity) return below * 1000;
      return 1000 * (below + (bound - below) * ((share * total - passed) / (value - passed)));
    }
    [below, passed] = [bound, value];
  }
  return null;
}

/** How the cluster is, in a few words: [text, tone]. */
function health() {
  const { cluster, problem } = state;
  if (problem?.status === 401) return ['a token is needed', 'warn'];
  if (problem) return [`${state.node || 'this node'} does not answer`, 'bad'];
  if (!cluster) return ['connecting', ''];
  if (!cluster.primary) return ['no primary', 'bad'];
  const primary = cluster.nodes[cluster.primary];
  if (primary?.state !== 'primary') return [`the primary, ${cluster.primary}, does not answer`, 'bad'];
  if (state.metrics && one(state.metrics, 'ready') === 0) return ['no contact with a serving primary', 'bad'];
  const nodes = Object.entries(cluster.nodes);
  const replicas = nodes.filter(([, node]) => node.role === 'replica');
  const behind = replicas.length - cluster.in_sync.length;
  if (behind) return [`${cluster.in_sync.length} of ${replicas.length} replicas in sync`, 'warn'];
  const away = nodes.filter(([, node]) => node.state === 'unreachable');
  if (away.length) return [`${away.map(([id]) => id).join(', ')} cannot be reached`, 'warn'];
  return ['all nodes are in order', 'good'];
}

function draw() {
  const [text, tone] = health();
  if (at('health').textContent !== text) show(at('health'), pill(text, tone));
  show(at('cluster'), state.cluster?.cluster ?? '');
  show(at('node'), state.node ? `this node: ${state.node}` : '');
  const who = state.caller;
  show(at('token'), who?.access_control ? `Role: ${who.role}` : token.get() ? 'Token is set' : 'Token…');
  document.title = state.cluster ? `${state.cluster.cluster}: ${text}` : 'onecopy';
  drawNotice();
  page?.update?.(state);
}

let noticed = '';

function drawNotice() {
  const { problem } = state;
  const key = problem ? `${problem.status} ${problem.message}` : '';
  if (key === noticed) return;
  noticed = key;
  let message = null;
  if (problem?.status === 401) {
    const enter = h('button', { type: 'button', text: 'Enter a token', onclick: askForToken });
    message = notice(problem, enter);
  } else if (problem) {
    const others = Object.entries(state.cluster?.nodes ?? {}).filter(([id]) => id !== state.node);
    const links = others.map(([id, node]) => h('a', { href: `${location.protocol}//${node.client}/ui/`, text: id }));
    message = notice(problem, 'What is shown is the last that was known.', links.length ? [' Ask another node: ', ...links.flatMap((link) => [link, ' '])] : null);
  }
  show(at('notice'), message);
}

async function askForToken() {
  const field = h('input', { id: 'token-field', type: 'password', autocomplete: 'off', spellcheck: 'false', value: token.get(), placeholder: 'oct_…' });
  const who = state.caller;
  const now = !who ? null : !who.access_control ? 'This cluster has no access control: no token is needed.'
    : `Now: role ${who.role}${who.token ? `, token ${who.token}` : ', without a token'}.`;
  const set = await ask('Token', [
    now && h('p', { text: now }),
    h('label', { for: 'token-field', text: 'Token' }), field,
    h('p', { class: 'hint', text: 'It is kept in this tab until the tab is closed, and sent to this node only. Leave it empty to remove it.' }),
  ], 'Use it');
  if (!set) return;
  token.set(field.value.trim());
  state.caller = null;
  await readStatus();
  open();
}

function open() {
  const [name, query] = location.hash.replace(/^#\/?/, '').split('?', 2);
  const chosen = Object.hasOwn(PAGES, name) ? name : 'overview';
  const params = new URLSearchParams(query);
  for (const link of at('pages').querySelectorAll('a')) {
    if (link.dataset.page === chosen) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  if (page?.name === chosen && page.navigate) {
    page.navigate(params);
    return;
  }
  page?.closing.abort();
  const closing = new AbortController();
  const context = { state, params, signal: closing.signal, repeat: (ms, work) => repeat(ms, work, closing.signal), refresh: readStatus };
  const body = h('div', { class: `page ${chosen}` });
  page = { name: chosen, closing, ...PAGES[chosen](body, context) };
  show(at('main'), body);
  page.update?.(state);
}

function begin() {
  const titles = { overview: 'Overview', keys: 'Keys', locks: 'Locks and elections', leases: 'Client leases', services: 'Services', history: 'History' };
  show(at('pages'), Object.keys(PAGES).map((name) => h('li', {}, h('a', { href: `#/${name}`, 'data-page': name, text: titles[name] }))));
  const themes = ['auto', 'light', 'dark'];
  const useTheme = (name) => {
    document.documentElement.dataset.theme = name;
    show(at('theme'), `Theme: ${name}`);
  };
  useTheme(themes.find((name) => name === localStorage.getItem('onecopy-theme')) ?? 'auto');
  at('theme').addEventListener('click', () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length];
    localStorage.setItem('onecopy-theme', next);
    useTheme(next);
  });
  at('token').addEventListener('click', askForToken);
  addEventListener('hashchange', open);
  open();
  repeat(STATUS_MS, readStatus);
  repeat(METRICS_MS, readMetrics);
  repeat(VIEWS_MS, readViews);
  repeat(CALLER_MS, readCaller);
}

begin();
