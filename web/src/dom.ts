// Elements. Whatever text comes in becomes a text node: there is no way here to make markup of it.

type Child = Node | string | null | undefined | false;
type Attributes = Record<string, string | number | boolean | null | undefined>;

/** The element with this id, which the page is sure to have. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, String(value));
  }
  for (const child of children) if (child) element.append(child);
  return element;
}

/** Sets the text if it is another one: what does not change is neither drawn nor read out again. */
export function text(element: Element, value: string): void {
  if (element.textContent !== value) element.textContent = value;
}

export function attribute(element: Element, name: string, value: string | null): void {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

export function shown(element: HTMLElement, is: boolean): void {
  if (element.hidden === is) element.hidden = !is;
}

/** Text from strangers: cut by the style sheet where it is long, whole in its title. */
export function foreign(value: string, className = "foreign"): HTMLElement {
  const element = el("span", { class: className });
  setForeign(element, value);
  return element;
}

export function setForeign(element: Element, value: string): void {
  text(element, visible(value));
  attribute(element, "title", visible(value));
}

/** Characters that are not seen, or that turn the direction of what follows, by their numbers. */
function visible(value: string): string {
  return value.replace(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
    (c) => `\\u{${(c.codePointAt(0) ?? 0).toString(16)}}`,
  );
}

export interface Row<T> {
  node: HTMLElement;
  update(item: T): void;
}

const known = new WeakMap<Element, Map<string, Row<unknown>>>();

/**
 * Has the parent's children be those of the items, in their order. A row whose key was there before is
 * changed in place, so that focus and selection stay where they are.
 */
export function rows<T>(
  parent: Element,
  items: readonly T[],
  key: (item: T) => string,
  create: (item: T) => Row<T>,
): void {
  const before = (known.get(parent) ?? new Map()) as Map<string, Row<T>>;
  const after = new Map<string, Row<T>>();
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  let place = parent.firstElementChild;
  for (const item of items) {
    const row = before.get(key(item)) ?? create(item);
    row.update(item);
    after.set(key(item), row);
    if (row.node === place) place = place.nextElementSibling;
    else parent.insertBefore(row.node, place);
  }
  const keep = new Set([...after.values()].map((row) => row.node));
  for (const child of [...parent.children]) {
    if (!keep.has(child as HTMLElement)) child.remove();
  }
  known.set(parent, after as Map<string, Row<unknown>>);
  if (focused instanceof HTMLElement && focused !== document.activeElement && focused.isConnected) {
    focused.focus({ preventScroll: true });
  }
}

/** A moment, with all of it for machines and for whoever points at it. */
export function timeTag(at: string, label: string): HTMLElement {
  return el("time", { datetime: at, title: at }, label);
}
