"""The noise of a stochastic beam: which sum of log-probability and Gumbel noise every option has, given its prefix's own.

One operator: numpy on the CPU, with the functions of the reference; a Triton kernel on CUDA, one program per prefix.

Shapes: B queries, W prefixes, C options of all prefixes of a query.

Source: Kool et al. 2019, "Stochastic Beams and Where to Find Them", Appendix B.3.
"""

from __future__ import annotations

import numpy as np
import torch

from zerogr.decoding.noise import child_hashes, gumbel


@torch.library.custom_op("zerogr::perturb", mutates_args=())
def perturb(
    log_probs: torch.Tensor,
    tokens: torch.Tensor,
    ends: torch.Tensor,
    hashes: torch.Tensor,
    perturbed: torch.Tensor,
    is_kept: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the hashes (int64 [B, C]) and the perturbed log-probabilities (float64 [B, C], -inf for no option) of options.

    Args:
        log_probs: float64 [B, C], at the temperature, of the whole paths; -inf for what is no option.
        tokens: int64 [B, C].
        ends: int64 [B, W], one past the last option of each prefix.
        hashes: int64 [B, W], of the prefixes.
        perturbed: float64 [B, W], their perturbed log-probabilities: the largest of a prefix's options gets just that.
        is_kept: bool [B, W], prefixes whose only option is themselves, as they are.
    """
    if log_probs.is_cuda:
        from zerogr.decoding.device.kernels import perturb_on_cuda

        return perturb_on_cuda(log_probs, tokens, ends, hashes, perturbed, is_kept)
    given = [each.contiguous().numpy() for each in (log_probs, tokens, ends, hashes, perturbed, is_kept)]
    found = np.zeros(log_probs.shape, dtype=np.int64), np.full(log_probs.shape, -np.inf)
    for query in range(len(log_probs)):
        _perturb(*(each[query] for each in (*given, *found)))
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


@perturb.register_fake
def _(log_probs: torch.Tensor, tokens: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(tokens), torch.empty_like(log_probs)


def _perturb(
    log_probs: np.ndarray,
    tokens: np.ndarray,
    ends: np.ndarray,
    hashes: np.ndarray,
    perturbed: np.ndarray,
    is_kept: np.ndarray,
    found_hashes: np.ndarray,
    found: np.ndarray,
) -> None:
    begins = np.concatenate([[0], ends[:-1]])
    for prefix in np.flatnonzero(ends > begins):
        here = slice(begins[prefix], ends[prefix])
        if is_kept[prefix]:
            found_hashes[here], found[here] = hashes[prefix], perturbed[prefix]
            continue
        own = child_hashes(int(hashes[prefix]) % 2**64, tokens[here])
        noisy = log_probs[here] + gumbel(own)
        found_hashes[here] = own.view(np.int64)
        is_option = np.isfinite(noisy)
        if is_option.any():
            with np.errstate(divide="ignore"):  # the largest: log(0)
                shift = perturbed[prefix] - noisy[is_option] + np.log1p(-np.exp(noisy[is_option] - noisy.max()))
            found[here][is_option] = perturbed[prefix] - np.maximum(shift, 0) - np.log1p(np.exp(-np.abs(shift)))
