// Charts over the last minutes. Each has its current values as text beside it, which are its legend too.

import uPlot from "uplot";
import { attribute, byId, el, text } from "./dom";
import { time } from "./format";

export interface Line {
  name: string;
  values: (number | null)[];
}

export interface Spec {
  /** Of the figure in the page. */
  id: string;
  title: string;
  /** A value in the legend and in the description. */
  show(value: number): string;
  /** The same on the axis, where values are round. */
  axis(value: number): string;
  /** What is said while all values are zero or missing. */
  empty: string;
  /** Lowest upper end of the axis, so that noise does not look like news. */
  top: number;
}

const HEIGHT = 168;
const COLOURS = 8;
/** Lines differ in their dashes as well as in their colour. */
const DASHES: number[][] = [[], [6, 3], [2, 2], [9, 3, 2, 3], [12, 4], [4, 6], [1, 3], [8, 2, 1, 2, 1, 2]];

function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export class Chart {
  readonly #figure: HTMLElement;
  readonly #plot: HTMLElement;
  readonly #legend: HTMLElement;
  readonly #note: HTMLElement;
  #uplot: uPlot | null = null;
  #names: string[] = [];
  #values: HTMLElement[] = [];
  #times: number[] = [];
  #lines: Line[] = [];
  #span = 300;
  #hovered: number | null = null;

  constructor(private readonly spec: Spec) {
    this.#figure = byId(spec.id);
    this.#plot = el("div", { class: "plot", role: "img", "aria-label": `${spec.title}: no data yet` });
    this.#legend = el("ul", { class: "legend" });
    this.#note = el("p", { class: "note" }, "Waiting for the first figures");
    this.#figure.append(this.#legend, el("div", { class: "plot-box" }, this.#plot, this.#note));
    new ResizeObserver(() => this.#resize()).observe(this.#plot);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#rebuild());
  }

  /** Draws these lines: `times` in Unix seconds, the last one the present; `span` in seconds. */
  draw(times: number[], lines: Line[], span: number): void {
    [this.#times, this.#lines, this.#span] = [times, lines, span];
    const names = lines.map((line) => line.name);
    if (!this.#uplot || names.join("\n") !== this.#names.join("\n")) {
      this.#names = names;
      this.#rebuild();
    } else {
      this.#uplot.setData(this.#data());
    }
    this.#tell();
  }

  #data(): uPlot.AlignedData {
    return [this.#times, ...this.#lines.map((line) => line.values)];
  }

  #tell(): void {
    const index = this.#hovered ?? this.#times.length - 1;
    const at = this.#times[index];
    const current = this.#lines.map((line) => {
      const value = line.values[index];
      return value == null ? "–" : this.spec.show(value);
    });
    current.forEach((value, line) => {
      const element = this.#values[line];
      if (element) text(element, value);
    });
    attribute(this.#figure, "data-hovered", this.#hovered === null ? null : "");
    const from = this.#times.length - this.#span;
    const all = this.#lines.map((line) => line.values.slice(Math.max(0, from)));
    const nothing = all.every((values) => values.every((value) => !value));
    text(this.#note, nothing ? (this.#times.length ? this.spec.empty : "Waiting for the first figures") : "");
    const described = this.#lines.map((line, index) => {
      const highest = Math.max(0, ...(all[index] ?? []).map((value) => value ?? 0));
      return `${line.name} ${current[index]}, highest ${this.spec.show(highest)}`;
    });
    const minutes = Math.round(this.#span / 60);
    const past = `over the last ${minutes === 1 ? "minute" : `${minutes} minutes`}`;
    if (this.#hovered === null) {
      const what = nothing ? this.spec.empty : `${described.join("; ")}, ${past}`;
      attribute(this.#plot, "aria-label", `Chart, ${this.spec.title}: ${what}`);
    } else if (at !== undefined) {
      text(this.#note, "");
    }
  }

  #resize(): void {
    const width = Math.floor(this.#plot.clientWidth);
    if (this.#uplot && width > 0 && width !== this.#uplot.width) {
      this.#uplot.setSize({ width, height: HEIGHT });
    }
  }

  #rebuild(): void {
    this.#uplot?.destroy();
    this.#values = [];
    const items = this.#names.map((name, index) => {
      const value = el("strong", {}, "–");
      this.#values.push(value);
      return el("li", { "data-colour": index % COLOURS }, el("i", { "aria-hidden": "true" }), `${name} `, value);
    });
    this.#legend.replaceChildren(...items);
    const width = Math.floor(this.#plot.clientWidth) || 300;
    this.#uplot = new uPlot(this.#options(width), this.#data(), this.#plot);
    this.#tell();
  }

  #options(width: number): uPlot.Options {
    const [ink, grid] = [colour("--muted"), colour("--hairline")];
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: ink, font, ticks: { show: false }, grid: { stroke: grid, width: 1 } };
    return {
      width,
      height: HEIGHT,
      padding: [10, 18, 0, 0],
      legend: { show: false },
      cursor: {
        drag: { x: false, y: false },
        y: false,
        points: { size: 6 },
      },
      scales: {
        x: { range: () => [(this.#times.at(-1) ?? 0) - this.#span, this.#times.at(-1) ?? 1] },
        y: { range: (_, __, max) => [0, Math.max(this.spec.top, (max ?? 0) * 1.1)] },
      },
      axes: [
        {
          ...axis,
          grid: { show: false },
          size: 26,
          gap: 6,
          space: 72,
          incrs: [10, 15, 30, 60, 120, 300],
          values: (_, splits) => splits.map((at) => time(new Date(at * 1000)).slice(0, this.#span < 120 ? 8 : 5)),
        },
        {
          ...axis,
          size: 58,
          gap: 6,
          space: 36,
          values: (_, splits) => splits.map((value) => this.spec.axis(value)),
        },
      ],
      series: [
        {},
        ...this.#names.map((name, index) => ({
          label: name,
          stroke: colour(`--line-${(index % COLOURS) + 1}`),
          width: 1.75,
          dash: DASHES[index % DASHES.length] ?? [],
          points: { show: false },
          spanGaps: false,
        })),
      ],
      hooks: {
        setCursor: [
          (plot: uPlot) => {
            const index = plot.cursor.idx;
            const outside = plot.cursor.left == null || plot.cursor.left < 0 || index == null;
            this.#hovered = outside ? null : index;
            const at = index == null ? undefined : this.#times[index];
            attribute(this.#figure, "data-at", outside || at === undefined ? null : time(new Date(at * 1000)));
            this.#tell();
          },
        ],
      },
    };
  }
}
