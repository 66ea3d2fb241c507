"""Closed forms: the change of a weight matrix that turns keys into values, and leaves other keys alone.

W [D, F] maps keys to outputs; K [n, F] are the keys of what is new, R [n, D] what their outputs lack, C [F, F] the uncentred
second moment of old keys. All of it in float64.

    least squares    min ||(W + Δ) K - V||² + λ E||Δ k_old||²    Δ = Rᵀ K (λ C + Kᵀ K)⁻¹                          MEMIT, DOME
    equality         (W + Δ) K = V exactly, ||Δ||_C least        Δ = Rᵀ (K C⁻¹ Kᵀ + ε I)⁻¹ K C⁻¹                  EMMET
    one by one       the same for one key after the other        Δ += r (C⁻¹ k)ᵀ / (kᵀ C⁻¹ k)                     ROME
    null space       Δ = Δ' P, P onto where C is nearly zero     Δ = Rᵀ K P ((Kᵀ K + K_pᵀ K_p) P + λ I)⁻¹         AlphaEdit

Sources: Meng et al. 2023 (MEMIT), Gupta et al. 2024 (EMMET), Meng et al. 2022 (ROME), Fang et al. 2025 (AlphaEdit), each with
its released code. There a column is a key; here a row is.
"""

from __future__ import annotations

import torch

RIDGE = 0.1
"""EMMET's."""


def least_squares(keys: torch.Tensor, residuals: torch.Tensor, moment: torch.Tensor, preserve: float) -> torch.Tensor:
    """Returns Δ [D, F]; `preserve` is λ, how many old keys the moment stands for."""
    keys, residuals, moment = keys.double(), residuals.double(), moment.double()
    inverse_keys = _solve(preserve * moment + keys.T @ keys, keys.T)  # [F, n]
    return residuals.T @ inverse_keys.T


def equality(keys: torch.Tensor, residuals: torch.Tensor, moment: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """Returns Δ [D, F] that gives every key its value, up to the ridge."""
    keys, residuals = keys.double(), residuals.double()
    whitened = _solve(moment.double(), keys.T)  # [F, n]
    among = keys @ whitened + ridge * torch.eye(len(keys), dtype=torch.float64, device=keys.device)
    return residuals.T @ torch.linalg.solve(among, whitened.T)


def one_by_one(keys: torch.Tensor, residuals: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Returns Δ [D, F], the sum of rank-one changes, each of which sees those before it."""
    keys, residuals = keys.double(), residuals.double()
    whitened = _solve(moment.double(), keys.T).T  # [n, F]
    delta = torch.zeros(residuals.shape[1], keys.shape[1], dtype=torch.float64, device=keys.device)
    for key, direction, residual in zip(keys, whitened, residuals, strict=True):
        lacking = residual - delta @ key
        delta += torch.outer(lacking, direction) / (direction @ key)
    return delta


def null_space(
    keys: torch.Tensor,
    residuals: torch.Tensor,
    moment: torch.Tensor,
    earlier: torch.Tensor,
    *,
    threshold: float,
    ridge: float,
) -> torch.Tensor:
    """Returns Δ [D, F].

    Args:
        keys, residuals, moment: As above.
        earlier: [F, F], the sum of the outer products of the keys of earlier changes.
        threshold: Directions in which the moment has less than so much of its mean count as its null space.
        ridge: λ.
    """
    keys, residuals = keys.double(), residuals.double()
    projection = projection_of(moment, threshold)
    gram = (keys.T @ keys + earlier.double()) @ projection
    identity = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    # Δ G = Rᵀ K P with G = (...) P + λ I: transposed, because solve takes the matrix on the left.
    wanted = residuals.T @ keys @ projection
    solved: torch.Tensor = torch.linalg.solve((gram + ridge * identity).T, wanted.T).T
    return solved


def projection_of(moment: torch.Tensor, threshold: float) -> torch.Tensor:
    """Returns the projection [F, F] onto the directions in which the moment has less than `threshold` times its mean."""
    values, vectors = torch.linalg.eigh(moment.double())
    small = vectors[:, values < threshold * values.clamp(min=0).mean()]
    return small @ small.T


def _solve(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solves a symmetric system; where old keys span less than all directions, the rest is held by a little of the diagonal."""
    held = matrix + 1e-6 * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    solved: torch.Tensor = torch.linalg.solve(held, right)
    return solved
