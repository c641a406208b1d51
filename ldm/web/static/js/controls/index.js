// A conditioner's control, drawn by its declared kind. Each gives
//   element: for the column of controls; surface: for the work area, or null;
//   read(): its value, {cond: text} or {file: name of an upload} or null; set(value, isFile); clear().
import { h } from "../dom.js";
import { boxesControl } from "./boxes.js";
import { choiceControl } from "./choice.js";
import { mapControl } from "./class_map.js";
import { numberControl } from "./number.js";
import { tagsControl } from "./tags.js";
import { textControl } from "./text.js";

const KINDS = { text: textControl, choice: choiceControl, number: numberControl, tags: tagsControl, class_map: mapControl, boxes: boxesControl };
const ELSEWHERE = ["mask", "image"]; // they are modes of their own

export function controlFor(spec, model) {
  if (ELSEWHERE.includes(spec.kind)) return null;
  if (KINDS[spec.kind]) return KINDS[spec.kind](spec, model);
  const element = h("p", { class: "quiet small" }, `${spec.name}: this page has no control of kind "${spec.kind}"; scripts/sample.py --cond sets it.`);
  return { element, surface: null, read: () => null, set() {}, clear() {} };
}
