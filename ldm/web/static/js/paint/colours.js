export const rgb = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
export const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;
