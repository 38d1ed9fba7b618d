"""Solvers for stiff and long training: `DenseExponential` and `DenseRosenbrock` for
the dense hierarchy, `ROCK4` and `LowRankRosenbrock` for the matrix-free one and the
trained network."""
