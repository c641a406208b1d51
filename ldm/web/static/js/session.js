// This tab: a number by which the server knows its renders, and what it was doing, so that a reload goes on with it.
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

export const session = sessionStorage.getItem("ldm-session") || hex(crypto.getRandomValues(new Uint8Array(16)));
sessionStorage.setItem("ldm-session", session);

export function recalled(name) {
  try {
    return JSON.parse(sessionStorage.getItem(`ldm-${name}`));
  } catch {
    return null;
  }
}

export const remember = (name, value) => sessionStorage.setItem(`ldm-${name}`, JSON.stringify(value));
