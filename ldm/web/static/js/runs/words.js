// Numbers as people say them.
export function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  if (hours < 48) return `${hours} h ${Math.round((seconds % 3600) / 60)} min`;
  return `${Math.round(hours / 24)} days`;
}

export const percent = (run) => (run.steps ? `${Math.floor((100 * run.step) / run.steps)} %` : "0 %");
export const bytes = (count) => (count >= 1e9 ? `${(count / 1e9).toFixed(1)} GB` : `${Math.round(count / 1e6)} MB`);

export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 10000 || size < 0.001) return value.toExponential(size >= 10000 ? 1 : 0).replace("e+", "e");
  return String(Number(value.toPrecision(size >= 1 ? 4 : 3)));
}
