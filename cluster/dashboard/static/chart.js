// Small line charts, as SVG. A point is null where there is nothing to show.

import { clock, h, s, show } from './dom.js';

const WIDTH = 320;
const HEIGHT = 84;

const SPAN_MS = 300_000;
const LOWEST = 0.01;

/** `series`: { name, tone } each, at most five; `write` writes a value; `isLog`: the scale is logarithmic. */
export class Chart {
  #series;
  #write;
  #isLog;
  #lines;
  #grid = s('g', { class: 'grid' });
  #cursor = s('line', { class: 'cursor', y1: 0, y2: HEIGHT, visibility: 'hidden' });
  #legend = h('dl', { class: 'legend' });
  #when = h('span', { class: 'when' });
  #top = h('span', { class: 'top' });
  #samples = [];
  #picked = null;

  constructor(title, note, series, write, isLog = false) {
    this.#series = series;
    this.#write = write;
    this.#isLog = isLog;
    this.#lines = series.map(({ tone }) => s('path', { class: `line ${tone}` }));
    for (const y of [0.5, HEIGHT / 2, HEIGHT - 0.5]) this.#grid.append(s('line', { x1: 0, x2: WIDTH, y1: y, y2: y }));
    this.drawing = s('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': title },
      this.#grid, this.#lines, this.#cursor);
    this.element = h('figure', { class: 'chart' },
      h('figcaption', {}, h('strong', { text: title }), h('small', { text: note })),
      h('div', { class: 'plot' }, this.drawing, this.#top, this.#when), this.#legend);
    this.title = title;
    this.drawing.addEventListener('pointermove', (event) => {
      const box = this.drawing.getBoundingClientRect();
      this.#picked = (event.clientX - box.left) / box.width;
      this.#draw();
    });
    this.drawing.addEventListener('pointerleave', () => { this.#picked = null; this.#draw(); });
  }

  /** `samples`: { at, values } each, oldest first. */
  update(samples) {
    this.#samples = samples;
    this.#draw();
  }

  #draw() {
    const until = this.#samples.at(-1)?.at ?? 0;
    const seen = this.#samples.filter(({ at }) => at >= until - SPAN_MS);
    const highest = Math.max(0, ...seen.flatMap(({ values }) => values.map((value) => value ?? 0)));
    const top = this.#isLog ? 10 ** Math.ceil(Math.log10(Math.max(highest, 100 * LOWEST))) : nice(highest);
    const x = (at) => WIDTH * (1 - (until - at) / SPAN_MS);
    const share = (value) => (this.#isLog ? Math.log(Math.max(1, value / LOWEST)) / Math.log(top / LOWEST) : value / top);
    const y = (value) => HEIGHT - 1 - (HEIGHT - 2) * share(value);
    this.#lines.forEach((line, index) => {
      let path = '';
      let pen = 'M';
      for (const { at, values } of seen) {
        const value = values[index];
        if (value == null) {
          pen = 'M';
        } else {
          path += `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
          pen = 'L';
        }
      }
      line.setAttribute('d', path);
    });
    show(this.#top, this.#write(top));
    let shown = seen.at(-1);
    if (this.#picked != null && seen.length) {
      const wanted = until - SPAN_MS * (1 - this.#picked);
      shown = seen.reduce((best, item) => (Math.abs(item.at - wanted) < Math.abs(best.at - wanted) ? item : best));
      this.#cursor.setAttribute('x1', x(shown.at));
      this.#cursor.setAttribute('x2', x(shown.at));
    }
    this.#cursor.setAttribute('visibility', this.#picked == null ? 'hidden' : 'visible');
    show(this.#when, this.#picked == null || !shown ? '' : clock(shown.at));
    const written = this.#series.map(({ name }, index) => [name, this.#write(shown?.values[index])]);
    show(this.#legend, this.#series.map(({ tone }, index) => h('div', {},
      h('dt', { class: tone, text: written[index][0] }), h('dd', { text: written[index][1] }))));
    this.drawing.setAttribute('aria-label', `${this.title}: ${written.map((item) => item.join(' ')).join(', ')}`);
  }
}

function nice(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * unit).find((step) => step >= value);
}
