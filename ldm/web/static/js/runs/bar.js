// FID of real, reconstructed and generated pictures: what the data itself has, what each stage adds.
import { h } from "../dom.js";
import { short } from "./words.js";

export function bar(found) {
  const parts = [
    ["real pictures", found.fid_real, "c4"],
    ["stage one adds", found.fid_reconstructed - found.fid_real, "c1"],
    ["stage two adds", found.fid_generated - found.fid_reconstructed, "c2"],
  ];
  const stack = h("div", { class: "stack", role: "img", "aria-label": found.line });
  for (const [, value, colour] of parts) {
    const part = h("span", { class: colour });
    part.style.flexGrow = Math.max(0, value);
    stack.append(part);
  }
  const legend = h("div", { class: "legend" }, parts.map(([name, value, colour]) => h("span", {}, h("i", { class: colour }), `${name} ${short(value)}`)));
  return h("div", {}, stack, legend, h("p", { class: "quiet small" }, `FID of ${found.pictures_of_each} pictures of each to the training pictures. ${found.line}`));
}
