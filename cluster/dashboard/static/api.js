// Requests to the node that this page came from, and its streams of events.

const TIMEOUT_MS = 8000;
const RETRY_MS = [500, 1000, 2000, 5000];
const TOKEN = 'onecopy-token';
const MAX_LINE_LENGTH = 16 * 1024 * 1024;

/** What the API refuses (RFC 9457). */
export class Problem extends Error {
  constructor(status, document) {
    super(document.detail || document.title || `HTTP status ${status}`);
    this.status = status;
    this.code = document.code;
    this.outcome = document.outcome;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? '',
  set: (text) => (text ? sessionStorage.setItem(TOKEN, text) : sessionStorage.removeItem(TOKEN)),
};

let cluster = '';

/** Name the cluster that changes are meant for: another one behind this address refuses them. */
export function useCluster(id) {
  cluster = id;
}

/** Send a request; returns the answer if its status is good. Throws Problem, or Error without an answer. */
export async function request(path, { method = 'GET', headers = {}, body, signal, timeout = TIMEOUT_MS } = {}) {
  const sent = { ...headers };
  if (token.get()) sent.Authorization = `Bearer ${token.get()}`;
  if (method !== 'GET' && cluster) sent['Onecopy-Cluster'] = cluster;
  const signals = [signal, timeout ? AbortSignal.timeout(timeout) : null].filter(Boolean);
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, body, signal: AbortSignal.any(signals), cache: 'no-store', credentials: 'omit', redirect: 'error' });
  } catch (error) {
    if (signal?.aborted) throw error;
    const text = error.name === 'TimeoutError' ? 'This node did not answer in time.' : 'This node cannot be reached.';
    throw new Error(method === 'GET' ? text : `${text} The change may have been made: look before you repeat it.`);
  }
  if (answer.ok) return answer;
  let document = {};
  try {
    document = await answer.json();
  } catch {
    // An answer that is no problem document: its status has to do.
  }
  throw new Problem(answer.status, document);
}

export async function json(path, options) {
  return (await request(path, options)).json();
}

/** Send a body as JSON. */
export function post(path, document, method = 'POST') {
  return json(path, { method, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(document) });
}

/** The path of a key, or of a name: each byte that could mean something else is encoded. */
export function encoded(name) {
  return encodeURIComponent(name).replace(/^\.{1,2}$/, (dots) => dots.replaceAll('.', '%2E'));
}

/**
 * Read a stream of server-sent events until `signal` aborts, resuming where it broke off.
 *
 * `onEvent(document)` gets each event. `onState(text)` is told how it goes on. Throws Problem for what does
 * not pass: no right, no data on this node. (EventSource cannot send a token.)
 */
export async function stream(path, { onEvent, onState = () => {}, signal }) {
  let last = '';
  let failures = 0;
  while (!signal.aborted) {
    let why = 'reconnecting';
    try {
      const headers = { Accept: 'text/event-stream', ...(last && { 'Last-Event-ID': last }) };
      const answer = await request(path, { headers, signal, timeout: 0 });
      onState('live');
      for await (const event of events(answer.body)) {
        failures = 0;
        if (event.id) last = event.id;
        if (event.type === 'end') break;
        if (event.type === 'message') onEvent(JSON.parse(event.data));
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 410) {
        last = '';
        why = 'some changes were missed: they are no longer kept';
      } else if (error.status >= 400 && error.status < 500) {
        throw error;
      } else if (error.status) {
        why = `trying again: ${error.message}`;
      }
    }
    if (signal.aborted) return;
    onState(why);
    await pause(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)], signal);
  }
}

/** The events of a stream; its connection is closed when nobody reads on. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  let event = { type: 'message', id: '', data: '' };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (held + value).split('\n');
      held = lines.pop();
      if (held.length > MAX_LINE_LENGTH) throw new Error('an event is too long');
      for (const line of lines) {
        const [, name, text] = /^([^:\r]*):? ?(.*?)\r?$/s.exec(line);
        if (name === 'id') event.id = text;
        else if (name === 'event') event.type = text;
        else if (name === 'data') event.data += text;
        else if (name === '' && text === '') {
          if (event.data) yield event;
          event = { type: 'message', id: '', data: '' };
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Wait; ends early when `signal` aborts. */
export function pause(ms, signal) {
  return new Promise((resolve) => {
    const over = new AbortController();
    const end = () => { clearTimeout(timer); over.abort(); resolve(); };
    const timer = setTimeout(end, ms);
    signal?.addEventListener('abort', end, { signal: over.signal });
  });
}

/** Read the metrics in Prometheus' text format: name -> [{ labels, value }]. */
export function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split('\n')) {
    const parts = /^(?:onecopy_)?(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!parts) continue;
    const labels = {};
    for (const [, name, value] of (parts[2] ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    if (!found.has(parts[1])) found.set(parts[1], []);
    found.get(parts[1]).push({ labels, value: Number(parts[3]) });
  }
  return found;
}
