"""The curves of a run: which numbers share a panel, and the axes."""

from __future__ import annotations

import pytest
from matplotlib import pyplot

from ldm.training.curves import draw, panels

ROWS = [
    {"step": 3, "loss": 2.0, "learning_rate": 1e-3, "samples_per_second": 9.0, "gradient_norm/a": 1.0, "gradient_norm/b": float("nan")},
    {"step": 4, "loss": 1.0, "val/loss": 1.5, "val/psnr": 20.0, "val/kl_channel_0": 0.1, "val/kl_channel_1": 0.2, "gradient_norm/b": 2.0},
    {"step": 5, "val/latent_high_share": 0.2, "val/image_high_share": 0.1},
    {"step": 6, "loss": 0.5, "train_eval/loss": 0.6, "val/accuracy_log_snr_+2": 0.9, "val/accuracy_log_snr_-4.5": 0.3},
]


def test_what_belongs_together_is_in_one_panel() -> None:
    found = panels(ROWS)
    assert {title: list(series) for title, series in found.items()} == {
        "loss": ["loss", "val/loss", "train_eval/loss"],
        "learning_rate": ["learning_rate"],
        "samples_per_second": ["samples_per_second"],
        "gradient_norm": ["gradient_norm/a", "gradient_norm/b"],
        "psnr": ["val/psnr"],
        "kl by channel": ["val/kl_channel_0", "val/kl_channel_1"],
        "high frequencies": ["val/latent_high_share", "val/image_high_share"],
        "accuracy by log-SNR": ["val/accuracy_log_snr_+2", "val/accuracy_log_snr_-4.5"],
    }
    assert found["loss"] == {"loss": [(3, 2.0), (4, 1.0), (6, 0.5)], "val/loss": [(4, 1.5)], "train_eval/loss": [(6, 0.6)]}
    assert found["gradient_norm"]["gradient_norm/b"] == [(4, 2.0)]  # without what is not finite


@pytest.mark.parametrize("rows", [ROWS + ROWS, ROWS[:1]], ids=["four steps, twice", "one step"])
def test_all_panels_have_the_same_whole_steps(rows: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    assert draw(panels(rows)).startswith(b"\x89PNG")
    monkeypatch.undo()
    figure = kept[-1]  # older releases close all others first
    drawn = [axis for axis in figure.axes if axis.lines]
    assert [axis.get_title() for axis in drawn][:2] == ["loss", "learning_rate"] and len(drawn) == len(panels(rows))
    assert {axis.get_xlim() for axis in drawn} == {(2, 7) if len(rows) > 1 else (2, 4)}
    assert all(tick == round(tick) for axis in drawn for tick in axis.get_xticks())
    labels = [text.get_text() for axis in drawn if axis.get_legend() for text in axis.get_legend().get_texts()]
    assert ("val/loss" in labels) == (len(rows) > 1)
    pyplot.close(figure)


def test_panels_of_single_points_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    draw(panels(ROWS))
    monkeypatch.undo()
    (loss,) = (axis for axis in kept[-1].axes if axis.lines)
    assert loss.get_title() == "loss" and len(loss.lines) == 3  # held-out points beside the line are shown
    pyplot.close(kept[-1])


def test_a_long_fall_has_a_logarithmic_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    draw(panels({"step": step, "falls": 100.0 if step < 3 else 1.0, "stays": 1.0 + step} for step in range(60)))
    monkeypatch.undo()
    assert [axis.get_yscale() for axis in kept[-1].axes if axis.lines] == ["log", "linear"]
    pyplot.close(kept[-1])


def test_the_learning_rate_is_drawn_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    draw(panels({"step": step, "learning_rate": float(step > 30), "loss": float(step > 30)} for step in range(60)))
    monkeypatch.undo()
    rate, loss = (axis.lines for axis in kept[-1].axes if axis.lines)
    assert len(rate) == 1 and set(rate[0].get_ydata()) == {0.0, 1.0} and len(loss) == 2
    pyplot.close(kept[-1])
