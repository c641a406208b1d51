"""Classifier guidance (Dhariwal & Nichol 2021): the score plus a classifier's gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.guidance.ends import with_x0

Classifier = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t (B,)) -> logits (B, classes), differentiable in x_t; trained on noisy samples, as it is evaluated on them."""


def classifier_guided(denoise: Denoise, classifier: Classifier, labels: Tensor, scale: float, process: NoiseProcess) -> Denoise:
    """eps - scale sigma grad log p(label | x_t): eq. 14, alg. 2. Also works under `no_grad` and `inference_mode`.

    x0 follows from x_t. At zero SNR x_t does not depend on the label, and the estimate is unchanged.

    Args:
        denoise: not conditioned on the labels; may itself be guided.
        classifier: trained on noisy samples.
        labels: (B,) int64, the target class of each sample.
        scale: 0 = unguided (the classifier is not evaluated), 1 = Bayes' rule, above 1 sharpens.
        process: the denoiser's.
    """
    if scale == 0:
        return denoise

    def guided(x_t: Tensor, t: Tensor) -> Estimate:
        estimate = denoise(x_t, t)
        alpha, sigma = process.scales(t, x_t)
        gradient = _log_likelihood_gradient(classifier, labels, x_t, t)
        # eps - scale sigma gradient, as a change of x0; at alpha = 0 that would divide by 0.
        factor = torch.where(alpha > 0, scale * sigma**2 / alpha, 0.0)
        return with_x0(estimate, estimate.x0 + factor * gradient, x_t, t, process)

    return guided


def _log_likelihood_gradient(classifier: Classifier, labels: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():  # clones, because tensors made in inference_mode cannot have a gradient
        x_t = x_t.detach().clone().requires_grad_()
        labels = labels.to(x_t.device, non_blocking=True).clone()
        log_likelihood = classifier(x_t, t.clone()).log_softmax(1).gather(1, labels[:, None])
        (gradient,) = torch.autograd.grad(log_likelihood.sum(), x_t)
    return gradient
