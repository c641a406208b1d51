// Requests to the server. What it refuses is an Error with its one line.
async function answered(response) {
  if (response.ok) return response;
  let line = `the server answered ${response.status}`;
  try {
    line = (await response.json()).error || line;
  } catch {
    if (response.status === 401) line = "this tab is not let in any more: open the address that the terminal printed";
  }
  throw new Error(line);
}

async function asked(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: does scripts/app.py still run?");
  }
  return answered(response);
}

const query = (values) => (values ? `?${new URLSearchParams(values)}` : "");

export const get = async (path, values) => (await asked(path + query(values))).json();
export const bytes = (path) => asked(path);
export const remove = (path) => asked(path, { method: "DELETE" });

export async function post(path, content, values) {
  const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(content ?? {}) };
  return (await asked(path + query(values), options)).json();
}

export async function upload(what, body, values) {
  return (await asked(`/api/uploads/${what}${query(values)}`, { method: "POST", body })).json();
}

export const uploaded = (name) => `/api/uploads/${name}`;
