// Line icons on a grid of 24, drawn in the colour of the text.
import { svg } from "./dom.js";

const PATHS = {
  sun: "M12 4V2M12 22v-2M4 12H2M22 12h-2M6.3 6.3 4.9 4.9M19.1 19.1l-1.4-1.4M6.3 17.7l-1.4 1.4M19.1 4.9l-1.4 1.4M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8Z",
  moon: "M20 14.5A8.5 8.5 0 1 1 9.5 4a7 7 0 0 0 10.5 10.5Z",
  dice: "M5 3h14a2 2 0 0 1 2 2v14a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2V5a2 2 0 0 1 2-2ZM8.5 8.5h.01M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01",
  lock: "M6 11h12a1 1 0 0 1 1 1v8a1 1 0 0 1-1 1H6a1 1 0 0 1-1-1v-8a1 1 0 0 1 1-1ZM8 11V7.5a4 4 0 0 1 8 0V11",
  open: "M6 11h12a1 1 0 0 1 1 1v8a1 1 0 0 1-1 1H6a1 1 0 0 1-1-1v-8a1 1 0 0 1 1-1ZM8 11V7a4 4 0 0 1 7.8-1.3",
  close: "M6 6l12 12M18 6 6 18",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  download: "M12 4v11m0 0 4.5-4.5M12 15l-4.5-4.5M5 20h14",
  brush: "M14.5 6.5 18 3l3 3-3.5 3.5M14.5 6.5l3 3L9 18c-1.5 1.5-4 2.5-6 2.5.8-1.2.6-2.5.9-3.7.2-1 .9-1.8 1.7-2.2L14.5 6.5Z",
  line: "M5 19 19 5M5 19h.01M19 5h.01",
  fill: "M11 3 4 10.2a1.6 1.6 0 0 0 0 2.2l5.6 5.6a1.6 1.6 0 0 0 2.2 0L19 10.8 11 3ZM4 12h14M20.5 15c1 1.6 1.5 2.6 1.5 3.4a1.6 1.6 0 0 1-3.1 0c0-.8.6-1.8 1.6-3.4Z",
  erase: "M9 20 3.6 14.6a1.8 1.8 0 0 1 0-2.5l8.5-8.5a1.8 1.8 0 0 1 2.5 0l5.8 5.8a1.8 1.8 0 0 1 0 2.5L12.4 20H9ZM8 8l8 8M9 20h12",
  undo: "M8 5 3.5 9.5 8 14M4 9.5h10a6 6 0 0 1 0 12h-3",
  redo: "M16 5l4.5 4.5L16 14M20 9.5H10a6 6 0 0 0 0 12h3",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  clear: "M4 7h16M9 7V4h6v3M6.5 7l1 13h9l1-13",
  file: "M4 17v3h16v-3M12 16V5m0 0L7.5 9.5M12 5l4.5 4.5",
  reuse: "M4 12a8 8 0 0 1 14-5.3L20 9M20 4v5h-5M20 12a8 8 0 0 1-14 5.3L4 15M4 20v-5h5",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  play: "M7 4.5v15l12-7.5-12-7.5Z",
  stop: "M6 6h12v12H6z",
};

export function icon(name) {
  const attributes = { viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": "1.7", "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true" };
  return svg("svg", attributes, svg("path", { d: PATHS[name] }));
}
