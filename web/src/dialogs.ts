// One dialog: asks, waits for what was asked, and says what came of it.

import { reason } from "./api";
import { byId, el, text } from "./dom";

export interface Question {
  title: string;
  /** What will happen. */
  body: (Node | string)[];
  /** The button that does it. */
  action: string;
  isDestructive: boolean;
  /** Does it; what it throws is shown, and the dialog stays. */
  run(): Promise<void>;
}

/** Asks; done once it has happened or was called off. */
export function ask(question: Question): void {
  const dialog = byId<HTMLDialogElement>("dialog");
  const error = el("p", { class: "error", role: "alert" });
  const cancel = el("button", { type: "button" }, "Cancel");
  const kind = question.isDestructive ? "primary danger" : "primary";
  const confirm = el("button", { type: "submit", class: kind }, question.action);
  const form = el(
    "form",
    {},
    el("h2", { id: "dialog-title" }, question.title),
    ...question.body,
    error,
    el("p", { class: "actions" }, cancel, confirm),
  );
  const opener = document.activeElement;
  cancel.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    confirm.disabled = true;
    text(error, "");
    try {
      await question.run();
      dialog.close();
    } catch (thrown) {
      text(error, reason(thrown));
    } finally {
      confirm.disabled = false;
    }
  });
  dialog.onclose = () => {
    dialog.replaceChildren();
    if (opener instanceof HTMLElement && opener.isConnected) opener.focus();
  };
  dialog.replaceChildren(form);
  dialog.showModal();
  // The harmless one first; a form begins with its first field.
  (form.querySelector<HTMLElement>("select, input") ?? cancel).focus();
}

/** A field of a form, and its label. */
export function field(label: string, input: HTMLElement, hint?: string): DocumentFragment {
  const id = `field-${label.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  input.id = id;
  const fragment = document.createDocumentFragment();
  fragment.append(el("label", { for: id }, label), input);
  if (hint) {
    input.setAttribute("aria-describedby", `${id}-hint`);
    fragment.append(el("p", { class: "hint", id: `${id}-hint` }, hint));
  }
  return fragment;
}
