"""Networks f(x, θ) as functions of their parameters: fully connected networks (Huang &
Yau, eqs. 1, 2), networks of other libraries, and learning rates of each parameter."""
