r"""Fits the quotient of polynomials by which the kernels compute erf, for GELU.

erf(x) = x P(x²) / Q(x²) on [0, 3.92], beyond which floats cannot tell it from 1. Least squares of
relative errors, weighted again and again where they are largest, which ends near the least maximum.

python benchmarks/fit_erf.py
"""

import math

import numpy as np

DEGREE = 5
LIMIT = 3.92
POINTS = 4000
ROUNDS = 200


def fitted() -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients of P and Q from the constant on, and the largest relative error of erf."""
    x = LIMIT * (1 - np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS)) / 2
    square = x * x
    erf = np.array([math.erf(value) for value in x])
    quotient = erf / x
    powers = np.stack([square**i for i in range(DEGREE + 1)], 1)
    weight, denominator = np.ones(POINTS), np.ones(POINTS)
    best = (np.zeros(DEGREE + 1), np.zeros(DEGREE + 1), math.inf)
    for _ in range(ROUNDS):
        scale = weight / denominator / quotient
        equations = np.concatenate([powers, -quotient[:, None] * powers[:, 1:]], 1)
        equations *= scale[:, None]
        size = np.linalg.norm(equations, axis=0)
        found = np.linalg.lstsq(equations / size, quotient * scale)[0] / size
        p, q = found[: DEGREE + 1], np.concatenate([[1.0], found[DEGREE + 1 :]])
        denominator = powers @ q
        errors = np.abs(powers @ p / denominator / quotient - 1)
        if errors.max() < best[2]:
            best = (p, q, float(errors.max()))
        weight *= (errors / errors.max() + 1e-3) ** 0.3
        weight = np.maximum(weight / weight.max(), 1e-6)
    return best


def main() -> None:
    """Print the coefficients as floats."""
    p, q, error = fitted()
    for name, coefficients in (("P", p), ("Q", q)):
        print(name, " ".join(f"{np.float32(value):.9g}" for value in coefficients))
    print(f"largest relative error before rounding: {error:.2g}")


if __name__ == "__main__":
    main()
