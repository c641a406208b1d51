"""The page: a server for one machine's models and runs, and what the browser runs. `arguments` is its command line."""
