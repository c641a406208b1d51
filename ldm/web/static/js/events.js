// The renders of this tab as the server tells of them; the stream is opened again by the browser when it breaks.
import { session } from "./session.js";

export function listen(onRenders) {
  const source = new EventSource(`/api/events?session=${session}`);
  source.onmessage = (event) => onRenders(JSON.parse(event.data));
  addEventListener("pagehide", () => source.close());
}
