"""Logistic regression: Newton's method with an L2 penalty, and cross-validation. All of it is deterministic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Folds = npt.NDArray[np.int64]

_ITERATIONS = 50
_HALVINGS = 20
_PRECISION = 1e-7
# A constant column has no information.
_CONSTANT = 1e-9


@dataclass(frozen=True, slots=True)
class Logistic:
    """A fitted model: the logit of a row `x` is `bias + x @ weights`."""

    weights: Array
    bias: float

    def logits(self, x: Array) -> Array:
        """The logits of rows. Shapes: (rows, columns) to (rows,)."""
        return np.asarray(self.bias + x @ self.weights)

    def scaled(self, slope: float, offset: float) -> Logistic:
        """The model whose logits are `offset + slope * logit`."""
        return Logistic(self.weights * slope, self.bias * slope + offset)


def fit_logistic(x: Array, y: Array, penalty: float) -> Logistic:
    """Fit probabilities `y` (rows,), from 0 to 1, to rows `x` (rows, columns). Columns are standardized for it."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    scale = np.where(deviation > _CONSTANT, deviation, np.inf)
    standardized = (x - mean) / scale
    basis = None
    if len(x) < x.shape[1]:
        # The weights are a combination of the rows, so a problem of few rows is small, however many columns it has.
        basis, triangle = np.linalg.qr(standardized.T)
        standardized = triangle.T
    rows = np.hstack([standardized, np.ones((len(x), 1))])
    ridge = np.full(rows.shape[1], penalty)
    ridge[-1] = 1e-6  # the bias; a little, for labels that are all the same
    beta = np.zeros(rows.shape[1])
    loss = _loss(rows, y, beta, ridge)
    for _ in range(_ITERATIONS):
        p = probabilities(rows @ beta)
        gradient = rows.T @ (p - y) + ridge * beta
        hessian = (rows * (p * (1 - p))[:, None]).T @ rows + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        for _ in range(_HALVINGS):
            if (new := _loss(rows, y, beta - step, ridge)) <= loss:
                break
            step /= 2
        else:
            break
        beta, improvement, loss = beta - step, loss - new, new
        if improvement < _PRECISION * len(x):
            break
    weights = (beta[:-1] if basis is None else basis @ beta[:-1]) / scale
    return Logistic(weights, float(beta[-1] - mean @ weights))


def cross_validated_logits(x: Array, y: Array, folds: Folds, penalty: float) -> Array:
    """The logit of each row by the model that was fitted to the rows of all other folds. Shape: (rows,)."""
    logits = np.empty(len(y))
    for fold in np.unique(folds):
        held_out = folds == fold
        logits[held_out] = fit_logistic(x[~held_out], y[~held_out], penalty).logits(x[held_out])
    return logits


def calibration(logits: Array, y: Array) -> tuple[float, float]:
    """Slope and offset that make the probabilities of logits agree with `y` (Platt scaling)."""
    fitted = fit_logistic(logits[:, None], y, penalty=1e-3)
    return float(fitted.weights[0]), fitted.bias


def cross_calibrated(logits: Array, y: Array, folds: Folds) -> Array:
    """The probability of each row, calibrated on the rows of all other folds. Shape: (rows,)."""
    p = np.empty(len(y))
    for fold in np.unique(folds):
        held_out = folds == fold
        slope, offset = calibration(logits[~held_out], y[~held_out])
        p[held_out] = probabilities(offset + slope * logits[held_out])
    return p


def probabilities(logits: Array) -> Array:
    """The probabilities of logits, of any size."""
    return 1 / (1 + np.exp(-np.clip(logits, -700, 700)))


def log_loss(logits: Array, y: Array) -> float:
    """The mean logarithmic loss."""
    return float(np.mean(np.logaddexp(0, logits) - y * logits))


def _loss(rows: Array, y: Array, beta: Array, ridge: Array) -> float:
    return log_loss(rows @ beta, y) * len(y) + float(ridge @ beta**2) / 2
