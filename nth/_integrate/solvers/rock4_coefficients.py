"""Coefficients of stabilized Runge–Kutta methods of order 4, of ROCK4 type.

The stability polynomial of degree s is R(z) = w(z) P(z), with w of degree 4 and P of
degree s − 4 (Abdulle 2002, *Fourth order Chebyshev methods with recurrence relation*):

- R(z) = e^z + O(z⁵), and |R(z)| ≤ 0.95 on the stability interval [−l, 0] after its
  initial decay, with l ≈ 0.35 s².
- w has two pairs of complex zeros.
- P is orthogonal to lower degrees with respect to w(z)²/√(1 − x²), x = 1 + 2z/l, and
  P(0) = 1. Its three-term recurrence, P_{j+1} = (μ_j z + ν_j) P_j + (1 − ν_j) P_{j−1},
  gives stages that are stable internally.

The four zeros and l solve five equations: the four conditions of order at z = 0 and
the bound of |R| (its root mean square over Chebyshev nodes, times √2). `_TABLE` holds
their solutions; everything else is computed from them.

Abdulle's methods apply the recurrence first, and then four stages with the stability
polynomial w. Here the four stages come first: their errors are then damped by P(z). In
the other order a solution forced in its stiff components, as u_2, …, u_{p−1} are, has
an error that grows as a power of h max|λ| (Prothero–Robinson test, s = 46: 2e5 h² φ''
against 1e-2 h² φ''). The coefficients of the four stages are such that the whole
satisfies the eight conditions of order 4.
"""

import functools
from typing import NamedTuple

import numpy as np

# s, l/s², and the zeros p ± iq of w: p, q, p, q. The order of the methods does not
# depend on these digits; only |R| does.
_TABLE = """
  5  0.23541910 -0.21969470  2.86082123 -2.01608666  1.09212123
  6  0.27038738 -0.21751954  3.06825153 -2.16601610  1.17346098
  7  0.29122510 -0.22648068  3.19987487 -2.25583231  1.21692240
  8  0.30475711 -0.23721425  3.28813813 -2.31416265  1.24332822
  9  0.31405752 -0.24709669  3.34996224 -2.35425465  1.26070919
 10  0.32072638 -0.25553557  3.39483695 -2.38301382  1.27280930
 11  0.32567088 -0.26256069  3.42838571 -2.40434902  1.28159341
 12  0.32943798 -0.26836913  3.45409716 -2.42061417  1.28818234
 13  0.33237372 -0.27317722  3.47422174 -2.43329772  1.29325669
 14  0.33470574 -0.27717629  3.49026077 -2.44337893  1.29725057
 15  0.33658883 -0.28052369  3.50324541 -2.45152375  1.30045209
 16  0.33813117 -0.28334517  3.51390210 -2.45819794  1.30305887
 17  0.33941024 -0.28574017  3.52275421 -2.46373518  1.30521024
 18  0.34048268 -0.28778717  3.53018630 -2.46837967  1.30700686
 19  0.34139069 -0.28954830  3.53648593 -2.47231337  1.30852291
 20  0.34216624 -0.29107296  3.54187156 -2.47567419  1.30981412
 22  0.34341273 -0.29356318  3.55053711 -2.48107781  1.31188232
 24  0.34436127 -0.29549125  3.55713914 -2.48519151  1.31345038
 26  0.34509975 -0.29701227  3.56228370 -2.48839526  1.31466773
 29  0.34593461 -0.29875293  3.56810441 -2.49201828  1.31604035
 32  0.34654607 -0.30004215  3.57237083 -2.49467266  1.31704327
 35  0.34700727 -0.30102259  3.57559054 -2.49667519  1.31779838
 38  0.34736368 -0.30178503  3.57807975 -2.49822302  1.31838114
 42  0.34772540 -0.30256306  3.58060693 -2.49979413  1.31897187
 46  0.34799697 -0.30315002  3.58250487 -2.50097386  1.31941491
 50  0.34820603 -0.30360353  3.58396633 -2.50188215  1.31975571
 54  0.34837040 -0.30396108  3.58511552 -2.50259630  1.32002348
 59  0.34853073 -0.30431074  3.58623674 -2.50329301  1.32028455
 64  0.34865499 -0.30458229  3.58710576 -2.50383297  1.32048677
 70  0.34877039 -0.30483496  3.58791299 -2.50433450  1.32067452
 76  0.34885956 -0.30503050  3.58853679 -2.50472204  1.32081954
 83  0.34894015 -0.30520744  3.58910060 -2.50507230  1.32095057
 90  0.34900268 -0.30534488  3.58953808 -2.50534407  1.32105221
 98  0.34905839 -0.30546743  3.58992786 -2.50558620  1.32114274
106  0.34910197 -0.30556337  3.59023278 -2.50577561  1.32121355
115  0.34914054 -0.30564833  3.59050267 -2.50594326  1.32127621
125  0.34917400 -0.30572210  3.59073686 -2.50608873  1.32133058
135  0.34920031 -0.30578012  3.59092097 -2.50620309  1.32137331
146  0.34922324 -0.30583069  3.59108142 -2.50630275  1.32141055
158  0.34924299 -0.30587428  3.59121967 -2.50638863  1.32144264
171  0.34925988 -0.30591155  3.59133783 -2.50646202  1.32147006
185  0.34927423 -0.30594324  3.59143827 -2.50652440  1.32149336
200  0.34928639 -0.30597008  3.59152335 -2.50657724  1.32151310
"""

