// Mouse, pen and touch on a canvas: one pointer paints; two fingers, or the middle button, move and zoom.
export function followPointers(canvas, view, { down, move, up, cancel }) {
  const fingers = new Map();
  let panning = null;

  const spread = () => {
    const [one, other] = [...fingers.values()];
    return { x: (one.x + other.x) / 2, y: (one.y + other.y) / 2, length: Math.hypot(one.x - other.x, one.y - other.y) };
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (fingers.size === 2) {
      cancel();
      panning = spread();
    } else if (event.button === 1) {
      event.preventDefault();
      panning = { x: event.clientX, y: event.clientY };
    } else if (fingers.size === 1 && event.button === 0) {
      down(view.pixel(event.clientX, event.clientY), event);
    }
  });

  canvas.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (!panning) {
      const between = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
      for (const one of between.length ? between : [event]) move(view.pixel(one.clientX, one.clientY), event);
      return;
    }
    const now = fingers.size >= 2 ? spread() : { x: event.clientX, y: event.clientY };
    view.moveBy(now.x - panning.x, now.y - panning.y);
    if (now.length && panning.length) view.zoomBy(now.length / panning.length, now.x, now.y);
    panning = now;
  });

  const ended = (event) => {
    fingers.delete(event.pointerId);
    if (panning) {
      if (!fingers.size) panning = null;
      else if (fingers.size === 1) panning = { ...[...fingers.values()][0] };
    } else {
      up();
    }
  };
  canvas.addEventListener("pointerup", ended);
  canvas.addEventListener("pointercancel", ended);
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      view.zoomBy(Math.exp(-event.deltaY / 200), event.clientX, event.clientY);
    },
    { passive: false },
  );
}
