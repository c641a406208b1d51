// What controls are called: `text` of a model with one text is its prompt; `attributes.hair_colour` is "hair colour".
export function titleOf(name) {
  const last = name.split(".").pop().replaceAll("_", " ");
  return last.charAt(0).toUpperCase() + last.slice(1);
}