# Nodes of the second and third of the first four stages, in units of their total
# length: all coefficients are then below 1 for every degree.
_NODES = (0.4, 0.7)

# 1/γ(τ) for the trees of up to four nodes: 1, c, c², Ac, c³, c·Ac, Ac², AAc.
_ORDER_4 = np.array([1, 1 / 2, 1 / 3, 1 / 6, 1 / 4, 1 / 8, 1 / 12, 1 / 24])


class Rock4Coefficients(NamedTuple):
    """Coefficients for D degrees; M is the largest number of stages in a recurrence."""

    degrees: np.ndarray
    """s, in increasing order: the number of evaluations of a step."""

    intervals: np.ndarray
    """l, the length of the stability interval."""

    weights: np.ndarray
    """Of the first stages k_1 … k_4, shape `(D, 4, 4)`: in rows, the arguments of k_2,
    k_3 and k_4, and the start of the recurrence."""

    nodes: np.ndarray
    """Times of k_1 … k_4, shape `(D, 4)`."""

    mu: np.ndarray
    """μ_j, shape `(D, M)`."""

    nu: np.ndarray
    """ν_j, shape `(D, M)`."""

    times: np.ndarray
    """Times at which the recurrence evaluates f, shape `(D, M)`."""


@functools.cache
def rock4_coefficients() -> Rock4Coefficients:
    """The coefficients of all degrees."""
    table = np.array([line.split() for line in _TABLE.split("\n")[1:-1]], float)
    degrees = table[:, 0].astype(int)
    lengths = table[:, 1] * degrees**2
    rows = [
        _of_degree(int(s), float(length), zeros)
        for s, length, zeros in zip(degrees, lengths, table[:, 2:], strict=True)
    ]
    weights, nodes, mu, nu, times = zip(*rows, strict=True)
    size = int(degrees[-1]) - 4

    def padded(rows: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.stack([np.pad(row, (0, size - len(row))) for row in rows])

    stacked = np.stack(weights), np.stack(nodes)
    return Rock4Coefficients(
        degrees, lengths, *stacked, padded(mu), padded(nu), padded(times)
    )


def _of_degree(s: int, length: float, zeros: np.ndarray) -> tuple[np.ndarray, ...]:
    mu, nu = _recurrence(s - 4, length, zeros)
    wanted = _weights_of_first_stages(mu, nu)
    matrix, b = _first_stages(wanted)
    weights = np.concatenate([matrix[1:], b[None]])
    return weights, matrix.sum(1), mu, nu, _elementary_weights(mu, nu, wanted)[1]


def _recurrence(
    degree: int, length: float, zeros: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """μ and ν of the orthogonal polynomials up to `degree`, by Stieltjes' procedure."""
    # Gauss–Chebyshev quadrature, exact for the polynomials that occur.
    nodes = degree + 6
    x = np.cos(np.pi * (np.arange(nodes) + 0.5) / nodes)
    z = (x - 1) * length / 2
    pairs = zip(zeros[::2], zeros[1::2], strict=True)
    weight = np.prod([((z - p) ** 2 + q**2) / (p**2 + q**2) for p, q in pairs], 0) ** 2
    weight = weight / weight.sum()
    before, now, norm = np.zeros_like(x), np.ones_like(x), 0.0
    value_before, value = 0.0, 1.0  # at z = 0, that is x = 1
    mu, nu = np.zeros(degree), np.zeros(degree)
    for j in range(degree):
        center = np.sum(weight * x * now**2)
        new = (x - center) * now - norm * before
        new_value = (1 - center) * value - norm * value_before
        mu[j] = 2 / length * value / new_value
        nu[j] = (1 - center) * value / new_value
        norm = np.sqrt(np.sum(weight * new**2))
        before, now = now, new / norm
        value_before, value = value, new_value / norm
    return mu, nu


def _elementary_weights(
    mu: np.ndarray, nu: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Elementary weights after the recurrence, from those before it, and its times.

    In the order of `_ORDER_4`. Each is what the recurrence gives for its own
    derivative: 1, c, c², Ac, c³, c·Ac, Ac², AAc.
    """
    before = now = start
    times = []
    for m, n in zip(mu, nu, strict=True):
        c, ac, acc, aac = now[:4]
        rate = np.array([1, c, c**2, ac, c**3, c * ac, acc, aac])
        before, now = now, m * rate + n * now + (1 - n) * before
        times.append(c)
    return now, np.array(times)


def _weights_of_first_stages(mu: np.ndarray, nu: np.ndarray) -> np.ndarray:
    """Elementary weights of the first stages with which the whole has order 4.

    The weight of a tree enters its own condition with factor 1, and those of trees with
    more nodes: four corrections are exact for trees of four nodes.
    """
    weights = np.zeros(8)
    for _ in range(4):
        weights = weights + _ORDER_4 - _elementary_weights(mu, nu, weights)[0]
    return weights


def _first_stages(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and b of four stages with the wanted elementary weights.

    For given nodes, b follows from the conditions for 1, c, c², c³ and the entries of A
    from those for Ac, c·Ac, Ac². The node of the last stage is the zero of the residual
    of the remaining condition, for AAc, by the secant method.
    """
    before, now = 1.24, 1.25  # in units of the length; the zeros are 1.19 to 1.28
    residual_before = _with_last_node(wanted, before)[2]
    matrix, b, residual = _with_last_node(wanted, now)
    while abs(residual) > 1e-16 and abs(residual) != abs(residual_before):
        step = residual * (now - before) / (residual - residual_before)
        before, now, residual_before = now, now - step, residual
        matrix, b, residual = _with_last_node(wanted, now)
    return matrix, b


def _with_last_node(
    wanted: np.ndarray, last: float
) -> tuple[np.ndarray, np.ndarray, float]:
    c = np.array([0.0, *_NODES, last]) * wanted[0]
    b = np.linalg.solve(np.vander(c, increasing=True).T, wanted[[0, 1, 2, 4]])

    def conditions(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a32, a42, a43 = entries
        matrix = np.zeros((4, 4))
        matrix[1, 0] = c[1]
        matrix[2, :2] = c[2] - a32, a32
        matrix[3, :3] = c[3] - a42 - a43, a42, a43
        ac, acc = matrix @ c, matrix @ c**2
        reached = np.array([b @ ac, b @ (c * ac), b @ acc, b @ matrix @ ac])
        return matrix, reached - wanted[[3, 5, 6, 7]]

    # The first three conditions are affine in the entries.
    offset = conditions(np.zeros(3))[1][:3]
    slopes = np.stack([conditions(e)[1][:3] - offset for e in np.eye(3)], axis=1)
    matrix, residual = conditions(np.linalg.solve(slopes, -offset))
    return matrix, b, float(residual[3])
