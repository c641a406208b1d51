"""The command lines: one file a script, with its flags, its examples and what it refuses.

Nothing here imports torch, or what does, before the arguments are read: `--help` and a mistyped flag are answered at once. Then `main`
hands the options over to the module of the same name in `ldm.app`, which does the work.
"""
