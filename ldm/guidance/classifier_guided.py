"""Classifier guidance (Dhariwal & Nichol 2021): the score plus a classifier's gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.guidance.ends import with_x0

Classifier = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t (B,)) -> logits (B, classes), differentiable in x_t; trained on noisy samples, since it is asked about them."""


def classifier_guided(denoise: Denoise, classifier: Classifier, labels: Tensor, scale: float, process: NoiseProcess) -> Denoise:
    """eps - scale sigma grad log p(label | x_t): eq. 14, alg. 2. Also works where gradients are switched off, by whatever means.

    x0 follows from x_t; where no signal is left, x_t says nothing of the label and nothing is changed.

    Args:
        denoise: knows nothing of labels, or guides by something else.
        classifier: noise-aware.
        labels: (B,) int64, the class wanted of each sample.
        scale: 0 = unguided (the classifier is not asked), 1 = Bayes' rule, beyond 1 sharpens.
        process: the denoiser's.
    """
    if scale == 0:
        return denoise

    def guided(x_t: Tensor, t: Tensor) -> Estimate:
        estimate = denoise(x_t, t)
        alpha, sigma = process.scales(t, x_t)
        gradient = _log_likelihood_gradient(classifier, labels, x_t, t)
        # eps - scale sigma gradient, said of the other end; at alpha = 0 that would divide by nothing.
        reach = torch.where(alpha > 0, scale * sigma**2 / alpha, 0.0)
        return with_x0(estimate, estimate.x0 + reach * gradient, x_t, t, process)

    return guided


def _log_likelihood_gradient(classifier: Classifier, labels: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():  # copies: what inference_mode made can have no gradient
        x_t = x_t.detach().clone().requires_grad_()
        asked = labels.to(x_t.device, non_blocking=True).clone()
        log_likelihood = classifier(x_t, t.clone()).log_softmax(1).gather(1, asked[:, None])
        (gradient,) = torch.autograd.grad(log_likelihood.sum(), x_t)
    return gradient
