// A render in words, and where its files are.
export const fileOf = (render, name) => `/api/renders/${render.id}/files/${name}`;

const MODES = { draw: "Drawn", inpaint: "Inpainted", img2img: "From a picture", upscale: "Enlarged" };

export function said(order) {
  const values = Object.values(order.cond);
  if (values.length) return values.join(" · ");
  return order.mode === "draw" ? (Object.keys(order.files).length ? `By its ${Object.keys(order.files).join(", ")}` : "Nothing in particular") : MODES[order.mode];
}

export function inWords(render) {
  const { order } = render;
  const parts = [...(order.mode === "draw" ? [] : [MODES[order.mode].toLowerCase()]), `seed ${order.seed}`];
  if (order.steps) parts.push(`${order.steps} steps`);
  if (order.guidance) parts.push(`guidance ${order.guidance}`);
  if (order.sampler) parts.push(order.sampler);
  const files = Object.keys(order.files).filter((name) => !["image", "mask"].includes(name));
  if (files.length) parts.push(`with ${files.join(", ")}`);
  if (render.seconds) parts.push(`${render.seconds.toFixed(1)} s`);
  const text = parts.join(" · ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function facts(render) {
  const { order } = render;
  const rows = Object.entries(order.cond);
  if (order.negative_prompt) rows.push(["avoid", order.negative_prompt]);
  for (const name of ["model", "sampler", "steps", "guidance", "width", "height", "strength", "seed"]) {
    if (order[name] !== null && order[name] !== undefined) rows.push([name, String(order[name])]);
  }
  return rows;
}
