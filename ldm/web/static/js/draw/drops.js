// Files that are dropped or pasted anywhere on the page.
export function takeDrops({ onFile, onPaste }) {
  let depth = 0;
  const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const shade = (isOver) => document.body.classList.toggle("over", isOver);
  addEventListener("dragenter", (event) => {
    if (!hasFile(event)) return;
    depth++;
    shade(true);
  });
  addEventListener("dragleave", (event) => {
    if (hasFile(event) && --depth <= 0) shade(false);
  });
  addEventListener("dragover", (event) => hasFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    depth = 0;
    shade(false);
    if (!hasFile(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) onFile(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) onPaste(file);
  });
}
