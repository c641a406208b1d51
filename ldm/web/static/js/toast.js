// A line at the edge of the page; screen readers say it.
import { h } from "./dom.js";

export function toast(text, isError = false) {
  const shown = h("div", { class: isError ? "toast error" : "toast" }, text);
  document.getElementById("toasts").append(shown);
  setTimeout(() => shown.remove(), isError ? 9000 : 4000);
}

// What a click does; an error is told.
export const told = (action) => async (...given) => {
  try {
    return await action(...given);
  } catch (error) {
    toast(error.message, true);
  }
};

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    (document.querySelector("dialog[open]") || document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(`${what} copied`);
}
