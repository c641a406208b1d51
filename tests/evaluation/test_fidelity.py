"""The numbers of `scripts/evaluate.py` are those of torch-fidelity's own command on the same folders of pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluations import measured
from PIL import Image

from ldm.pretrained.inception import write_fidelity_weights

COUNT = 12


@pytest.mark.parity
@pytest.mark.timeout(600)
def test_fid_and_kid_are_torch_fidelitys(tmp_path, tiny, own_cache, monkeypatch, capsys):
    """FID to 0.1 %, and KID with one subset of all pictures; of a model's pictures in the folder where the evaluation left them."""
    monkeypatch.setenv("LDM_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for name, count in (("train", COUNT), ("val", 2)):
        Path(name).mkdir()
        for i in range(count):
            coarse = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse.repeat(4, 0).repeat(4, 1)).save(f"{name}/{i}.png")
    words = f"ldm --model {tiny(first_stage='identity')} --data train --held-out val --steps 2 --num-images {COUNT} --save-images"
    ours = measured(words, monkeypatch, capsys)["metrics"]

    command = [Path(sys.executable).with_name("fidelity"), "--cpu", "--json", "--fid", "--kid", "--input1", "made/pictures"]
    command += ["--input2", "train", "--kid-subsets", "1", "--kid-subset-size", str(COUNT), "--no-cache", "--save-cpu-ram"]
    command += ["--feature-extractor-weights-path", write_fidelity_weights(tmp_path / "inception.pth")]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert ours["fid"]["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3) and ours["fid"]["value"] > 1
    assert ours["kid"]["value"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
