"""Other tools' checkpoints to ours and back, so that users can bring their models here and take them along.

`compvis`, `diffusers` and `lora` hold one format each; the files here hold what they share: key tables and safe reading.
"""
