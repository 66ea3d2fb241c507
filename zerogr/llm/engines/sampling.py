"""Drawing tokens: a token is a function of logits and a uniform number, whatever stands beside it in the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from zerogr.llm.engines.engine import Sampling

_CDF_BLOCK = 256  # tokens summed together while a cumulative distribution is inverted
_BELOW_ONE = 1 - 2.0**-40  # a share of the total that stays below the total in spite of rounding
_NUCLEUS_CANDIDATES = 256  # most likely tokens looked at before a full sort


def uniforms(seeds: Sequence[int], num_tokens: int) -> np.ndarray:
    """Returns the uniform numbers of samples, float64 [seeds, tokens]: number t of a seed's stream draws token t."""
    return np.stack([np.random.Generator(np.random.Philox(key=seed)).random(num_tokens) for seed in seeds])


def draw_tokens(logits_RV: torch.Tensor, uniforms_R: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Returns one token id per row [R]: the argmax at temperature 0, else the inverse of the CDF at `uniforms_R`.

    Nucleus sampling keeps the fewest most likely tokens whose mass reaches `top_p` (and all that tie with the last).
    Tokens stay in the order of their ids, so rounding that swaps two near-equal tokens does not change the draw.
    Cost: a few passes over [R, V]; with `top_p` < 1 also the 256 most likely, seldom a full sort.
    """
    if sampling.temperature == 0:
        return logits_RV.argmax(-1)
    if logits_RV.is_cuda:
        from zerogr.llm.engines.kernels import sample_on_cuda

        return sample_on_cuda(logits_RV, uniforms_R, sampling.temperature, sampling.top_p)
    probs_RV = logits_RV.to(torch.float32, copy=True)  # the one copy of this size; the rest happens in place
    probs_RV.div_(sampling.temperature)
    probs_RV.sub_(probs_RV.amax(-1, keepdim=True)).exp_()
    if sampling.top_p < 1:
        probs_RV.div_(probs_RV.sum(-1, keepdim=True))
        probs_RV.masked_fill_(probs_RV < _nucleus_threshold(probs_RV, sampling.top_p), 0)
    return _invert_cdf(probs_RV, uniforms_R)


def _invert_cdf(probs_RV: torch.Tensor, uniforms_R: torch.Tensor) -> torch.Tensor:
    """Returns the first token of each row whose cumulative mass exceeds the uniform number's share of the total, [R].

    In two steps, first the block of tokens and then the token: a cumulative sum over the whole vocabulary is sequential
    (18 ms for 32 x 49,152 on one core), a sum per block is not (1 ms).
    """
    num_rows, vocabulary = probs_RV.shape
    uniforms_R = uniforms_R.clamp(max=_BELOW_ONE)
    if vocabulary % _CDF_BLOCK:
        probs_RV = torch.nn.functional.pad(probs_RV, (0, -vocabulary % _CDF_BLOCK))
    blocks_RNS = probs_RV.view(num_rows, -1, _CDF_BLOCK)
    mass_RN = blocks_RNS.sum(-1).double()
    cdf_RN = mass_RN.cumsum(-1)
    # right=True: what is found lies strictly above the target, so a block or token without mass is never chosen.
    target_R1 = uniforms_R[:, None] * cdf_RN[:, -1:]
    block_R1 = torch.searchsorted(cdf_RN, target_R1, right=True)
    before_R1 = torch.nn.functional.pad(cdf_RN, (1, 0)).gather(1, block_R1)
    rest_R1 = ((target_R1 - before_R1) / mass_RN.gather(1, block_R1)).clamp(max=_BELOW_ONE)
    cdf_RS = blocks_RNS[torch.arange(num_rows, device=block_R1.device), block_R1[:, 0]].double().cumsum(-1)
    token_R1 = torch.searchsorted(cdf_RS, rest_R1 * cdf_RS[:, -1:], right=True)
    return (block_R1 * _CDF_BLOCK + token_R1).squeeze(1)


def _nucleus_threshold(probs_RV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Returns the smallest probability inside each row's nucleus, [R, 1]."""
    top_RC = probs_RV.topk(min(_NUCLEUS_CANDIDATES, probs_RV.shape[-1]), dim=-1).values
    if bool((top_RC.sum(-1) < top_p).any()):
        top_RC = probs_RV.sort(dim=-1, descending=True).values
    # A token is inside if the mass before it has not reached top_p; the first always is.
    num_inside_R = (top_RC.cumsum(-1) - top_RC < top_p).sum(-1, keepdim=True)
    return top_RC.gather(-1, num_inside_R.clamp(min=1) - 1)
